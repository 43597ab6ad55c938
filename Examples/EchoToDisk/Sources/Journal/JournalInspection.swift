// SPDX-License-Identifier: Apache-2.0
//
// What is in a journal's directory: the one place that decides which files are the journal's
// segments, for the daemon's start and for the commands that read. Blocks the calling thread.

import Glibc
import SystemPackage

/// The segments of a journal, and what is wrong with the directory.
struct JournalInspection {
  /// A segment that can be read.
  struct SegmentFile {
    let number: UInt64
    let name: String
    /// What its header says, or is assumed to say.
    let header: SegmentHeader
    let isHeaderReadable: Bool
    let size: Int
    /// What is wrong with the file; `nil` if nothing is.
    var failure: String?
    let inode: UInt64
    /// The bytes that it takes on disk.
    let space: Int
    /// The time of the last write to it, in nanoseconds since 1970.
    let modified: Int64

    /// Where the failure is.
    var failurePlace: JournalPlace {
      .segment(number, offset: isHeaderReadable ? min(size, header.size) : 0)
    }
  }

  struct Finding {
    /// The number that the file has the place of; `nil` for one that has no place in the journal.
    let segment: UInt64?
    let name: String
    let sentence: String
    /// Whether the daemon must not write as long as it is so.
    let forbidsWriting: Bool
  }

  let directory: FilePath
  /// In order, one for each number.
  private(set) var segments: [SegmentFile] = []
  private(set) var findings: [Finding] = []
  let marks: JournalMarks
  /// The number and secret that the journal's files have. `nil` if none of them tells.
  let identity: JournalIdentity?
  /// The highest number that any name or header has.
  private(set) var highestNumber: UInt64 = 0
  private let opened: OpenDirectory
  private let read: FileWindow.Read

  /// - Parameters:
  ///   - opened: the directory, if it is open already.
  ///   - read: in place of `pread(2)`, for tests.
  /// - Throws: an `Errno` if the directory cannot be read.
  init(
    _ directory: FilePath, _ opened: OpenDirectory? = nil,
    read: @escaping FileWindow.Read = FileWindow.systemRead
  ) throws {
    (self.directory, self.read) = (directory, read)
    let opened = try opened ?? OpenDirectory(directory)
    self.opened = opened
    // Before the names: every segment that it says was made is there then, unless it is missing.
    var marks = JournalMarks(in: opened.file)
    let names = try opened.names().filter(JournalFormat.isSegmentName).sorted()
    // What has been trimmed meanwhile, or a journal that has been begun.
    let later = JournalMarks(in: opened.file)
    if !marks.exists { marks = later }
    if later.beginning != nil { marks.beginning = later.beginning }
    var entries = names.map { Entry($0, in: opened.file, read) }
    identity = Self.identity(marks, entries)
    if let own = marks.identity, own != identity { marks.disown() }
    self.marks = marks
    if let failure = marks.failure, marks.exists || !names.isEmpty {
      findings.append(
        Finding(
          segment: nil, name: JournalFormat.marksName, sentence: failure,
          forbidsWriting: marks.forbidsWriting))
    }
    for entry in entries {
      highestNumber = max(highestNumber, entry.number ?? 0, entry.header?.segment ?? 0)
    }
    // Those with the right name first: another of the same number is a copy.
    entries.sort { ($0.isWellNamed ? 0 : 1, $0.name) < ($1.isWellNamed ? 0 : 1, $1.name) }
    for entry in entries { judge(entry) }
    segments.sort { $0.number < $1.number }
  }

  /// Whether the directory has nothing of a journal.
  var isEmpty: Bool { segments.isEmpty && findings.isEmpty && !marks.exists }

