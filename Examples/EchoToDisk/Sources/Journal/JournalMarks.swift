// SPDX-License-Identifier: Apache-2.0
//
// The file `marks`: what is known of a journal's end and beginning outside of its segments. See
// JournalFormat. Blocks the calling thread.

import CJournal
import Glibc
import SystemPackage

/// One mark: see JournalFormat.
struct JournalMark: Equatable {
  enum Kind: UInt32 {
    case end = 1
    case beginning = 2
  }

  var kind: Kind
  var identity: JournalIdentity
  /// Whether the last daemon ended the journal, and none has begun to write since.
  var isClean = false
  /// Whether marks were lost at some time, and with them what they said.
  var isLost = false
  var generation: UInt64 = 1
  var segment: UInt64 = 0
  var offset = 0
  var sequence: UInt64 = 0
  var nextConnection: UInt64 = 1
  var made: UInt64 = 0

  init(_ kind: Kind, _ identity: JournalIdentity) { (self.kind, self.identity) = (kind, identity) }

  func write(to bytes: UnsafeMutableRawBufferPointer) {
    bytes.put(JournalFormat.markMagic, at: 0)
    bytes.put(kind.rawValue, at: 8)
    bytes.put(UInt32((isClean ? 1 : 0) | (isLost ? 2 : 0)), at: 12)
    bytes.put(generation, at: 16)
    bytes.put(identity.journal, at: 24)
    bytes.put(segment, at: 32)
    bytes.put(UInt64(offset), at: 40)
    bytes.put(sequence, at: 48)
    bytes.put(nextConnection, at: 56)
    bytes.put(made, at: 64)
    for offset in stride(from: 72, to: 120, by: 8) { bytes.put(UInt64(0), at: offset) }
    bytes.put(identity.secret, at: 120)
    bytes.put(
      JournalIdentity.plainChecksum(of: UnsafeRawBufferPointer(bytes), count: 312), at: 312)
  }

  /// Reads a mark. `nil` if it is not valid.
  init?(_ bytes: UnsafeRawBufferPointer) {
    guard bytes.count >= JournalFormat.markLength,
      bytes.get(UInt64.self, at: 0) == JournalFormat.markMagic,
      bytes.get(UInt64.self, at: 312) == JournalIdentity.plainChecksum(of: bytes, count: 312),
      let kind = Kind(rawValue: bytes.get(at: 8))
    else { return nil }
    self.kind = kind
    let flags = bytes.get(UInt32.self, at: 12)
    (isClean, isLost) = (flags & 1 != 0, flags & 2 != 0)
    generation = bytes.get(at: 16)
    identity = JournalIdentity(
      journal: bytes.get(at: 24),
      secret: .init(rebasing: bytes[120..<120 + JournalFormat.secretLength]))
    segment = bytes.get(at: 32)
    offset = Int(clamping: bytes.get(UInt64.self, at: 40))
    sequence = bytes.get(at: 48)
    nextConnection = bytes.get(at: 56)
    made = bytes.get(at: 64)
    let numbers = [generation, segment, sequence, nextConnection, made]
    guard numbers.allSatisfy({ $0 <= JournalFormat.highest }) else { return nil }
  }
}

/// What the file says.
struct JournalMarks {
  var end: JournalMark?
  var beginning: JournalMark?
  /// What is wrong with the file; `nil` if nothing is.
  var failure: String?
  private(set) var exists = false
  /// Whether the file must not be written to: it is a link, no file, or another journal's.
  private(set) var forbidsWriting = false
  /// Whether all four marks are valid and of one journal.
  private(set) var isWhole = false

  /// The first segment that was not trimmed, and the last batch that was.
  var firstSegment: UInt64 { max(1, beginning?.segment ?? 1) }
  var identity: JournalIdentity? { end?.identity ?? beginning?.identity }

