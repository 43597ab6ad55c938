// SPDX-License-Identifier: Apache-2.0
//
// The headers of segments and batches: see JournalFormat.

struct SegmentHeader: Equatable {
  var unit: Int
  var identity: JournalIdentity
  var segment: UInt64
  var size: Int
  var created: Int64

  func write(to bytes: UnsafeMutableRawBufferPointer) {
    bytes.put(JournalFormat.segmentMagic, at: 0)
    bytes.put(UInt32(unit), at: 8)
    bytes.put(UInt32(0), at: 12)
    bytes.put(identity.journal, at: 16)
    bytes.put(segment, at: 24)
    bytes.put(UInt64(size), at: 32)
    bytes.put(created, at: 40)
    bytes.put(UInt64(0), at: 48)
    bytes.put(identity.secret, at: 56)
    bytes.put(
      JournalIdentity.plainChecksum(of: UnsafeRawBufferPointer(bytes), count: 248), at: 248)
  }

  /// Reads a header. `nil` if it is not valid.
  init?(_ bytes: UnsafeRawBufferPointer) {
    guard bytes.count >= JournalFormat.segmentHeaderLength,
      bytes.get(UInt64.self, at: 0) == JournalFormat.segmentMagic,
      bytes.get(UInt64.self, at: 248) == JournalIdentity.plainChecksum(of: bytes, count: 248)
    else { return nil }
    unit = Int(bytes.get(UInt32.self, at: 8))
    segment = bytes.get(at: 24)
    size = Int(clamping: bytes.get(UInt64.self, at: 32))
    created = bytes.get(at: 40)
    identity = JournalIdentity(
      journal: bytes.get(at: 16),
      secret: .init(rebasing: bytes[56..<56 + JournalFormat.secretLength]))
    guard Self.isUnit(unit), size >= unit, size <= 1 << 60,
      segment > 0, segment <= JournalFormat.highest
    else { return nil }
  }

  init(unit: Int, identity: JournalIdentity, segment: UInt64, size: Int, created: Int64) {
    (self.unit, self.identity, self.segment) = (unit, identity, segment)
    (self.size, self.created) = (size, created)
  }

  static func isUnit(_ unit: Int) -> Bool {
    unit >= JournalFormat.smallestUnit && unit <= JournalFormat.largestUnit
      && unit & (unit - 1) == 0
  }
}

struct BatchHeader: Equatable {
  var segment: UInt64
  var offset: Int
  var sequence: UInt64
  var first: UInt64
  var before: UInt64
  var durable: UInt64
  var nextConnection: UInt64
  var length: Int
  var records: Int
  var unit: Int

  /// The offset at which the next batch begins.
  var end: Int { (offset + JournalFormat.headerLength + length + unit - 1) & ~(unit - 1) }

  func write(to bytes: UnsafeMutableRawBufferPointer, _ identity: JournalIdentity) {
    bytes.put(JournalFormat.batchMagic, at: 0)
    bytes.put(UInt32(records), at: 4)
    bytes.put(identity.journal, at: 8)
    bytes.put(segment, at: 16)
    bytes.put(UInt64(offset), at: 24)
    bytes.put(sequence, at: 32)
    bytes.put(first, at: 40)
    bytes.put(before, at: 48)
    bytes.put(durable, at: 56)
    bytes.put(nextConnection, at: 64)
    bytes.put(UInt32(length), at: 72)
    bytes.put(UInt32(unit), at: 76)
    bytes.put(UInt64(0), at: 80)
    bytes.put(identity.checksum(of: UnsafeRawBufferPointer(bytes), count: 88), at: 88)
  }

  /// Reads the header at an offset of a segment. `nil` if it is not valid there.
  init?(_ bytes: UnsafeRawBufferPointer, at offset: Int, in file: SegmentHeader) {
    guard bytes.count >= JournalFormat.headerLength,
      bytes.get(UInt32.self, at: 0) == JournalFormat.batchMagic,
      bytes.get(UInt64.self, at: 8) == file.identity.journal,
      bytes.get(UInt64.self, at: 16) == file.segment,
      bytes.get(UInt64.self, at: 24) == UInt64(offset),
      bytes.get(UInt64.self, at: 88) == file.identity.checksum(of: bytes, count: 88)
    else { return nil }
    (segment, self.offset) = (file.segment, offset)
    records = Int(bytes.get(UInt32.self, at: 4))
    sequence = bytes.get(at: 32)
    first = bytes.get(at: 40)
    before = bytes.get(at: 48)
    durable = bytes.get(at: 56)
    nextConnection = bytes.get(at: 64)
    length = Int(bytes.get(UInt32.self, at: 72))
    unit = Int(bytes.get(UInt32.self, at: 76))
    guard isPlausible(in: file) else { return nil }
  }

  /// Whether its place explains its numbers. Those before it in the segment have at least a unit
  /// each.
  private func isPlausible(in file: SegmentHeader) -> Bool {
    guard SegmentHeader.isUnit(unit), offset % unit == 0, offset >= unit,
      offset <= file.size - JournalFormat.headerLength,
      length <= file.size - JournalFormat.headerLength - offset,
      records <= length / JournalFormat.recordHeaderLength,
      sequence > 0, sequence <= JournalFormat.highest, nextConnection <= JournalFormat.highest,
      first > 0, first <= sequence, before < first, before <= durable, durable < sequence
    else { return false }
    let batchesBefore = sequence - first
    return batchesBefore <= UInt64(offset / unit - 1) && (batchesBefore == 0) == (offset == unit)
  }

  init(
    segment: UInt64, offset: Int, sequence: UInt64, first: UInt64, before: UInt64, durable: UInt64,
    nextConnection: UInt64, length: Int, records: Int, unit: Int
  ) {
    (self.segment, self.offset, self.sequence) = (segment, offset, sequence)
    (self.first, self.before, self.durable) = (first, before, durable)
    self.nextConnection = nextConnection
    (self.length, self.records, self.unit) = (length, records, unit)
  }
}
