// SPDX-License-Identifier: Apache-2.0
//
// Reading a whole journal, also while a daemon is writing it. For the commands `list`, `replay` and
// `verify`; blocks the calling thread.
//
// Whether an unreadable batch is a torn tail or damage is decided here: see JournalFormat.

import Glibc
import SystemPackage

/// A reader of a journal's batches in order, which tells what is torn from what is damaged.
struct JournalReader {
  enum Event {
    case record(RecordHeader, payload: UnsafeRawBufferPointer, JournalPlace)
    /// A batch that was being written when a daemon died: its bytes were not echoed.
    case tornTail(JournalPlace)
    /// Something that was durable is missing or unreadable.
    case damage(JournalPlace, String)
    /// The end of a segment, and how many valid batches it had.
    case endOfSegment(UInt64, batches: Int)
  }

  /// The numbers of the segment files, and their paths, in order.
  let segments: [(number: UInt64, path: FilePath)]

  /// - Throws: an `Errno`, or a `JournalError` if there is no journal.
  init(directory: FilePath) throws {
    segments = try Self.list(directory)
    if segments.isEmpty { throw JournalError("\(directory): no journal here") }
  }

  /// The segment files in a directory, by number.
  static func list(_ directory: FilePath) throws -> [(number: UInt64, path: FilePath)] {
    var segments: [(UInt64, FilePath)] = []
    for name in try fileNames(in: directory) {
      if let number = JournalFormat.segment(ofFileName: name) {
        segments.append((number, directory.appending(name)))
      }
    }
    return segments.sorted { $0.0 < $1.0 }
  }

  /// The names of all files in a directory, in no order.
  static func fileNames(in directory: FilePath) throws -> [String] {
    guard let stream = opendir(directory.string) else { throw Errno(rawValue: errno) }
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

  /// Calls `visit` for everything in the journal, in order. While a daemon is writing, that is the
  /// journal as it was at some moment since the call.
  func read(_ visit: (Event) throws -> Void) throws {
    var progress = Progress()
    for index in segments.indices { try readSegment(index, &progress, visit) }
  }

  /// The progress of the reading.
  private struct Progress {
    /// The sequence number of the next batch; `nil` before the first batch of all.
    var expected: UInt64?
    /// Whether nothing had been written after the end of the last segment that was read.
    var isAtEnd = false
    /// The valid batches of this segment so far.
    var batches = 0
  }

  private func readSegment(
    _ index: Int, _ progress: inout Progress, _ visit: (Event) throws -> Void
  ) throws {
    let (number, path) = segments[index]
    let start = JournalPlace(segment: number, offset: 0)
    let segment: SegmentReader
    do {
      segment = try SegmentReader(path)
    } catch let error as JournalError {
      return try visit(.damage(start, error.description))
    }
    guard segment.header.segment == number else {
      return try visit(
        .damage(start, "the file says that it is segment \(segment.header.segment)"))
    }
    progress.batches = 0
    var next: Int? = progress.isAtEnd ? nil : segment.header.unit
    while let offset = next {
      next = try readBatch(at: offset, in: segment, index, &progress, visit)
    }
    try visit(.endOfSegment(number, batches: progress.batches))
  }

  /// Visits the records of the batch at `offset`, or says what is there instead.
  ///
  /// - Returns: the offset to continue at; `nil` at the end of the segment.
  private func readBatch(
    at offset: Int, in segment: SegmentReader, _ index: Int, _ progress: inout Progress,
    _ visit: (Event) throws -> Void
  ) throws -> Int? {
    let place = JournalPlace(segment: segments[index].number, offset: offset)
    var batch = try segment.batch(at: offset)
    var following = Following()
    if !batch.isValid {
      // A daemon may have written it since. Whatever was called durable before the second look is
      // readable then, or damaged, and a segment after which another has been begun is complete.
      following = try look(after: offset, in: segment, index)
      segment.discardWindow()
      batch = try segment.batch(at: offset)
    }
    switch batch {
    case .valid(let batch, let records) where batch.sequence == progress.expected ?? batch.sequence:
      try visitRecords(of: batch, records, place, visit)
      progress.expected = batch.sequence + 1
      progress.batches += 1
      return segment.end(of: batch, at: offset)
    case .valid(let batch, _):
      if batch.sequence < progress.expected ?? 0 {
        try visit(.damage(place, "batch \(batch.sequence) appears twice"))
      } else if let expected = progress.expected, batch.durable >= expected {
        try visit(.damage(place, Self.missing(expected, batch.sequence)))
      }
      // Else the batches between were abandoned when the disk failed: nobody calls them durable.
      progress.expected = batch.sequence
      return offset
    case .unwritten:
      if let expected = progress.expected, let next = following.next, next.durable >= expected {
        try visit(.damage(place, Self.missing(expected, next.sequence)))
      }
      progress.isAtEnd = following.isLast
      return nil
    case .unreadable(let reason):
      return try skipUnreadable(reason, place, following, &progress, visit)
    }
  }

  /// Says of an unreadable batch whether it was durable, which the batches after it tell.
  ///
  /// - Returns: the offset of the next readable batch; `nil` if the segment has none.
  private func skipUnreadable(
    _ reason: String, _ place: JournalPlace, _ following: Following, _ progress: inout Progress,
    _ visit: (Event) throws -> Void
  ) throws -> Int? {
    guard following.durable >= progress.expected ?? 1 else {
      try visit(.tornTail(place))
      progress.isAtEnd = following.isLast
      return nil
    }
    try visit(.damage(place, reason))
    let expected = progress.expected ?? 0
    guard let next = following.inSegment.first(where: { $0.header.sequence > expected }) else {
      progress.expected = following.next?.sequence
      progress.isAtEnd = following.isLast
      return nil
    }
    progress.expected = next.header.sequence
    return next.offset
  }

  private static func missing(_ first: UInt64, _ next: UInt64) -> String {
    next == first + 1 ? "batch \(first) is missing" : "batches \(first) to \(next - 1) are missing"
  }

  private func visitRecords(
    of batch: BatchHeader, _ records: UnsafeRawBufferPointer, _ place: JournalPlace,
    _ visit: (Event) throws -> Void
  ) throws {
    var start = 0
    for _ in 0..<batch.records {
      let record = try RecordHeader(.init(rebasing: records[start...]))
      let payload = start + JournalFormat.recordHeaderLength
      try visit(
        .record(
          record, payload: .init(rebasing: records[payload..<payload + record.length]),
          JournalPlace(
            segment: place.segment, offset: place.offset + JournalFormat.headerLength + start)))
      start += record.stride
    }
  }

  /// The batches after a place.
  private struct Following {
    /// Those in the same segment.
    var inSegment: [(header: BatchHeader, offset: Int)] = []
    /// The first batch of the later segments.
    var next: BatchHeader?
    /// Whether nothing has been written to the later segments.
    var isLast = true
    /// The last batch that one of them calls durable.
    var durable: UInt64 { (inSegment.map(\.header.durable) + [next?.durable ?? 0]).max() ?? 0 }
  }

  private func look(
    after offset: Int, in segment: SegmentReader, _ index: Int
  ) throws -> Following {
    var following = Following(inSegment: try segment.batchHeaders(after: offset))
    for (_, path) in segments[(index + 1)...] where following.next == nil {
      guard let segment = try? SegmentReader(path), try !segment.isFresh() else { continue }
      following.isLast = false
      following.next = try segment.batchHeader(at: segment.header.unit)
    }
    return following
  }
}
