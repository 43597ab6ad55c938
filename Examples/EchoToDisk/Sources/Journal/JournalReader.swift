// SPDX-License-Identifier: Apache-2.0

import Glibc
import SystemPackage

/// Where in a journal.
struct JournalPlace: CustomStringConvertible {
  let segment: UInt64
  let offset: Int
  var description: String { "segment \(segment) at offset \(offset)" }
}

/// Reads one segment file: batches, from any offset.
final class SegmentReader {
  let header: SegmentHeader
  let size: Int
  private let descriptor: FileDescriptor
  /// A window of the file, read ahead.
  private var window: UnsafeMutableRawBufferPointer
  private var windowStart = 0
  private var windowCount = 0

  /// - Throws: an `Errno`, or a `JournalError` when the header is unreadable.
  init(_ path: FilePath) throws {
    descriptor = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
    window = .allocate(byteCount: 1 << 20, alignment: 4096)
    do {
      size = Int(try descriptor.seek(offset: 0, from: .end))
      let first = try Self.read(descriptor, at: 0, into: window)
      guard let header = SegmentHeader(.init(rebasing: UnsafeRawBufferPointer(window)[..<first]))
      else { throw JournalError("\(path): the segment's header is unreadable") }
      self.header = header
      windowCount = first
    } catch {
      try? descriptor.close()
      window.deallocate()
      throw error
    }
  }

  deinit {
    try? descriptor.close()
    window.deallocate()
  }

  enum Batch {
    /// Valid; the records follow the header in `bytes`.
    case valid(BatchHeader, records: UnsafeRawBufferPointer)
    /// Nothing has been written here, nor after.
    case unwritten
    /// Something is here, and it is no batch.
    case unreadable(String)

    var isValid: Bool { if case .valid = self { true } else { false } }
  }

  /// Looks at what is at `offset`. The bytes are valid until the next call.
  func batch(at offset: Int) throws -> Batch {
    guard offset + JournalFormat.headerLength <= size else { return .unwritten }
    guard let batch = try batchHeader(at: offset) else {
      return try isZero(from: offset) ? .unwritten : .unreadable("no valid batch header")
    }
    guard let bytes = try bytes(at: offset + JournalFormat.headerLength, batch.length) else {
      return .unreadable("the batch is longer than the file")
    }
    var rest = bytes
    do {
      for _ in 0..<batch.records {
        let record = try RecordHeader(rest)
        rest = .init(rebasing: rest[min(record.stride, rest.count)...])
      }
    } catch {
      return .unreadable("\(error)")
    }
    guard rest.isEmpty else { return .unreadable("bytes after the last record of a batch") }
    return .valid(batch, records: bytes)
  }

  /// Only the header, whatever its records are like.
  func batchHeader(at offset: Int) throws -> BatchHeader? {
    guard let bytes = try bytes(at: offset, JournalFormat.headerLength) else { return nil }
    return BatchHeader(bytes, in: header)
  }

  /// The headers of all batches behind a place, whatever their records are like.
  func batchHeaders(after offset: Int) throws -> [(header: BatchHeader, offset: Int)] {
    var found: [(BatchHeader, Int)] = []
    var offset = offset + header.unit
    while offset + JournalFormat.headerLength <= size {
      if let batch = try batchHeader(at: offset) { found.append((batch, offset)) }
      offset += header.unit
    }
    return found
  }

  /// The offset after a batch.
  func end(of batch: BatchHeader, at offset: Int) -> Int {
    let unit = header.unit
    return (offset + JournalFormat.headerLength + batch.length + unit - 1) & ~(unit - 1)
  }

  /// Has what is looked at next read anew: the file may be another than before.
  func forgetWindow() { windowCount = 0 }

  /// Whether the segment has not been written to: nothing but zeros after the header.
  func isFresh() throws -> Bool { try isZero(from: header.unit) }

  private func isZero(from offset: Int) throws -> Bool {
    var offset = offset
    while offset < size {
      let count = min(window.count, size - offset)
      guard let bytes = try bytes(at: offset, count) else { return true }
      // Each byte equals the next, and the first is zero.
      guard bytes[0] == 0, memcmp(bytes.baseAddress!, bytes.baseAddress! + 1, count - 1) == 0
      else { return false }
      offset += count
    }
    return true
  }

  /// - Returns: `nil` beyond the end of the file.
  private func bytes(at offset: Int, _ count: Int) throws -> UnsafeRawBufferPointer? {
    guard offset >= 0, count <= size, offset <= size - count else { return nil }
    if offset < windowStart || offset + count > windowStart + windowCount {
      if count > window.count {
        window.deallocate()
        window = .allocate(byteCount: count + (1 << 20), alignment: 4096)
      }
      windowStart = offset
      windowCount = try Self.read(descriptor, at: offset, into: window)
      guard windowCount >= count else { return nil }
    }
    let start = offset - windowStart
    return .init(rebasing: UnsafeRawBufferPointer(window)[start..<start + count])
  }

  private static func read(
    _ descriptor: FileDescriptor, at offset: Int, into bytes: UnsafeMutableRawBufferPointer
  ) throws -> Int {
    var count = 0
    while count < bytes.count {
      let got = try descriptor.read(
        fromAbsoluteOffset: Int64(offset + count), into: .init(rebasing: bytes[count...]))
      if got == 0 { break }
      count += got
    }
    return count
  }
}

