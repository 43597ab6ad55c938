// SPDX-License-Identifier: Apache-2.0
//
// Reading one segment file, batch by batch, from any offset. For the commands that read a journal
// and for the daemon's start; blocks the calling thread.

import Glibc
import SystemPackage

/// A reader of the batches of one segment file, from any offset. Confined to one thread.
final class SegmentReader {
  let header: SegmentHeader
  let size: Int
  private let descriptor: FileDescriptor
  /// A part of the file in memory, read ahead.
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
    /// A valid batch; `records` are the bytes that follow its header.
    case valid(BatchHeader, records: UnsafeRawBufferPointer)
    /// Zeros from here to the end of the segment: nothing has been written.
    case unwritten
    /// Bytes that are no valid batch, and why.
    case unreadable(String)

    var isValid: Bool { if case .valid = self { true } else { false } }
  }

  /// Reads and checks the batch at `offset`. Its bytes are valid until the next call.
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

  /// The header of the batch at `offset`, whatever its records are like; `nil` if it is not valid.
  func batchHeader(at offset: Int) throws -> BatchHeader? {
    guard let bytes = try bytes(at: offset, JournalFormat.headerLength) else { return nil }
    return BatchHeader(bytes, in: header)
  }

  /// The valid batch headers after `offset`, whatever the records of the batches are like.
  func batchHeaders(after offset: Int) throws -> [(header: BatchHeader, offset: Int)] {
    var found: [(BatchHeader, Int)] = []
    var offset = offset + header.unit
    while offset + JournalFormat.headerLength <= size {
      if let batch = try batchHeader(at: offset) { found.append((batch, offset)) }
      offset += header.unit
    }
    return found
  }

  /// The offset at which the batch after this one begins.
  func end(of batch: BatchHeader, at offset: Int) -> Int {
    let unit = header.unit
    return (offset + JournalFormat.headerLength + batch.length + unit - 1) & ~(unit - 1)
  }

  /// Discards what was read ahead, so that the next call reads the file as it is now.
  func discardWindow() { windowCount = 0 }

  /// Whether no batch has been written to the segment: it has only zeros after its header.
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

  /// - Returns: `count` bytes of the file; `nil` if it ends before.
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
