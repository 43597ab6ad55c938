// SPDX-License-Identifier: Apache-2.0
//
// Reading a journal on while a daemon writes it, as `tail -f` does.
//
// What there may be is looked for by a timer: the kernel tells nobody (inotify) of what is written
// with native AIO.

import Glibc
import SystemPackage

extension JournalReader {
  /// The time between two looks, in microseconds.
  private static let interval: UInt32 = 50_000

  /// Calls `visit` for everything in the journal, in order, and for what is written meanwhile.
  /// What may yet be written is not called torn, and no end is missed before `isDone`.
  ///
  /// Blocks the calling thread.
  ///
  /// - Parameter isDone: called when all is read that was there when the journal was looked at,
  ///   with what that look found. When it returns true, the end is judged, and this returns.
  func follow(
    until isDone: (JournalInspection) throws -> Bool, _ visit: (Event) throws -> Void
  ) throws {
    try withoutActuallyEscaping(visit) { visit in
      let reading = JournalReading(inspection, visit)
      try reading.reportFindings()
      while true {
        try reading.readOn()
        if try isDone(reading.inspection) { return try reading.finishFollowing() }
        while !reading.mayHaveMore { usleep(Self.interval) }
        reading.inspection = try JournalInspection(inspection.directory)
      }
    }
  }
}

extension JournalReading {
  /// Reads what there is behind what has been read.
  fileprivate func readOn() throws {
    if var position = waiting {
      waiting = nil
      // It is open, and so not trimmed. If somebody deleted it, its successor tells.
      if let index = segments.firstIndex(where: { $0.number == position.reader.header.segment }) {
        (position.index, position.tail) = (index, nil)
        position.reader.discardWindow()
        guard try readOn(&position) else { return }
      }
    }
    while let index = segments.firstIndex(where: { $0.number >= nextSegment }) {
      noteMissing(before: segments[index].number)
      if var position = try begin(index), try !readOn(&position) { return }
    }
  }

  /// - Returns: whether later segments have been begun.
  private func readOn(_ position: inout Position) throws -> Bool {
    while try readBatch(&position) {}
    guard position.isLast else {
      try end(position)
      return true
    }
    waiting = position
    return false
  }

  /// Whether there may be more than has been read. Looks at little of the disk.
  fileprivate var mayHaveMore: Bool {
    guard let position = waiting else { return true }
    position.reader.discardWindow()
    if position.reader.batchHeader(at: position.offset) != nil,
      case .valid = position.reader.batch(at: position.offset)
    {
      return true
    }
    if position.index + 1 < segments.count,
      case .success(let next) = inspection.open(segments[position.index + 1]),
      next.batchHeader(at: next.header.unit) != nil
    {
      return true
    }
    return inspection.hasNewMarks()
  }

  /// Says what is wrong with the end.
  fileprivate func finishFollowing() throws {
    if let position = waiting { try end(position) }
    try finish(from: segments.firstIndex { $0.number >= nextSegment } ?? segments.count)
  }
}