struct JournalError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Reads a whole journal, in order, and tells what is torn from what is damaged.
struct JournalReader {
  enum Event {
    case record(RecordHeader, payload: UnsafeRawBufferPointer, JournalPlace)
    /// A batch that was on its way when a daemon died: its bytes were not echoed.
    case tornTail(JournalPlace)
    /// Something that was durable is not there any more.
    case damage(JournalPlace, String)
    /// All of a segment has been read.
    case endOfSegment(UInt64, batches: Int)
  }

  /// The numbers of the segment files, and their paths.
  let segments: [(number: UInt64, path: FilePath)]

  /// - Throws: an `Errno`, or a `JournalError` when there is no journal.
  init(directory: FilePath) throws {
    segments = try Self.list(directory)
    if segments.isEmpty { throw JournalError("\(directory): no journal here") }
  }

  static func list(_ directory: FilePath) throws -> [(number: UInt64, path: FilePath)] {
    guard let stream = opendir(directory.string) else { throw Errno(rawValue: errno) }
    defer { closedir(stream) }
    var segments: [(UInt64, FilePath)] = []
    while let entry = readdir(stream) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if let number = JournalFormat.segment(ofFileName: name) {
        segments.append((number, directory.appending(name)))
      }
    }
    return segments.sorted { $0.0 < $1.0 }
  }

  /// Reads what there is. While a server is writing, that is the journal as it was at some moment
  /// since the call.
  func read(_ visit: (Event) throws -> Void) throws {
    /// The sequence number that comes next; `nil` before the first batch of all.
    var expected: UInt64?
    /// Whether nothing had been written behind the end of the segment before.
    var isAtEnd = false
    for (index, (number, path)) in segments.enumerated() {
      let segment: SegmentReader
      do {
        segment = try SegmentReader(path)
      } catch let error as JournalError {
        try visit(.damage(JournalPlace(segment: number, offset: 0), error.description))
        continue
      }
      if segment.header.segment != number {
        try visit(
          .damage(
            JournalPlace(segment: number, offset: 0),
            "the file says that it is segment \(segment.header.segment)"))
        continue
      }
      var batches = 0
      var offset = segment.header.unit
      segment: while !isAtEnd {
        let place = JournalPlace(segment: number, offset: offset)
        var batch = try segment.batch(at: offset)
        var behind = Behind()
        if !batch.isValid {
          // A server may have written it since: what was called durable before the second look is
          // readable then, or damaged, and a segment with another begun behind it is complete.
          behind = try look(behind: offset, in: segment, index)
          segment.forgetWindow()
          batch = try segment.batch(at: offset)
        }
        switch batch {
        case .valid(let batch, let records) where batch.sequence == expected ?? batch.sequence:
          try visitRecords(of: batch, records, JournalPlace(segment: number, offset: offset), visit)
          expected = batch.sequence + 1
          batches += 1
          offset = segment.end(of: batch, at: offset)
        case .valid(let batch, _):
          if batch.sequence < expected ?? 0 {
            try visit(.damage(place, "batch \(batch.sequence) comes again"))
          } else if let expected, batch.durable >= expected {
            try visit(.damage(place, Self.missing(expected, batch.sequence)))
          }
          // Else the batches between were given up when the disk failed: nobody calls them durable.
          expected = batch.sequence
        case .unwritten:
          if let expected, let next = behind.next, next.durable >= expected {
            try visit(.damage(place, Self.missing(expected, next.sequence)))
          }
          isAtEnd = behind.isLast
          break segment
        case .unreadable(let reason):
          // Whether it was durable, say the batches after it.
          guard behind.claimed >= expected ?? 1 else {
            try visit(.tornTail(place))
            isAtEnd = behind.isLast
            break segment
          }
          try visit(.damage(place, reason))
          guard let resume = behind.rest.first(where: { $0.header.sequence > expected ?? 0 }) else {
            expected = behind.next?.sequence
            isAtEnd = behind.isLast
            break segment
          }
          expected = resume.header.sequence
          offset = resume.offset
        }
      }
      try visit(.endOfSegment(number, batches: batches))
    }
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

  /// What there is behind a place.
  private struct Behind {
    /// In the same segment.
    var rest: [(header: BatchHeader, offset: Int)] = []
    /// The first batch of the segments behind.
    var next: BatchHeader?
    /// Whether nothing has been written to those.
    var isLast = true
    /// The last batch that one of these calls durable.
    var claimed: UInt64 { (rest.map(\.header.durable) + [next?.durable ?? 0]).max()! }
  }

  private func look(behind offset: Int, in segment: SegmentReader, _ index: Int) throws -> Behind {
    var behind = Behind(rest: try segment.batchHeaders(after: offset))
    for (_, path) in segments[(index + 1)...] where behind.next == nil {
      guard let segment = try? SegmentReader(path), try !segment.isFresh() else { continue }
      behind.isLast = false
      behind.next = try segment.batchHeader(at: segment.header.unit)
    }
    return behind
  }
}
