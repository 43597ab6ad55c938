// SPDX-License-Identifier: Apache-2.0
//
// Opening a journal to write to it: the lock, and where the last daemon stopped. Called once,
// before the loop runs.

import Glibc
import ServerSupport
import SystemPackage

/// A journal's directory, locked by this process: no other daemon writes to it until this one ends.
struct JournalDirectory {
  let path: FilePath
  let identity: JournalIdentity
  /// The last batch that is, or was called, durable; 0 if there is none.
  private(set) var durable: UInt64
  /// A number above that of every batch header, valid batch or not.
  private(set) var nextSequence: UInt64
  private(set) var nextConnection: UInt64
  /// Where the last valid batch ends; `nil` if there is none.
  private(set) var durableEnd: (segment: UInt64, offset: Int)?
  /// The number of the next segment to make: above that of every segment that was ever made.
  let nextSegment: UInt64
  /// Segments that exist and have no batch yet.
  private(set) var fresh: [Segment] = []
  /// The place of the batch that the last daemon was writing when it died.
  private(set) var tornTail: JournalPlace?
  /// What `verify` says of the directory and of the last segment that has batches.
  private(set) var damages: [(place: JournalPlace, what: String)] = []
  /// Why the directory's own name may not be durable; `nil` if it is.
  let nameFailure: Errno?
  let marks: JournalMarkWriter
  /// The directory, whose lock is held as long as it is open. The directory itself is locked,
  /// because it cannot be removed while it has a journal.
  let directory: OpenDirectory

  /// Opens a directory, which is made if it is missing, and finds the end of its journal. Whatever
  /// was readable is durable when this returns.
  ///
  /// Blocks the calling thread.
  ///
  /// - Parameter syncs: whether writes to its segments are to be durable.
  init(_ path: FilePath, syncs: Bool = true) throws {
    self.path = path
    do {
      nameFailure = try Self.makeDirectory(path)
      directory = try OpenDirectory(path)
      try Self.lock(directory, path)
      try Self.removeUnfinished(directory)
      let inspection = try JournalInspection(path)
      try Self.refuse(inspection)
      identity = inspection.identity ?? JournalIdentity()
      let isNew = inspection.segments.isEmpty && inspection.findings.isEmpty
      let end = inspection.marks.end
      // Another file that has the number of a new segment's name is skipped when it is made.
      nextSegment =
        1
        + max(
          inspection.segments.last?.number ?? 0, end?.made ?? 0, end?.segment ?? 0,
          inspection.marks.firstSegment - 1,
          inspection.marks.isWhole ? 0 : inspection.highestNumber)
      var found = try JournalTail(inspection)
      fresh = try Self.open(found.fresh, inspection, path, syncs: syncs)
      if !isNew && !inspection.marks.isWhole || found.lacksItsEnd { found.skipNumbers() }
      durable = max(found.durable, end?.sequence ?? 0)
      nextSequence = max(found.nextSequence, durable + 1)
      nextConnection = max(
        found.nextConnection, end?.nextConnection ?? 1,
        inspection.marks.beginning?.nextConnection ?? 1)
      (tornTail, damages, durableEnd) = (found.tornTail, found.damages, found.durableEnd)
      marks = try JournalMarkWriter(in: directory.file, identity, isNew: isNew)
    } catch let errno as Errno {
      throw JournalError("--data \(path): \(errno)")
    }
  }

  /// Makes a directory if it is missing, and its name durable in any case: whoever made it, a
  /// daemon that was killed perhaps, may not have got to that.
  ///
  /// - Returns: why the name of one that was there cannot be made durable; `nil` if it could.
  private static func makeDirectory(_ path: FilePath) throws -> Errno? {
    var parent = path
    parent.removeLastComponent()
    var wasThere = false
    if path.withPlatformString({ mkdir($0, 0o700) }) != 0 {
      switch errno {
      case EEXIST: wasThere = true
      case ENOENT where !parent.isEmpty && parent != path:
        _ = try makeDirectory(parent)
        guard path.withPlatformString({ mkdir($0, 0o700) }) == 0 else {
          throw Errno(rawValue: errno)
        }
      case let errno: throw Errno(rawValue: errno)
      }
    }
    do {
      let opened = try OpenDirectory(parent.isEmpty ? "." : parent)
      // EINVAL: a filesystem whose directories need none.
      guard fsync(opened.file.rawValue) == 0 || errno == EINVAL else {
        throw Errno(rawValue: errno)
      }
      return nil
    } catch let errno as Errno where wasThere && errno == .permissionDenied {
      return errno
    }
  }

  private static func lock(_ directory: OpenDirectory, _ path: FilePath) throws {
    guard flock(directory.file.rawValue, LOCK_EX | LOCK_NB) == 0 else {
      if errno == EWOULDBLOCK {
        throw JournalError("--data \(path): another echo-to-disk is writing to this directory")
      }
      throw Errno(rawValue: errno)
    }
  }

  /// Removes the files that were being made when the last daemon died.
  private static func removeUnfinished(_ directory: OpenDirectory) throws {
    for name in try directory.names()
    where (name.hasPrefix("segment-") || name.hasPrefix(JournalFormat.marksName))
      && name.hasSuffix(JournalFormat.unfinishedSuffix)
    {
      unlinkat(directory.file.rawValue, name, 0)
    }
  }

