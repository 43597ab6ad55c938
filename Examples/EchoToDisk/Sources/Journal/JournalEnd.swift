// SPDX-License-Identifier: Apache-2.0

/// The end of a journal, and the numbers a daemon continues with: found at its start by examining
/// the segments, from the last one back to one that has a valid batch.
struct JournalEnd {
  /// The last valid batch; 0 if there is none.
  private(set) var durable: UInt64 = 0
  /// A number above that of every batch header, valid batch or not: a number used twice would
  /// confuse what the later headers call durable.
  private(set) var nextSequence: UInt64 = 1
  private(set) var nextConnection: UInt64 = 1
  private(set) var tornTail: JournalPlace?
  private(set) var damages: [(place: JournalPlace, what: String)] = []
  /// Whether a segment that is not fresh has been examined.
  private(set) var hasExamined = false
  /// The highest number that a header calls durable.
  private var calledDurable: UInt64 = 0

  /// Examines one segment; to be called from the last one backwards.
  ///
  /// - Returns: whether it has a valid batch, so that the segments before it need no examining.
  mutating func examine(_ segment: SegmentReader) throws -> Bool {
    hasExamined = true
    var hasValidBatch = false
    /// The sequence number of the next batch; `nil` before the segment's first.
    var expected: UInt64?
    var offset = segment.header.unit
    while true {
      let reason: String
      switch try segment.batch(at: offset) {
      case .valid(let batch, _) where batch.sequence == expected ?? batch.sequence:
        note(batch)
        durable = max(durable, batch.sequence)
        hasValidBatch = true
        expected = batch.sequence + 1
        offset = segment.end(of: batch, at: offset)
        continue
      case .valid(let batch, _): reason = "batch \(batch.sequence) is out of order"
      case .unreadable(let what): reason = what
      case .unwritten: return hasValidBatch
      }
      // The batches after it tell whether it was durable: as in JournalReader.
      let place = JournalPlace(segment: segment.header.segment, offset: offset)
      let own = try segment.batchHeader(at: offset)
      let later = try segment.batchHeaders(after: offset)
      if let own { note(own) }
      for (header, _) in later { note(header) }
      // With no header at all in the segment, nothing in it is known to have been durable.
      let lost = expected ?? own?.sequence ?? later.first.map { $0.header.sequence - 1 } ?? .max
      guard calledDurable >= lost else {
        tornTail = tornTail ?? place
        return hasValidBatch
      }
      damages.append((place, reason))
      guard let next = later.first(where: { $0.header.sequence > lost }) else {
        return hasValidBatch
      }
      expected = next.header.sequence
      offset = next.offset
    }
  }

  private mutating func note(_ header: BatchHeader) {
    nextSequence = max(nextSequence, header.sequence + 1)
    nextConnection = max(nextConnection, header.nextConnection)
    calledDurable = max(calledDurable, header.durable)
  }
}
