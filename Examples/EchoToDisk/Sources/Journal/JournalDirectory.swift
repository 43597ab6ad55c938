// SPDX-License-Identifier: Apache-2.0
//
// Opening a journal to write to it: the lock, and where the last daemon stopped. Called once,
// before the loop runs.

import Glibc
import SystemPackage

/// A journal's directory, locked by this process: no other daemon writes to it until this one ends.
struct JournalDirectory {
  let path: FilePath
  /// The random number of this journal, which every header has.
  let journal: UInt64
  /// The last valid batch; 0 if there is none.
  let durable: UInt64
  /// A number above that of every batch header, valid batch or not.
  let nextSequence: UInt64
  let nextConnection: UInt64
  /// The number of the next segment to make.
  let nextSegment: UInt64
  /// Segments that exist and have no batch yet.
  let fresh: [Segment]
  /// The place of the batch that the last daemon was writing when it died.
  let tornTail: JournalPlace?
  /// The places in the last segment where something that was durable is unreadable.
  let damages: [(place: JournalPlace, what: String)]

  /// The descriptor of the lock file, which holds the lock as long as it is open.
  private let lock: FileDescriptor

  /// Opens a directory, which is made if it is missing, and finds the end of its journal. Whatever
  /// was readable is durable when this returns.
  ///
  /// Blocks the calling thread.
  ///
  /// - Parameter syncs: whether writes to its segments are to be durable.
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
    // From the last segment back to one with a valid batch.
    for (_, path) in found.reversed() {
      let segment = try SegmentReader(path)
      journal = journal ?? segment.header.journal
      guard segment.header.journal == journal else {
        throw JournalError("\(path): belongs to another journal")
      }
      if !end.hasExamined, try segment.isFresh() {
        // A segment made on a disk with smaller sectors is left as it is.
        if let segment = try Segment(path, segment.header, syncs: syncs) {
          fresh.insert(segment, at: 0)
        }
        continue
      }
      let hasValidBatch = try end.examine(segment)
      // The last daemon may have died before it synced what is readable, and the batches from now
      // on will call it durable.
      let descriptor = try FileDescriptor.open(path, .readOnly)
      defer { try? descriptor.close() }
      guard fdatasync(descriptor.rawValue) == 0 else {
        throw JournalError("\(path): fdatasync: \(Errno(rawValue: errno))")
      }
      if hasValidBatch { break }
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

  /// Removes the segments that were being made when the last daemon died.
  private static func removeUnfinished(_ path: FilePath) throws {
    for name in try JournalReader.fileNames(in: path)
    where name.hasPrefix("segment-") && name.hasSuffix(Segment.unfinishedSuffix) {
      unlink(path.appending(name).string)
    }
  }
}