  /// Refuses a directory in which a file is not what its name says, so that something could be
  /// written where no reader looks.
  private static func refuse(_ inspection: JournalInspection) throws {
    guard let first = inspection.findings.first(where: \.forbidsWriting) else { return }
    throw JournalError(
      """
      \(inspection.directory)/\(first.name.escaped): \(first.sentence); \
      move the file out of the directory, or put the right one in its place, and see \
      echo-to-disk verify \(inspection.directory)
      """)
  }

  /// Opens the segments that have no batches to write to them, if they are still what was
  /// inspected. One made on a disk with smaller sectors is left as it is.
  private static func open(
    _ files: [JournalInspection.SegmentFile], _ inspection: JournalInspection, _ path: FilePath,
    syncs: Bool
  ) throws -> [Segment] {
    try files.compactMap { file in
      let segment = try Segment(path.appending(file.name), file.header, syncs: syncs)
      var status = stat()
      if let segment {
        guard fstat(segment.file.fileDescriptor.rawValue, &status) == 0,
          UInt64(status.st_ino) == file.inode, status.st_nlink == 1
        else { throw JournalError("\(path)/\(file.name): it has been replaced meanwhile") }
      }
      return segment
    }
  }
}

/// The end of a journal, and the numbers a daemon continues with: found by reading the last
/// segments, back to one that has a batch.
private struct JournalTail {
  private(set) var durable: UInt64 = 0
  private(set) var nextSequence: UInt64 = 1
  private(set) var nextConnection: UInt64 = 1
  private(set) var tornTail: JournalPlace?
  private(set) var durableEnd: (segment: UInt64, offset: Int)?
  private(set) var damages: [(place: JournalPlace, what: String)] = []
  /// The segments behind the last batch that are as they were made.
  private(set) var fresh: [JournalInspection.SegmentFile] = []
  /// Whether a segment behind the last batch is missing, or has no readable batch.
  private(set) var lacksItsEnd = false

  init(_ inspection: JournalInspection) throws {
    let made = inspection.marks.end?.made ?? 0
    var start = inspection.segments.count
    var hasBatch = false
    // Every segment between the last batch and the last that was made has to be there.
    var next = made + 1
    var isGapless = true
    while start > 0, !hasBatch {
      start -= 1
      let file = inspection.segments[start]
      if file.number + 1 < next { isGapless = false }
      next = file.number
      hasBatch = try examine(file, inspection)
    }
    if !hasBatch, inspection.marks.firstSegment < next { isGapless = false }
    // What was last is marked where the journal was ended: only spares are missing then.
    let isClean = inspection.marks.end?.isClean ?? false
    if !isClean, !isGapless { lacksItsEnd = true }
    if start == inspection.segments.count {
      if inspection.findings.isEmpty, made == 0 { return }
    }
    try JournalReader(inspection).read(from: start) { event in
      switch event {
      case .batch(let header):
        durable = max(durable, header.sequence)
        durableEnd = (header.segment, header.end)
      case .tornTail(let place): tornTail = tornTail ?? place
      case .damage(let place, let what): damages.append((place, what))
      case .gap, .record, .endOfSegment: break
      }
    }
    // Of the directory, `read` says what concerns the segments it has read.
    for finding in inspection.findings
    where !damages.contains(where: { "\($0.place)" == "\(JournalPlace.file(finding.name))" }) {
      damages.append((.file(finding.name), finding.sentence))
    }
    for file in inspection.segments[..<start] {
      if let failure = file.failure { damages.append((file.failurePlace, failure)) }
    }
  }

  /// - Returns: whether the segment has a batch.
  private mutating func examine(
    _ file: JournalInspection.SegmentFile, _ inspection: JournalInspection
  ) throws -> Bool {
    let end = inspection.marks.end
    let isSpare = (end?.isClean ?? false) && file.number > end?.segment ?? 0
    guard case .success(let reader) = inspection.open(file) else {
      lacksItsEnd = lacksItsEnd || !isSpare
      return false
    }
    if reader.isFresh() {
      if file.failure == nil {
        fresh.insert(file, at: 0)
      } else {
        // It is not as it was made, and may have lost its batches.
        lacksItsEnd = lacksItsEnd || !isSpare
      }
      return false
    }
    // A spare that is followed by batches stays unused.
    fresh.removeAll { $0.number < file.number }
    var hasBatch = false
    reader.headers(from: reader.header.unit) { header in
      hasBatch = true
      nextSequence = max(nextSequence, header.sequence + 1)
      nextConnection = max(nextConnection, header.nextConnection)
      durable = max(durable, header.durable)
    }
    if !hasBatch { lacksItsEnd = true }
    // The last daemon may have died before it synced what is readable, and the batches from now on
    // will call it durable.
    try reader.sync()
    return hasBatch
  }

  /// Leaves out as many numbers as can have been given where nothing is readable.
  mutating func skipNumbers() {
    nextSequence += 1 << 30
    nextConnection += 1 << 30
  }
}
