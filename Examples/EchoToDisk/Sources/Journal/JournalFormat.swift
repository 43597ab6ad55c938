// SPDX-License-Identifier: Apache-2.0
//
// The format on disk. A journal is a directory of segment files, `segment-0000000001.journal` and
// on; a segment is a header and then batches; a batch is a header and then records. All numbers are
// little-endian.
//
//   segment header (64 bytes, alone in the segment's first unit)
//      0  "ECHOJNL1"
//      8  u32 unit: batches begin at multiples of it   12  u32 zero
//     16  u64 journal: the directory's random number   24  u64 segment: this file's number
//     32  u64 size of the file                         40  i64 created, ns since 1970
//     48  u64 zero                                     56  u64 XXH3 of the 56 bytes before
//
//   batch header (64 bytes, at a multiple of the unit)
//      0  "EBAT"                                        4  u32 zero
//      8  u64 journal                                  16  u64 segment
//     24  u64 sequence: 1, 2, 3, … over all segments
//     32  u64 durable: every batch up to this one was durable when this one was written
//     40  u64 the lowest connection number never used so far
//     48  u32 length of the records that follow        52  u32 how many
//     56  u64 XXH3 of the 56 bytes before
//
//   record (32 bytes, then `length` bytes of payload, then zeros to a multiple of 8)
//      0  u64 connection                                8  u64 position in the connection's stream
//     16  u32 length                                   20  u8 kind, then 3 zeros
//     24  u64 XXH3 of the payload, seeded with XXH3 of the 24 bytes before
//
// The unwritten part of a segment is zeros. Batches lie one after the other, each beginning at the
// next multiple of the unit, so that no durable block is ever written again.
//
// A torn tail is told from damage by the later batches: a durable batch is followed, sooner or
// later, by one that says so (`durable`). An unreadable batch that a later one calls durable is
// damage; one that none calls durable was being written when the daemon died, and no byte of it was
// echoed. A segment's first batch is written only when all of the previous segment is durable.

import CXXHash
import Glibc

enum JournalFormat {
  static let headerLength = 64
  static let recordHeaderLength = 32
  static let segmentMagic: UInt64 = 0x314c_4e4a_4f48_4345  // "ECHOJNL1"
  static let batchMagic: UInt32 = 0x5441_4245  // "EBAT"

  static func fileName(of segment: UInt64) -> String {
    let digits = String(segment)
    return "segment-" + String(repeating: "0", count: max(0, 10 - digits.count)) + digits
      + ".journal"
  }

  /// The number in a segment's file name; `nil` if it is another file.
  static func segment(ofFileName name: String) -> UInt64? {
    guard name.hasPrefix("segment-"), name.hasSuffix(".journal") else { return nil }
    return UInt64(name.dropFirst("segment-".count).dropLast(".journal".count))
  }

  static func padded(_ length: Int) -> Int { (length + 7) & ~7 }

  /// The time that headers and records have: nanoseconds since 1970.
  static func now() -> Int64 {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec)
  }
}

struct SegmentHeader: Equatable {
  var unit: Int
  var journal: UInt64
  var segment: UInt64
  var size: Int
  var created: Int64

  func write(to bytes: UnsafeMutableRawBufferPointer) {
    bytes.put(JournalFormat.segmentMagic, at: 0)
    bytes.put(UInt32(unit), at: 8)
    bytes.put(UInt32(0), at: 12)
    bytes.put(journal, at: 16)
    bytes.put(segment, at: 24)
    bytes.put(UInt64(size), at: 32)
    bytes.put(created, at: 40)
    bytes.put(UInt64(0), at: 48)
    bytes.put(checksum(of: bytes, count: 56), at: 56)
  }

  /// Reads a header; `nil` if it is not valid.
  init?(_ bytes: UnsafeRawBufferPointer) {
    guard bytes.count >= JournalFormat.headerLength,
      bytes.get(UInt64.self, at: 0) == JournalFormat.segmentMagic,
      bytes.get(UInt64.self, at: 56) == checksum(of: bytes, count: 56)
    else { return nil }
    unit = Int(bytes.get(UInt32.self, at: 8))
    journal = bytes.get(at: 16)
    segment = bytes.get(at: 24)
    size = Int(clamping: bytes.get(UInt64.self, at: 32))
    created = bytes.get(at: 40)
    guard unit >= JournalFormat.headerLength, unit & (unit - 1) == 0 else { return nil }
  }

  init(unit: Int, journal: UInt64, segment: UInt64, size: Int, created: Int64) {
    (self.unit, self.journal, self.segment) = (unit, journal, segment)
    (self.size, self.created) = (size, created)
  }
}

struct BatchHeader: Equatable {
  var journal: UInt64
  var segment: UInt64
  var sequence: UInt64
  var durable: UInt64
  var nextConnection: UInt64
  var length: Int
  var records: Int