  /// Reads the file of a directory.
  init(in directory: FileDescriptor) {
    let file: FileDescriptor
    do {
      file = try Self.open(directory, O_RDONLY)
    } catch Errno.noSuchFileOrDirectory {
      failure = "the file is missing; without it a journal's end may be missing unnoticed"
      return
    } catch {
      (exists, failure) = (true, "cannot be opened: \(error)")
      forbidsWriting = error is JournalError
      return
    }
    exists = true
    let window = FileWindow(file, size: 4 * JournalFormat.markBlock)
    var marks: [JournalMark?] = []
    // A daemon may be writing one: a second look finds it whole.
    for _ in 0..<3 where marks.isEmpty || marks.contains(nil) {
      window.discard()
      marks = (0..<4).map { block in
        window.bytes(at: block * JournalFormat.markBlock, JournalFormat.markLength)
          .flatMap { JournalMark($0) }
          .flatMap { $0.kind == (block < 2 ? .end : .beginning) ? $0 : nil }
      }
    }
    end = Self.newer(marks[0], marks[1])
    beginning = Self.newer(marks[2], marks[3])
    let unreadable = marks.indices.filter { marks[$0] == nil }
    if let first = unreadable.first {
      failure = """
        \(unreadable.count) of its 4 marks are unreadable, the first at offset \
        \(first * JournalFormat.markBlock); what was last may be missing unnoticed
        """
    } else if Set(marks.compactMap { $0?.identity }).count > 1 {
      failure = "its marks are of several journals"
    } else {
      isWhole = true
      guard end?.isLost ?? false else { return }
      failure = "marks were lost at some time; what was last then may be missing unnoticed"
    }
  }

  /// Forgets what another journal's marks say.
  mutating func disown() {
    (end, beginning, isWhole, forbidsWriting) = (nil, nil, false, true)
    failure = "the file is of another journal"
  }

  fileprivate static func newer(_ a: JournalMark?, _ b: JournalMark?) -> JournalMark? {
    guard let a, let b else { return a ?? b }
    return a.generation >= b.generation ? a : b
  }

  /// Opens the file, which has to be a regular one with one link.
  fileprivate static func open(_ directory: FileDescriptor, _ flags: Int32) throws -> FileDescriptor
  {
    var status = stat()
    guard
      fstatat(directory.rawValue, JournalFormat.marksName, &status, AT_SYMLINK_NOFOLLOW) == 0
    else { throw Errno(rawValue: errno) }
    try check(status)
    let descriptor = openat(
      directory.rawValue, JournalFormat.marksName, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    let file = FileDescriptor(rawValue: descriptor)
    do {
      guard fstat(descriptor, &status) == 0 else { throw Errno(rawValue: errno) }
      try check(status)
    } catch {
      try? file.close()
      throw error
    }
    return file
  }

  private static func check(_ status: stat) throws {
    guard status.st_mode & S_IFMT == S_IFREG, status.st_nlink == 1 else {
      throw JournalError("it is no regular file with one link")
    }
  }
}

/// Writes marks, each durable when the call returns. Confined to one thread or queue at a time.
///
/// - Safety: `@unchecked Sendable` because of that.
final class JournalMarkWriter: @unchecked Sendable {
  private let descriptor: FileDescriptor
  private var marks: JournalMarks

  /// Opens the marks of a directory, which are made if they are missing, and written anew if they
  /// cannot be used.
  ///
  /// - Parameters:
  ///   - identity: the journal's.
  ///   - isNew: whether nothing of the journal exists, so that none can have been lost.
  init(in directory: FileDescriptor, _ identity: JournalIdentity, isNew: Bool) throws {
    marks = JournalMarks(in: directory)
    let wasWhole = marks.isWhole
    var fresh = JournalMark(.end, identity)
    fresh.isLost = !isNew
    if !marks.exists {
      try Self.make(in: directory, fresh, JournalMark(.beginning, identity))
      marks = JournalMarks(in: directory)
    }
    do {
      descriptor = try JournalMarks.open(directory, O_RDWR)
    } catch {
      throw JournalError("\(JournalFormat.marksName): \(error)")
    }
    guard marks.exists, !wasWhole || marks.identity != identity else { return }
    // What is readable stays as it is; what is not is lost, and that is not forgotten.
    if marks.end?.identity != identity || marks.end == nil { marks.end = fresh }
    if marks.beginning?.identity != identity || marks.beginning == nil {
      marks.beginning = JournalMark(.beginning, identity)
    }
    if !isNew { marks.end?.isLost = true }
    for _ in 0..<2 {
      try update(.end) { _ in }
      try update(.beginning) { _ in }
    }
  }

