// SPDX-License-Identifier: Apache-2.0
//
// The header of a record: see JournalFormat.

import CXXHash

struct RecordHeader: Equatable {
  enum Kind: UInt8 {
    /// The first record of a connection. Payload: i64 time in ns since 1970, then the peer's
    /// address in UTF-8.
    case opened = 1
    /// Bytes that the connection sent, which are the payload.
    case data = 2
    /// The last record of a connection. No payload; the position is the number of its bytes.
    case closed = 3
  }

  var kind: Kind
  var connection: UInt64
  var position: UInt64
  var length: Int

  /// The distance to the next record, in bytes.
  var stride: Int { JournalFormat.recordHeaderLength + JournalFormat.padded(length) }

  /// Writes the header to the beginning of `bytes`. The payload has to be in its place already,
  /// because the checksum covers it.
  ///
  /// - Parameter offset: where the record begins in its batch.
  func write(
    to bytes: UnsafeMutableRawBufferPointer, at offset: Int, _ identity: JournalIdentity
  ) {
    bytes.put(connection, at: 0)
    bytes.put(position, at: 8)
    bytes.put(UInt32(length), at: 16)
    bytes.put(UInt32(kind.rawValue), at: 20)
    let whole = UnsafeRawBufferPointer(bytes)
    let own = Self.checksum(of: whole, at: offset, identity)
    bytes.put(own, at: 24)
    bytes.put(Self.payloadChecksum(of: whole, length, own), at: 32)
  }

  enum Failure: Error, CustomStringConvertible {
    case cutOff
    case header
    case payload(RecordHeader)

    var description: String {
      switch self {
      case .cutOff: "a record is longer than its batch"
      case .header: "wrong checksum of a record's header"
      case .payload(let record):
        """
        wrong checksum of a record, of connection \(record.connection) from position \
        \(record.position) on, \(record.length) bytes
        """
      }
    }
  }

  /// Reads the record at the beginning of `bytes`, and checks it, payload included.
  ///
  /// - Parameter offset: where the record begins in its batch.
  init(
    _ bytes: UnsafeRawBufferPointer, at offset: Int, _ identity: JournalIdentity
  ) throws(Failure) {
    guard bytes.count >= JournalFormat.recordHeaderLength else { throw .cutOff }
    let own = bytes.get(UInt64.self, at: 24)
    guard own == Self.checksum(of: bytes, at: offset, identity),
      let kind = Kind(rawValue: bytes[20])
    else { throw .header }
    self.kind = kind
    connection = bytes.get(at: 0)
    position = bytes.get(at: 8)
    length = Int(bytes.get(UInt32.self, at: 16))
    guard connection <= JournalFormat.highest, position <= JournalFormat.highest,
      kind != .opened || length >= 8
    else { throw .header }
    guard length <= bytes.count - JournalFormat.recordHeaderLength else { throw .cutOff }
    guard bytes.get(UInt64.self, at: 32) == Self.payloadChecksum(of: bytes, length, own) else {
      throw .payload(self)
    }
  }

  init(kind: Kind, connection: UInt64, position: UInt64, length: Int) {
    (self.kind, self.connection, self.position) = (kind, connection, position)
    self.length = length
  }

  private static func checksum(
    of record: UnsafeRawBufferPointer, at offset: Int, _ identity: JournalIdentity
  ) -> UInt64 {
    // An odd factor, so that no two offsets give the same.
    identity.checksum(of: record, count: 24) ^ (UInt64(offset) &* 0x9e37_79b9_7f4a_7c15)
  }

  private static func payloadChecksum(
    of record: UnsafeRawBufferPointer, _ length: Int, _ seed: UInt64
  ) -> UInt64 {
    XXH3_64bits_withSeed(
      // Not nil: a record has its header.
      record.baseAddress! + JournalFormat.recordHeaderLength, length, seed)
  }
}

/// The records of one batch that are readable.
struct BatchRecords {
  /// The bytes that follow the batch's header. Valid until the next read of the segment.
  let bytes: UnsafeRawBufferPointer
  private(set) var readable: [(header: RecordHeader, start: Int)] = []
  /// What is wrong with the first that is not; `nil` if all are readable.
  private(set) var failure: String?

  /// Reads the records one by one. Behind one that is unreadable it continues at the next that has
  /// a valid header, which no client can make.
  init(_ bytes: UnsafeRawBufferPointer, _ batch: BatchHeader, _ identity: JournalIdentity) {
    self.bytes = bytes
    readable.reserveCapacity(batch.records)
    var start = 0
    while start < bytes.count {
      do {
        let record = try RecordHeader(
          .init(rebasing: bytes[start...]), at: JournalFormat.headerLength + start, identity)
        readable.append((record, start))
        start += record.stride
      } catch .payload(let record) {
        failure = failure ?? "\(RecordHeader.Failure.payload(record))"
        start += record.stride
      } catch {
        failure = failure ?? "\(error), \(JournalFormat.headerLength + start) bytes into the batch"
        start += 8
      }
    }
    if failure == nil, readable.count != batch.records || start != bytes.count {
      failure = "\(readable.count) records, where its header says \(batch.records)"
    }
  }

  func payload(of record: RecordHeader, at start: Int) -> UnsafeRawBufferPointer {
    let payload = start + JournalFormat.recordHeaderLength
    return .init(rebasing: bytes[payload..<payload + record.length])
  }
}
