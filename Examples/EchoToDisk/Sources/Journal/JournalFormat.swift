// SPDX-License-Identifier: Apache-2.0
//
// The format on disk, version 2. A journal is a directory of segment files,
// `segment-0000000001.journal` and on, and a file `marks`. A segment is a header and then batches;
// a batch is a header and then records. All numbers are little-endian.
//
//   segment header (256 bytes, alone in the segment's first unit)
//      0  "ECHOJNL2"
//      8  u32 unit: batches begin at multiples of it   12  u32 zero
//     16  u64 journal: its random number               24  u64 segment: this file's number
//     32  u64 size of the file                         40  i64 created, ns since 1970
//     48  u64 zero
//     56  192 bytes: the journal's secret             248  u64 XXH3 of the 248 bytes before
//
//   batch header (96 bytes, at a multiple of the unit)
//      0  "EBT2"                                        4  u32 how many records
//      8  u64 journal                                  16  u64 segment
//     24  u64 offset: where in the file this header is
//     32  u64 sequence: 1, 2, 3, … over all segments
//     40  u64 first: the sequence of the segment's first batch
//     48  u64 before: the last durable batch of the segments before this one
//     56  u64 durable: every batch up to this one was durable when this one was written
//     64  u64 the lowest connection number never used so far
//     72  u32 length of the records that follow        76  u32 unit
//     80  u64 zero                                     88  u64 keyed XXH3 of the 88 bytes before
//
//   record (40 bytes, then `length` bytes of payload, then zeros to a multiple of 8)
//      0  u64 connection                                8  u64 position in the connection's stream
//     16  u32 length                                   20  u8 kind, then 3 zeros
//     24  u64 keyed XXH3 of the 24 bytes before, mixed with the record's offset in its batch
//     32  u64 XXH3 of the payload, seeded with the checksum before
//
//   marks: four blocks of 4096 bytes, each with one mark (320 bytes, then zeros). The first two are
//   the journal's end, the other two its beginning; of two, the one with the higher generation
//   counts, and the other is written next, in place: no mark needs room on the disk, and a crash
//   leaves at least one of them.
//      0  "ECHOMRK2"                                    8  u32 kind: 1 end, 2 beginning
//     12  u32 flags: 1 clean, 2 lost                   16  u64 generation
//     24  u64 journal
//     32  u64 segment    of an end: the last one that batches were written to
//                        of a beginning: the first one that was not trimmed
//     40  u64 offset     of an end: where the next batch of that segment would have been
//     48  u64 sequence   of an end: the last durable batch; of a beginning: the last trimmed one
//     56  u64 the lowest connection number never used so far
//     64  u64 made: the highest segment number made    72  6 u64 zero
//    120  192 bytes: the journal's secret             312  u64 XXH3 of the 312 bytes before
//
// Keyed checksums take the journal's secret, which no client can read (files 0600 in a directory
// 0700): bytes of a client are valid as nothing else. Besides, nothing is looked for inside a batch
// whose own header is valid, and a header is valid only at its own place and with numbers that the
// place explains.
//
// The unwritten part of a segment is zeros. Batches lie one after the other, each beginning at the
// next multiple of the unit, so that no durable block is ever written again. Sequence numbers
// within a segment have no gaps; between two segments they have one where batches failed or were
// torn.
//
// A torn tail is told from damage by the later batches: a durable batch is followed, sooner or
// later, by one that says so (`durable`), or by a segment that does (`before`). An unreadable batch
// that a later one calls durable is damage. One that none calls durable was being written when the
// daemon died, and no byte of it was echoed, unless it was one of the last (at most as many as are
// in flight) and the disk has damaged it since. A segment's first batch is written only when all of
// the previous segment is durable.
//
// The marks are what lies outside the tail. A segment is used only after the mark of the end says
// that it was made, so that a file that is missing is damage, also the last one. After a clean stop
// the mark says up to where there are batches, so that a tail that is missing is damage. A flag
// that marks were lost (`lost`) stays.

import Glibc

enum JournalFormat {
  static let segmentHeaderLength = 256
  static let headerLength = 96
  static let recordHeaderLength = 40
  static let markLength = 320
  static let markBlock = 4096
  static let secretLength = 192
  static let segmentMagic: UInt64 = 0x324c_4e4a_4f48_4345  // "ECHOJNL2"
  static let batchMagic: UInt32 = 0x3254_4245  // "EBT2"
  static let markMagic: UInt64 = 0x324b_524d_4f48_4345  // "ECHOMRK2"
  static let marksName = "marks"
  static let unfinishedSuffix = ".making"

  /// Above every number that a journal can reach: what is higher is not believed, so that no sum of
  /// such numbers overflows.
  static let highest: UInt64 = 1 << 60
  static let smallestUnit = 512
  static let largestUnit = 1 << 20

  static func fileName(of segment: UInt64) -> String {
    let digits = String(segment)
    return "segment-" + String(repeating: "0", count: max(0, 10 - digits.count)) + digits
      + ".journal"
  }

  static func isSegmentName(_ name: String) -> Bool {
    name.hasPrefix("segment-") && name.hasSuffix(".journal")
  }

  /// The number in a segment's file name. `nil` if it is not the name that a segment is given.
  static func segment(ofFileName name: String) -> UInt64? {
    guard isSegmentName(name),
      let number = UInt64(name.dropFirst("segment-".count).dropLast(".journal".count)),
      number > 0, number <= highest, fileName(of: number) == name
    else { return nil }
    return number
  }

  static func padded(_ length: Int) -> Int { (length + 7) & ~7 }

  /// The time that headers and records have: nanoseconds since 1970.
  static func now() -> Int64 {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec)
  }

  /// A range of batches, as messages name it.
  static func batches(_ range: ClosedRange<UInt64>) -> String {
    range.count == 1
      ? "batch \(range.lowerBound)" : "batches \(range.lowerBound) to \(range.upperBound)"
  }
}

extension UnsafeMutableRawBufferPointer {
  func put<Number: FixedWidthInteger>(_ number: Number, at offset: Int) {
    storeBytes(of: number.littleEndian, toByteOffset: offset, as: Number.self)
  }

  func put(_ bytes: [UInt8], at offset: Int) {
    Self(rebasing: self[offset..<offset + bytes.count]).copyBytes(from: bytes)
  }
}

extension UnsafeRawBufferPointer {
  func get<Number: FixedWidthInteger>(_ type: Number.Type = Number.self, at offset: Int) -> Number {
    Number(littleEndian: loadUnaligned(fromByteOffset: offset, as: Number.self))
  }
}
