// SPDX-License-Identifier: Apache-2.0

/// Where a journal ends, and with which numbers it goes on: found by looking at its segments, from
/// the last one back to one with a batch that counts.
struct JournalEnd {
  /// The last batch that counts; 0 when there is none.
  private(set) var durable: UInt64 = 0
  /// Above every number that a batch's header has, also where the batch does not count: a number
  /// that comes twice would mix up what it stands for.
  private(set) var nextSequence: UInt64 = 1
  private(set) var nextConnection: UInt64 = 1
  private(set) var tornTail: JournalPlace?
  private(set) var damages: [(place: JournalPlace, what: String)] = []
  /// Whether a segment that is not fresh has been looked at.
  private(set) var isSeen = false
  /// The highest number that a header calls durable.
  private var claimed: UInt64 = 0

  /// - Returns: whether a batch in it counts, so that the segments before do not matter.
  mutating func look(at segment: SegmentReader) throws -> Bool {
    isSeen = true
    var counts = false
    /// The sequence number that comes next; `nil` before the segment's first.
    var expected: UInt64?
    var offset = segment.header.unit
    while true {
      let reason: String
      switch try segment.batch(at: offset) {
      case .valid(let batch, _) where batch.sequence == expected ?? batch.sequence:
        see(batch)
        durable = max(durable, batch.sequence)
        counts = true
        expected = batch.sequence + 1
        offset = segment.end(of: batch, at: offset)
        continue
      case .valid(let batch, _): reason = "batch \(batch.sequence) is out of order"
      case .unreadable(let what): reason = what
      case .unwritten: return counts
      }
      // Whether it was durable, say the batches after it: as in JournalReader.
      let place = JournalPlace(segment: segment.header.segment, offset: offset)
      let own = try segment.batchHeader(at: offset)
      let later = try segment.batchHeaders(after: offset)
      if let own { see(own) }
      for (header, _) in later { see(header) }
      // With no header at all in the segment, nothing in it is known to have been durable.
      let lost = expected ?? own?.sequence ?? later.first.map { $0.header.sequence - 1 } ?? .max
      guard claimed >= lost else {
        tornTail = tornTail ?? place
        return counts
      }
      damages.append((place, reason))
      guard let resume = later.first(where: { $0.header.sequence > lost }) else { return counts }
      expected = resume.header.sequence
      offset = resume.offset
    }
  }

  private mutating func see(_ header: BatchHeader) {
    nextSequence = max(nextSequence, header.sequence + 1)
    nextConnection = max(nextConnection, header.nextConnection)
    claimed = max(claimed, header.durable)
  }
}
