// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc
import SystemPackage

/// A journal's directory, owned by this process: nobody else writes there until it ends.
struct JournalDirectory {
  let path: FilePath
  /// The directory's random number; in every header.
  let journal: UInt64
  /// The last batch that counts; 0 when there is none.
  let durable: UInt64
  /// Above every number that a batch's header has, also where the batch does not count.
  let nextSequence: UInt64
  let nextConnection: UInt64
  /// The number of the next segment to be made.
  let nextSegment: UInt64
  /// Segments that exist, and were never written to.
  let fresh: [Segment]
  /// Where the last daemon died in the middle of a batch.
  let tornTail: JournalPlace?
  /// Where in the last segment something is not readable that was durable.
  let damages: [(place: JournalPlace, what: String)]

  /// Holds the lock as long as it is open.
  private let lock: FileDescriptor

  /// Opens a directory, makes it where there is none, and finds out where its journal ends.
  ///
  /// Blocks the calling thread. What was readable is durable when it returns.
  ///
  /// - Parameter syncs: whether what is written to its segments is to be durable.
  init(_ path: FilePath, syncs: Bool = true) throws {
    self.path = path
    do {
      try Self.makeDirectory(path)
      lock = try Self.lock(path)
    } catch let errno as Errno {
      throw JournalError("--data \(path): \(errno)")
    }
    let found = try JournalReader.list(path)
    try Self.removeUnfinished(path)

    var fresh: [Segment] = []
    var journal: UInt64?
    var end = JournalEnd()
    // From the last segment back to one that has something in it.
    for (_, path) in found.reversed() {
      let segment = try SegmentReader(path)
      journal = journal ?? segment.header.journal
      guard segment.header.journal == journal else {
        throw JournalError("\(path): belongs to another journal")
      }
      if !end.isSeen, try segment.isFresh() {
        // One from a disk with smaller sectors stays as it is.
        if let segment = try Segment(path, segment.header, syncs: syncs) {
          fresh.insert(segment, at: 0)
        }
        continue
      }
      let counts = try end.look(at: segment)
      // What is read may not have been synced before the last daemon died. A batch written from
      // now on calls it durable.
      let descriptor = try FileDescriptor.open(path, .readOnly)
      defer { try? descriptor.close() }
      guard fdatasync(descriptor.rawValue) == 0 else {
        throw JournalError("\(path): fdatasync: \(Errno(rawValue: errno))")
      }
      if counts { break }
    }
    self.journal = journal ?? UInt64.random(in: 1 ... .max)
    (durable, nextSequence, nextConnection) = (end.durable, end.nextSequence, end.nextConnection)
    nextSegment = (found.last?.number ?? 0) + 1
    self.fresh = fresh
    (tornTail, damages) = (end.tornTail, end.damages)
  }

  private static func makeDirectory(_ path: FilePath) throws {
    var parent = path
    parent.removeLastComponent()
    if mkdir(path.string, 0o777) == 0 { return }
    switch errno {
    case EEXIST: return
    case ENOENT where !parent.isEmpty && parent != path:
      try makeDirectory(parent)
      guard mkdir(path.string, 0o777) == 0 else { throw Errno(rawValue: errno) }
    case let errno: throw Errno(rawValue: errno)
    }
  }

  private static func lock(_ path: FilePath) throws -> FileDescriptor {
    let lock = try FileDescriptor.open(
      path.appending("lock"), .readWrite, options: [.create, .closeOnExec],
      permissions: [.ownerReadWrite, .groupRead, .otherRead])
    guard flock(lock.rawValue, LOCK_EX | LOCK_NB) == 0 else {
      let errno = Errno(rawValue: errno)
      try? lock.close()
      if errno == .wouldBlock {
        throw JournalError("--data \(path): another echo-to-disk is writing to this directory")
      }
      throw errno
    }
    return lock
  }

  /// Segments that were being made when the last daemon died.
  private static func removeUnfinished(_ path: FilePath) throws {
    guard let stream = opendir(path.string) else { throw Errno(rawValue: errno) }
    defer { closedir(stream) }
    while let entry = readdir(stream) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name.hasPrefix("segment-"), name.hasSuffix(Segment.unfinishedSuffix) {
        unlink(path.appending(name).string)
      }
    }
  }
}

/// A segment file, open to be written.
struct Segment: Sendable {
  static let unfinishedSuffix = ".making"

  let file: AIOFile
  let number: UInt64
  /// Batches begin at multiples of this.
  let unit: Int
  let size: Int

  /// Opens a segment that exists; `nil` when its batches are laid out for smaller sectors than the
  /// disk has.
  ///
  /// - Parameter syncs: whether a write is durable when it completes (`O_DSYNC`): in one request,
  ///   and one turn of the loop, what would be a write and then an fdatasync.
  init?(_ path: FilePath, _ header: SegmentHeader, syncs: Bool) throws {
    file = try Self.open(path, syncs: syncs)
    guard header.unit % file.alignment.offset == 0 else { return nil }
    number = header.segment
    unit = header.unit
    size = header.size
  }

  private static func open(_ path: FilePath, syncs: Bool) throws -> AIOFile {
    try AIOFile.open(path, .writeOnly, options: syncs ? .init(rawValue: O_DSYNC) : [])
  }

  /// Makes a segment, and the room for all of it: written with zeros once, because a write to a
  /// block that was only reserved changes the file's map, and makes every fdatasync a commit of the
  /// filesystem's journal. Under another name until it is complete.
  ///
  /// Blocks the calling thread, for as long as it takes to write `size` bytes.
  init(
    making number: UInt64, in directory: FilePath, journal: UInt64, size: Int, syncs: Bool
  ) throws {
    let path = directory.appending(JournalFormat.fileName(of: number))
    let unfinished = FilePath(path.string + Self.unfinishedSuffix)
    do {
      // Without O_DSYNC: one fsync at the end is enough for the zeros.
      let file = try AIOFile.open(unfinished, .readWrite, options: [.create, .truncate])
      unit = max(512, file.alignment.offset)
      self.size = size
      self.number = number
      try file.preallocate(0..<Int64(size))
      let descriptor = file.fileDescriptor
      let zeros = AIOBuffer(count: min(size, 1 << 20))
      var offset = 0
      while offset < size {
        let piece = zeros[..<min(zeros.count, size - offset)]
        offset += try piece.withUnsafeBytes {
          try descriptor.writeAll(toAbsoluteOffset: Int64(offset), $0)
        }
      }
      var now = timespec()
      clock_gettime(CLOCK_REALTIME, &now)
      let header = SegmentHeader(
        unit: unit, journal: journal, segment: number, size: size,
        created: Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec))
      let first = zeros[..<unit]
      first.withUnsafeMutableBytes { header.write(to: $0) }
      _ = try first.withUnsafeBytes { try descriptor.writeAll(toAbsoluteOffset: 0, $0) }
      guard fsync(descriptor.rawValue) == 0 else { throw Errno(rawValue: errno) }
      guard rename(unfinished.string, path.string) == 0 else { throw Errno(rawValue: errno) }
      let directory = try FileDescriptor.open(directory, .readOnly, options: .directory)
      defer { try? directory.close() }
      guard fsync(directory.rawValue) == 0 else { throw Errno(rawValue: errno) }
      // By the name that an error is to have.
      self.file = try Self.open(path, syncs: syncs)
    } catch {
      unlink(unfinished.string)
      throw error
    }
  }
}