  /// Opens a segment to read it. It is not trimmed while it is open.
  func open(_ file: SegmentFile) -> Result<SegmentReader, Errno> {
    let descriptor = openat(
      opened.file.rawValue, file.name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    guard descriptor >= 0 else { return .failure(Errno(rawValue: errno)) }
    // Waits for a trimming to delete it. Where there are no locks, it is read without.
    while flock(descriptor, LOCK_SH) != 0, errno == EINTR {}
    var status = stat()
    guard fstat(descriptor, &status) != 0 || status.st_nlink > 0 else {
      Glibc.close(descriptor)
      return .failure(.noSuchFileOrDirectory)
    }
    return .success(
      SegmentReader(
        FileWindow(FileDescriptor(rawValue: descriptor), size: file.size, read: read), file.header,
        isHeaderReadable: file.isHeaderReadable))
  }

  /// Whether a segment that is missing has been trimmed since.
  func isTrimmed(_ number: UInt64) -> Bool {
    number < JournalMarks(in: opened.file).firstSegment
  }

  /// Whether the marks have changed since.
  func hasNewMarks() -> Bool {
    let now = JournalMarks(in: opened.file)
    return now.end?.generation != marks.end?.generation
      || now.beginning?.generation != marks.beginning?.generation
  }

  /// The number below which connections may have been trimmed in part, by now.
  func trimmedConnections() -> UInt64 {
    JournalMarks(in: opened.file).beginning?.nextConnection ?? 0
  }

  // MARK: Judging

  /// That of most files: the marks and the segments, of which a copy under another number does not
  /// count. The marks decide where as many say one as the other.
  private static func identity(_ marks: JournalMarks, _ entries: [Entry]) -> JournalIdentity? {
    let named = [marks.identity] + entries.filter(\.isWellNamed).map { $0.header?.identity }
    var counts: [JournalIdentity: Int] = [:]
    for identity in named { if let identity { counts[identity, default: 0] += 1 } }
    let most = counts.values.max()
    return named.lazy.compactMap { $0 }.first { counts[$0] == most }
      ?? entries.lazy.compactMap { $0.header?.identity }.first
  }

  private mutating func judge(_ entry: Entry) {
    func find(_ sentence: String, forbidsWriting: Bool, at number: UInt64?) {
      findings.append(
        Finding(
          segment: number, name: entry.name, sentence: sentence, forbidsWriting: forbidsWriting))
    }
    if let number = entry.number, number < marks.firstSegment { return }
    if let refusal = entry.refusal {
      return find(refusal, forbidsWriting: entry.isLink, at: entry.number)
    }
    if let header = entry.header {
      guard header.identity == identity else {
        return find("it is a segment of another journal", forbidsWriting: true, at: entry.number)
      }
      if !entry.isWellNamed {
        find(
          "the file says that it is segment \(header.segment)", forbidsWriting: true,
          at: entry.number)
        guard header.segment >= marks.firstSegment,
          !segments.contains(where: { $0.number == header.segment })
        else { return }
      }
    } else if entry.number == nil {
      return find("it has the name of no segment, and no header", forbidsWriting: false, at: nil)
    }
    append(entry)
  }

  private mutating func append(_ entry: Entry) {
    // Without a header it has the number of its name: see `judge`.
    guard let number = entry.header?.segment ?? entry.number else { return }
    let header =
      entry.header
      ?? SegmentHeader(
        unit: JournalFormat.smallestUnit, identity: identity ?? JournalIdentity(), segment: number,
        size: max(entry.size, JournalFormat.smallestUnit), created: 0)
    var file = SegmentFile(
      number: number, name: entry.name, header: header, isHeaderReadable: entry.header != nil,
      size: entry.size, inode: entry.inode, space: entry.space, modified: entry.modified)
    if entry.header == nil {
      file.failure =
        entry.size == 0 ? "the file is empty" : entry.headerFailure ?? "its header is unreadable"
    } else if entry.size != header.size {
      file.failure = "the file has \(entry.size) bytes, where its header says \(header.size)"
    }
    segments.append(file)
    if entry.links > 1 {
      findings.append(
        Finding(
          segment: number, name: entry.name,
          sentence: "the file has \(entry.links) links: what is written to it is written to others",
          forbidsWriting: true))
    }
  }
}

/// What one name in the directory stands for.
private struct Entry {
  let name: String
  /// The number in the name; `nil` if a segment is never given that name.
  let number: UInt64?
  private(set) var header: SegmentHeader?
  private(set) var size = 0
  private(set) var links = 1
  private(set) var inode: UInt64 = 0
  private(set) var space = 0
  private(set) var modified: Int64 = 0
  /// Why it cannot be read at all.
  private(set) var refusal: String?
  private(set) var isLink = false
  /// Why its header cannot be read.
  private(set) var headerFailure: String?

  var isWellNamed: Bool { number != nil && (header.map { $0.segment == number } ?? true) }

  init(_ name: String, in directory: FileDescriptor, _ read: @escaping FileWindow.Read) {
    self.name = name
    number = JournalFormat.segment(ofFileName: name)
    var status = stat()
    guard fstatat(directory.rawValue, name, &status, AT_SYMLINK_NOFOLLOW) == 0 else {
      refusal = "cannot be looked at: \(Errno(rawValue: errno))"
      return
    }
    isLink = status.st_mode & S_IFMT == S_IFLNK
    guard status.st_mode & S_IFMT == S_IFREG else {
      refusal = isLink ? "it is a symbolic link, no file" : "it is no regular file"
      return
    }
    // Non-blocking, should it have become a pipe meanwhile.
    let descriptor = openat(
      directory.rawValue, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    guard descriptor >= 0 else {
      refusal = "cannot be opened: \(Errno(rawValue: errno))"
      return
    }
    guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
      Glibc.close(descriptor)
      refusal = "it is no regular file"
      return
    }
    (size, links, inode) = (Int(status.st_size), Int(status.st_nlink), UInt64(status.st_ino))
    space = OpenDirectory.space(status)
    // Of any file, so a time may be one that no clock shows, and would overflow.
    modified = Int64(min(max(status.st_mtim.tv_sec, 0), 9_000_000_000)) * 1_000_000_000
    readHeader(FileWindow(FileDescriptor(rawValue: descriptor), size: min(size, 4096), read: read))
  }

  private mutating func readHeader(_ window: FileWindow) {
    guard let bytes = window.bytes(at: 0, JournalFormat.segmentHeaderLength) else { return }
    header = SegmentHeader(bytes)
    if let failure = window.failure(in: 0..<JournalFormat.segmentHeaderLength) {
      headerFailure = "its header cannot be read: \(failure.error)"
    } else if header == nil, bytes.get(UInt64.self, at: 0) == 0x314c_4e4a_4f48_4345 {
      headerFailure = "it has format 1, which is no longer read"
    }
  }
}

/// An open directory, closed with the last reference.
final class OpenDirectory: Sendable {
  let file: FileDescriptor

  init(_ path: FilePath) throws {
    file = try FileDescriptor.open(path, .readOnly, options: [.directory, .closeOnExec])
  }

  deinit { try? file.close() }

  /// The names of all files, in no order.
  func names() throws -> [String] {
    // A description of its own, because reading a directory moves its position.
    let descriptor = openat(file.rawValue, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0, let stream = fdopendir(descriptor) else {
      throw Errno(rawValue: errno)
    }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
      names.append(
        withUnsafePointer(to: &entry.pointee.d_name) {
          $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        })
    }
    return names
  }
}