  deinit { try? descriptor.close() }

  /// Changes the mark of the end.
  func updateEnd(_ change: (inout JournalMark) -> Void) throws { try update(.end, change) }

  /// Changes the mark of the beginning, which other processes change, too.
  func updateBeginning(_ change: (inout JournalMark) -> Void) throws {
    // Two at once would not know of each other's mark. A daemon locks the directory, not this.
    while flock(descriptor.rawValue, LOCK_EX) != 0, errno == EINTR {}
    defer { flock(descriptor.rawValue, LOCK_UN) }
    marks.beginning = try readBeginning() ?? marks.beginning
    try update(.beginning, change)
  }

  private func readBeginning() throws -> JournalMark? {
    try withUnsafeTemporaryAllocation(byteCount: JournalFormat.markLength, alignment: 8) { bytes in
      let found = try (2..<4).map { block -> JournalMark? in
        let count = try descriptor.read(
          fromAbsoluteOffset: Int64(block * JournalFormat.markBlock), into: bytes)
        let mark = JournalMark(.init(rebasing: UnsafeRawBufferPointer(bytes)[..<count]))
        return mark?.kind == .beginning ? mark : nil
      }
      return JournalMarks.newer(found[0], found[1])
    }
  }

  private func update(_ kind: JournalMark.Kind, _ change: (inout JournalMark) -> Void) throws {
    // Neither is nil: `init` has seen to that.
    var mark = kind == .end ? marks.end! : marks.beginning!
    change(&mark)
    mark.generation += 1
    let block = (kind == .end ? 0 : 2) + Int(mark.generation % 2)
    try withUnsafeTemporaryAllocation(byteCount: JournalFormat.markBlock, alignment: 8) { bytes in
      _ = bytes.initializeMemory(as: UInt8.self, repeating: 0)
      mark.write(to: bytes)
      _ = try descriptor.writeAll(
        toAbsoluteOffset: Int64(block * JournalFormat.markBlock), UnsafeRawBufferPointer(bytes))
    }
    guard fdatasync(descriptor.rawValue) == 0 else { throw Errno(rawValue: errno) }
    if kind == .end { marks.end = mark } else { marks.beginning = mark }
  }

  private static func make(
    in directory: FileDescriptor, _ end: JournalMark, _ beginning: JournalMark
  ) throws {
    let unfinished = JournalFormat.marksName + JournalFormat.unfinishedSuffix
    unlinkat(directory.rawValue, unfinished, 0)
    let descriptor = openat(
      directory.rawValue, unfinished, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    let file = FileDescriptor(rawValue: descriptor)
    defer { try? file.close() }
    var contents = [UInt8](repeating: 0, count: 4 * JournalFormat.markBlock)
    contents.withUnsafeMutableBytes { bytes in
      for block in 0..<4 {
        var mark = block < 2 ? end : beginning
        // The generation tells which block is written next.
        mark.generation = UInt64(block % 2)
        mark.write(to: .init(rebasing: bytes[(block * JournalFormat.markBlock)...]))
      }
    }
    do {
      _ = try file.writeAll(contents)
      guard fsync(descriptor) == 0 else { throw Errno(rawValue: errno) }
      let answer = cjournal_rename_new(directory.rawValue, unfinished, JournalFormat.marksName)
      guard answer == 0 else { throw Errno(rawValue: -answer) }
      guard fsync(directory.rawValue) == 0 else { throw Errno(rawValue: errno) }
    } catch {
      unlinkat(directory.rawValue, unfinished, 0)
      throw error
    }
  }
}
