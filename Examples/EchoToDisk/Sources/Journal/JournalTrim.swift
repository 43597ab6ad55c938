// SPDX-License-Identifier: Apache-2.0
//
// Deleting the oldest segments of a journal: for `trim`, and for the daemon's `--keep-bytes` and
// `--keep-days`. Blocks the calling thread.
//
// For each segment, first the mark of the beginning says, durably, that the journal begins behind
// it, then its file is deleted. Whoever dies in between leaves a file that no reader looks at, and
// that the next trimming deletes. A reader holds a shared lock (`flock(2)`) of the segment that it
// reads, and takes the next one's before it releases it, so that what it has yet to read stays,
// too.

import Glibc
import SystemPackage

/// One trimming of a journal.
struct JournalTrim {
  struct Outcome: Sendable {
    var segments = 0
    var bytes = 0
    /// The first segment that is left.
    var first: UInt64 = 1
    /// The segment that is being read, because of which no more was trimmed.
    var busy: UInt64?
  }

  private let inspection: JournalInspection
  private let directory: OpenDirectory

  /// - Throws: a `JournalError` if the journal's beginning cannot be marked.
  init(_ path: FilePath, _ directory: OpenDirectory) throws {
    inspection = try JournalInspection(path, directory)
    self.directory = directory
    guard !inspection.isEmpty else { throw JournalError.noJournal(in: path) }
    guard inspection.marks.isWhole else {
      throw JournalError("\(path): the file `marks` is damaged; see echo-to-disk verify \(path)")
    }
  }

  var identity: JournalIdentity? { inspection.marks.identity }

  /// Whether a journal can begin with a segment: it is readable, and has batches.
  func canBegin(with number: UInt64) -> Bool {
    inspection.segments.contains { $0.number == number && beginning($0) != nil }
  }

  /// The first and the last segment that the journal can begin with. `nil` if it can with none.
  var beginnings: (first: UInt64, last: UInt64)? {
    guard let first = inspection.segments.first(where: { beginning($0) != nil }),
      let last = inspection.segments.last(where: { beginning($0) != nil })
    else { return nil }
    return (first.number, last.number)
  }

  /// The last segment that the journal can begin with, of those up to the first that is to be kept.
  func first(keeping retention: Retention, room: Int = 0) -> UInt64 {
    let wanted = retention.first(of: inspection.segments, room: room)
    return inspection.segments.last { $0.number <= wanted && beginning($0) != nil }?.number ?? 0
  }

  /// Deletes the segments before a number, one after the other, up to one that is being read.
  ///
  /// - Parameter marks: if `nil`, nothing is changed, and the outcome is what it would be.
  /// - Throws: an `Errno`, or a `JournalError` that names the file that cannot be deleted.
  func run(before number: UInt64, _ marks: JournalMarkWriter?) throws -> Outcome {
    var outcome = Outcome(first: inspection.marks.firstSegment)
    var files = try directory.names().compactMap { name in
      JournalFormat.segment(ofFileName: name).map { (number: $0, name: name) }
    }.sorted { $0.number < $1.number }[...]
    // What a trimming that died has marked, then step by step what this one does.
    var steps = [(first: outcome.first, header: BatchHeader?.none)]
    for file in inspection.segments where file.number > outcome.first && file.number <= number {
      if let header = beginning(file) { steps.append((file.number, header)) }
    }
    for (first, header) in steps {
      let step = files.prefix { $0.number < first }
      files = files.dropFirst(step.count)
      let locks = try step.map { file in
        do {
          return try Lock(file.name, in: directory.file)
        } catch let errno as Errno {
          throw JournalError("\(inspection.directory)/\(file.name): \(errno)")
        }
      }
      if let index = locks.firstIndex(where: \.isBusy) {
        outcome.busy = step[step.startIndex + index].number
        return outcome
      }
      if let header {
        try marks?.updateBeginning { mark in
          mark.segment = max(mark.segment, first)
          mark.sequence = max(mark.sequence, header.before)
          mark.nextConnection = max(mark.nextConnection, header.nextConnection)
        }
      }
      outcome.first = first
      for (file, lock) in zip(step, locks) where try delete(file.name, marks, lock) {
        outcome.segments += 1
        outcome.bytes += lock.space
      }
    }
    return outcome
  }

  /// - Returns: `false` if it has been deleted already.
  private func delete(_ name: String, _ marks: JournalMarkWriter?, _ lock: Lock) throws -> Bool {
    guard marks != nil else { return true }
    defer { withExtendedLifetime(lock) {} }
    if unlinkat(directory.file.rawValue, name, 0) == 0 { return true }
    guard errno == ENOENT else {
      throw JournalError("\(inspection.directory)/\(name): \(Errno(rawValue: errno))")
    }
    return false
  }

  /// What the mark says of a journal that begins with a segment. `nil` if it cannot.
  private func beginning(_ file: JournalInspection.SegmentFile) -> BatchHeader? {
    guard file.failure == nil, case .success(let reader) = inspection.open(file) else { return nil }
    return reader.firstHeader()
  }

  /// A lock of a segment against its readers, until the last reference to it is gone.
  private final class Lock {
    private let descriptor: Int32
    /// Whether a reader has the segment.
    let isBusy: Bool
    /// The bytes that it takes on disk.
    let space: Int

    /// - Throws: an `Errno` if the file is there, and cannot be opened to be locked.
    init(_ name: String, in directory: FileDescriptor) throws {
      descriptor = openat(
        directory.rawValue, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
      // A link is none of the daemon's segments, and nobody reads it.
      guard descriptor >= 0 || errno == ENOENT || errno == ELOOP else {
        throw Errno(rawValue: errno)
      }
      // Where nothing can be locked, readers cannot, either: they tell what is trimmed then.
      isBusy =
        descriptor >= 0 && flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK
      space = OpenDirectory.space(of: descriptor)
    }

    deinit { if descriptor >= 0 { close(descriptor) } }
  }
}

extension OpenDirectory {
  /// The number of segments in it, and the bytes that they take on disk.
  func segmentSpace() throws -> (segments: Int, bytes: Int) {
    var space = (segments: 0, bytes: 0)
    for name in try names() where JournalFormat.isSegmentName(name) {
      var status = stat()
      guard fstatat(file.rawValue, name, &status, AT_SYMLINK_NOFOLLOW) == 0,
        status.st_mode & S_IFMT == S_IFREG
      else { continue }
      space.segments += 1
      space.bytes += Self.space(status)
    }
    return space
  }

  fileprivate static func space(of descriptor: Int32) -> Int {
    var status = stat()
    return fstat(descriptor, &status) == 0 ? space(status) : 0
  }

  /// The bytes that a file takes on disk, without what the file system takes to manage them; so not
  /// more than there are on a disk.
  static func space(_ status: stat) -> Int {
    min(Int(status.st_size), Int(status.st_blocks) * 512)
  }
}
