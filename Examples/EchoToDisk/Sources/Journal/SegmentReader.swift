// SPDX-License-Identifier: Apache-2.0
//
// Reading one segment file, batch by batch, from any offset. For the commands that read a journal
// and for the daemon's start; blocks the calling thread.

import Glibc
import SystemPackage

/// A reader of the batches of one segment file, from any offset. Confined to one thread.
final class SegmentReader {
  /// What the file's header says, or what is assumed in its place.
  private(set) var header: SegmentHeader
  /// The size of the file, up to what the header says.
  let size: Int
  private let window: FileWindow

  /// - Parameter header: what the file's header says or, where it is unreadable, should say. The
  ///   unit is then taken from the first batch that is found.
  init(_ window: FileWindow, _ header: SegmentHeader, isHeaderReadable: Bool = true) {
    (self.window, self.header) = (window, header)
    size = min(window.size, header.size)
    if !isHeaderReadable {
      self.header.unit = JournalFormat.smallestUnit
      if let first = nextHeader(after: 0) { self.header.unit = first.unit }
    }
  }

  enum Batch {
    /// A valid batch.
    case valid(BatchHeader, BatchRecords)
    /// A batch with a valid header whose records are not all readable, and why.
    case damaged(BatchHeader, BatchRecords, String)
    /// Zeros from here to the end of the segment: nothing has been written.
    case unwritten
    /// Bytes that are no batch, and why.
    case unreadable(String)
  }

  /// Reads and checks the batch at `offset`. Its bytes are valid until the next call.
  func batch(at offset: Int) -> Batch {
    guard offset <= size - JournalFormat.headerLength else { return .unwritten }
    guard let batch = batchHeader(at: offset) else {
      if let reason = failure(at: offset, JournalFormat.headerLength) { return .unreadable(reason) }
      return isZero(from: offset) ? .unwritten : .unreadable("no valid batch header")
    }
    let start = offset + JournalFormat.headerLength
    guard let bytes = window.bytes(at: start, min(batch.length, size - start)) else {
      return .unreadable("the file is being cut")
    }
    let records = BatchRecords(bytes, batch, header.identity)
    if bytes.count < batch.length {
      return .damaged(batch, records, "the file ends within the batch")
    }
    if let reason = failure(at: offset + JournalFormat.headerLength, batch.length) {
      return .damaged(batch, records, reason)
    }
    if let reason = records.failure { return .damaged(batch, records, reason) }
    return .valid(batch, records)
  }

  private func failure(at offset: Int, _ length: Int) -> String? {
    window.failure(in: offset..<offset + length).map { failure in
      "cannot be read at offset \(failure.offset): \(failure.error)"
    }
  }

  /// The header of the batch at `offset`, whatever its records are like. `nil` if it is not valid.
  func batchHeader(at offset: Int) -> BatchHeader? {
    guard let bytes = window.bytes(at: offset, JournalFormat.headerLength) else { return nil }
    return BatchHeader(bytes, at: offset, in: header)
  }

  /// The first valid batch header after `offset`, at which there is none.
  func nextHeader(after offset: Int) -> BatchHeader? {
    // Offsets are at most the file's size, which is far below Int.max.
    var offset = (offset / header.unit + 1) * header.unit
    while offset <= size - JournalFormat.headerLength {
      if let batch = batchHeader(at: offset) { return batch }
      offset += header.unit
    }
    return nil
  }

  /// Calls `visit` for each valid batch header from `offset` on, whatever the records are like.
  /// Nothing is looked for inside a batch whose own header is valid.
  func headers(from offset: Int, _ visit: (BatchHeader) -> Void) {
    var next = batchHeader(at: offset) ?? nextHeader(after: offset)
    while let batch = next {
      visit(batch)
      next = batchHeader(at: batch.end) ?? nextHeader(after: batch.end)
    }
  }

  /// The first valid batch header. `nil` if no batch is known to have been written.
  func firstHeader() -> BatchHeader? {
    batchHeader(at: header.unit) ?? (isFresh() ? nil : nextHeader(after: header.unit))
  }

  /// Discards what was read ahead, so that the next call reads the file as it is now.
  func discardWindow() { window.discard() }

  /// Makes durable what is readable: `fdatasync(2)`.
  func sync() throws {
    guard fdatasync(window.descriptor.rawValue) == 0 else {
      throw JournalError("segment \(header.segment): fdatasync: \(Errno(rawValue: errno))")
    }
  }

  /// Whether no batch has been written to the segment: it has only zeros after its header.
  func isFresh() -> Bool { isZero(from: header.unit) }

  private func isZero(from offset: Int) -> Bool {
    var offset = offset
    while offset < size {
      let count = min(1 << 20, size - offset)
      guard let bytes = window.bytes(at: offset, count) else { return true }
      // Each byte equals the next, and the first is zero. Not nil: it has bytes.
      guard bytes[0] == 0, memcmp(bytes.baseAddress!, bytes.baseAddress! + 1, count - 1) == 0,
        window.failure(in: offset..<offset + count) == nil
      else { return false }
      offset += count
    }
    return true
  }
}