  func write(to bytes: UnsafeMutableRawBufferPointer) {
    bytes.put(JournalFormat.batchMagic, at: 0)
    bytes.put(UInt32(0), at: 4)
    bytes.put(journal, at: 8)
    bytes.put(segment, at: 16)
    bytes.put(sequence, at: 24)
    bytes.put(durable, at: 32)
    bytes.put(nextConnection, at: 40)
    bytes.put(UInt32(length), at: 48)
    bytes.put(UInt32(records), at: 52)
    bytes.put(checksum(of: bytes, count: 56), at: 56)
  }

  /// Reads a header; `nil` if it is not valid, or of another segment.
  init?(_ bytes: UnsafeRawBufferPointer, in segment: SegmentHeader) {
    guard bytes.count >= JournalFormat.headerLength,
      bytes.get(UInt32.self, at: 0) == JournalFormat.batchMagic,
      bytes.get(UInt64.self, at: 8) == segment.journal,
      bytes.get(UInt64.self, at: 16) == segment.segment,
      bytes.get(UInt64.self, at: 56) == checksum(of: bytes, count: 56)
    else { return nil }
    journal = segment.journal
    self.segment = segment.segment
    sequence = bytes.get(at: 24)
    durable = bytes.get(at: 32)
    nextConnection = bytes.get(at: 40)
    length = Int(bytes.get(UInt32.self, at: 48))
    records = Int(bytes.get(UInt32.self, at: 52))
  }

  init(
    journal: UInt64, segment: UInt64, sequence: UInt64, durable: UInt64, nextConnection: UInt64,
    length: Int, records: Int
  ) {
    (self.journal, self.segment) = (journal, segment)
    (self.sequence, self.durable, self.nextConnection) = (sequence, durable, nextConnection)
    (self.length, self.records) = (length, records)
  }
}

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
  func write(to bytes: UnsafeMutableRawBufferPointer) {
    bytes.put(connection, at: 0)
    bytes.put(position, at: 8)
    bytes.put(UInt32(length), at: 16)
    bytes.put(UInt32(kind.rawValue), at: 20)
    bytes.put(Self.checksum(of: UnsafeRawBufferPointer(bytes), length), at: 24)
  }

  enum Failure: Error, CustomStringConvertible {
    case cutOff
    case checksum(connection: UInt64, position: UInt64)
    case unknownKind(UInt8)

    var description: String {
      switch self {
      case .cutOff: "a record is longer than its batch"
      case .checksum(let connection, let position):
        "wrong checksum of a record, of connection \(connection) at position \(position) it says"
      case .unknownKind(let kind): "a record of unknown kind \(kind)"
      }
    }
  }

  /// Reads the record at the beginning of `bytes`, and checks it, payload included.
  init(_ bytes: UnsafeRawBufferPointer) throws(Failure) {
    guard bytes.count >= JournalFormat.recordHeaderLength else { throw .cutOff }
    connection = bytes.get(at: 0)
    position = bytes.get(at: 8)
    length = Int(bytes.get(UInt32.self, at: 16))
    guard length <= bytes.count - JournalFormat.recordHeaderLength else { throw .cutOff }
    guard bytes.get(UInt64.self, at: 24) == Self.checksum(of: bytes, length) else {
      throw .checksum(connection: connection, position: position)
    }
    guard let kind = Kind(rawValue: bytes[20]) else { throw .unknownKind(bytes[20]) }
    self.kind = kind
  }

  init(kind: Kind, connection: UInt64, position: UInt64, length: Int) {
    (self.kind, self.connection, self.position) = (kind, connection, position)
    self.length = length
  }

  private static func checksum(of record: UnsafeRawBufferPointer, _ length: Int) -> UInt64 {
    let seed = XXH3_64bits(record.baseAddress, 24)
    return XXH3_64bits_withSeed(
      record.baseAddress! + JournalFormat.recordHeaderLength, length, seed)
  }
}

private func checksum(of bytes: UnsafeRawBufferPointer, count: Int) -> UInt64 {
  XXH3_64bits(bytes.baseAddress, count)
}

private func checksum(of bytes: UnsafeMutableRawBufferPointer, count: Int) -> UInt64 {
  checksum(of: UnsafeRawBufferPointer(bytes), count: count)
}

extension UnsafeMutableRawBufferPointer {
  func put<Number: FixedWidthInteger>(_ number: Number, at offset: Int) {
    storeBytes(of: number.littleEndian, toByteOffset: offset, as: Number.self)
  }
}

extension UnsafeRawBufferPointer {
  func get<Number: FixedWidthInteger>(_ type: Number.Type = Number.self, at offset: Int) -> Number {
    Number(littleEndian: loadUnaligned(fromByteOffset: offset, as: Number.self))
  }
}
