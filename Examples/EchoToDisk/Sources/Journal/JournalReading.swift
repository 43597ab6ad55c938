// SPDX-License-Identifier: Apache-2.0
//
// Whether an unreadable batch is a torn tail or damage is decided here: see JournalFormat.

import SystemPackage

/// One reading of a journal: of all of it, or (see JournalFollowing) of what is written meanwhile,
/// too.
final class JournalReading {
  var inspection: JournalInspection
  private let visit: (JournalReader.Event) throws -> Void
  var segments: [JournalInspection.SegmentFile] { inspection.segments }

  /// The sequence number of the next batch; `nil` if it is not known before one is found.
  private var expected: UInt64?
  /// The number of the next segment.
  private(set) var nextSegment: UInt64
  /// What is known to be wrong before the next batch, and not yet said: with it, batches may be
  /// missing.
  private var losses: [(place: JournalPlace, what: String)] = []
  /// The position at which each connection continues that has not closed.
  private var positions: [UInt64: UInt64] = [:]
  /// The connections below this number may have been trimmed in part.
  private var trimmedConnections: UInt64
  /// The segment that is being read, or was last: open until the next one is, so that what is yet
  /// to be read is not trimmed.
  private var current: SegmentReader?
  /// Where a reading that follows has stopped: the end of what is written so far.
  var waiting: Position?

  init(
    _ inspection: JournalInspection, _ visit: @escaping (JournalReader.Event) throws -> Void
  ) {
    (self.inspection, self.visit) = (inspection, visit)
    nextSegment = inspection.marks.firstSegment
    trimmedConnections = inspection.marks.beginning?.nextConnection ?? 0
  }

  func run(from start: Int) throws {
    if start == 0 {
      expected = (inspection.marks.beginning?.sequence ?? 0) + 1
    } else {
      nextSegment = segments[start].number
    }
    try reportFindings()
    var index = start
    while index < segments.count {
      noteMissing(before: segments[index].number)
      if try !readSegment(index) {
        index += 1
        break
      }
      index += 1
    }
    try finish(from: index)
  }

  // MARK: Files

  /// Says which files are where they must not be.
  func reportFindings() throws {
    for finding in inspection.findings
    where finding.name != JournalFormat.marksName
      && (finding.segment == nil || segments.contains { $0.number == finding.segment })
    {
      try visit(.damage(.file(finding.name), finding.sentence))
    }
  }

  /// Notes the segments from `nextSegment` on that are not there.
  func noteMissing(before number: UInt64) {
    let odd = inspection.findings.filter { finding in
      finding.segment.map { $0 >= nextSegment && $0 < number } ?? false
        && !segments.contains { $0.number == finding.segment }
    }.sorted { ($0.segment ?? 0) < ($1.segment ?? 0) }
    for finding in odd {
      noteMissing(upTo: finding.segment ?? 0)
      losses.append((.file(finding.name), finding.sentence))
      nextSegment = (finding.segment ?? 0) + 1
    }
    noteMissing(upTo: number)
    nextSegment = number + 1
  }

  private func noteMissing(upTo number: UInt64) {
    guard nextSegment < number else { return }
    losses.append(
      (
        .segment(nextSegment, offset: 0),
        number == nextSegment + 1
          ? "the file is missing"
          : "the files of segments \(nextSegment) to \(number - 1) are missing"
      ))
  }

  /// Says what is known to be wrong and, if batches are missing with it, which.
  ///
  /// - Parameter place: where the batches would be, if no file is known to have had them.
  private func report(missing: ClosedRange<UInt64>?, at place: JournalPlace) throws {
    let missing = missing.map {
      "\(JournalFormat.batches($0)) \($0.count == 1 ? "is" : "are") missing"
    }
    guard !losses.isEmpty else {
      if let missing { try visit(.damage(place, missing)) }
      return
    }
    for (index, loss) in losses.enumerated() {
      let what = index == 0 && missing != nil ? "\(loss.what); \(missing ?? "")" : loss.what
      try visit(.damage(loss.place, what))
    }
    losses = []
  }

  /// Says what is wrong with the segments that have no batches, and whether the journal's end is
  /// missing.
  func finish(from index: Int) throws {
    for file in segments[index...] {
      noteMissing(before: file.number)
      if let failure = file.failure { losses.append((file.failurePlace, failure)) }
      try visit(.endOfSegment(file.number, batches: 0))
    }
    let end = inspection.marks.end
    // A spare that is missing had nothing.
    let made = (end?.isClean ?? false) ? (end?.segment ?? 0) : (end?.made ?? 0)
    if made >= nextSegment { noteMissing(before: made + 1) }
    // Behind the last segment there is nothing to miss.
    for finding in inspection.findings where finding.segment ?? 0 >= nextSegment {
      try visit(.damage(.file(finding.name), finding.sentence))
    }
    var missing: ClosedRange<UInt64>?
    if let expected, let end, expected <= end.sequence { missing = expected...end.sequence }
    try report(missing: missing, at: .segment(end?.segment ?? 0, offset: end?.offset ?? 0))
    // Last, because it is the journal's end that may be missing.
    for finding in inspection.findings where finding.name == JournalFormat.marksName {
      try visit(.damage(.file(finding.name), finding.sentence))
    }
  }

  // MARK: Segments

  /// The reading of one segment.
  struct Position {
    var index: Int
    let reader: SegmentReader
    var offset: Int
    /// The sequence number of the next batch; `nil` before the segment's first.
    var next: UInt64?
    var batches = 0
    /// What there is after the first place that has no valid batch.
    var tail: Tail?
    /// Whether nothing had been written to the later segments, once it has been read.
    var isLast: Bool { tail?.isLast ?? false }
  }

  /// What there is after a place in a segment.
  struct Tail {
    /// A header of the segment, which says where its batches begin; `nil` if none is readable.
    var header: BatchHeader?
    /// The last batch that is called durable, of those that can be in this segment; 0 if none is.
    var durable: UInt64 = 0
    /// Whether nothing had been written to the later segments.
    var isLast = true
  }

  /// - Returns: whether the segments after it may have batches.
  private func readSegment(_ index: Int) throws -> Bool {
    guard var position = try begin(index) else { return true }
    while try readBatch(&position) {}
    try end(position)
    return !position.isLast
  }

  /// Opens a segment. `nil` if it cannot be read.
  func begin(_ index: Int) throws -> Position? {
    let file = segments[index]
    switch inspection.open(file) {
    case .success(let reader):
      current = reader
      if let failure = file.failure { losses.append((file.failurePlace, failure)) }
      return Position(index: index, reader: reader, offset: reader.header.unit)
    case .failure(let errno):
      if errno == .noSuchFileOrDirectory, inspection.isTrimmed(file.number) {
        // What follows it begins anew, as far as this reading knows.
        expected = nil
        trimmedConnections = inspection.trimmedConnections()
      } else {
        losses.append((.segment(file.number, offset: 0), "cannot be opened: \(errno)"))
      }
      return nil
    }
  }

  /// Says what is wrong with a segment that has been read, and that it has been.
  func end(_ position: Position) throws {
    let file = segments[position.index]
    if file.failure != nil { try report(missing: nil, at: file.failurePlace) }
    try visit(.endOfSegment(file.number, batches: position.batches))
  }

  /// Visits the records of the batch at a position, or says what is there instead.
  ///
  /// - Returns: whether the segment has more.
  func readBatch(_ position: inout Position) throws -> Bool {
    let batch = position.reader.batch(at: position.offset)
    if case .valid(let header, let records) = batch {
      try accept(header, records, &position)
      return true
    }
    if position.tail == nil {
      // A daemon may have written it since. What was called durable before the second look is
      // readable then, or damaged, and a segment after which another has been begun is complete.
      position.tail = look(after: position)
      position.reader.discardWindow()
      return true
    }
    switch batch {
    case .valid: return true
    case .damaged(let header, let records, let reason):
      guard isDurable(header.sequence, position) else { return try end(&position, isTorn: true) }
      try reportBefore(header, position)
      try visit(.damage(.segment(header.segment, offset: header.offset), reason))
      try accept(header, records, &position)
      return true
    case .unreadable(let reason): return try skip(reason, &position)
    case .unwritten: return try skip(nil, &position)
    }
  }

  private func accept(
    _ header: BatchHeader, _ records: BatchRecords, _ position: inout Position
  ) throws {
    try reportBefore(header, position)
    position.offset = header.end
    position.next = header.sequence + 1
    position.batches += 1
    if let expected, header.sequence < expected {
      let place = JournalPlace.segment(header.segment, offset: header.offset)
      return try visit(.damage(place, "batch \(header.sequence) appears twice"))
    }
    expected = header.sequence + 1
    try visit(.batch(header))
    for (record, start) in records.readable {
      let place = JournalPlace.segment(
        header.segment, offset: header.offset + JournalFormat.headerLength + start)
      try check(record, place)
      try visit(.record(record, payload: records.payload(of: record, at: start), place))
    }
  }

  /// Says which batches are missing between the last one and this.
  private func reportBefore(_ header: BatchHeader, _ position: Position) throws {
    let last = position.next == nil ? header.before : header.sequence - 1
    var missing: ClosedRange<UInt64>?
    if let expected, expected <= last {
      missing = expected...last
      self.expected = last + 1
    }
    if missing != nil || position.next == nil && !hasOwnLoss(position) {
      try report(missing: missing, at: .segment(header.segment, offset: header.offset))
    }
  }

  /// Whether what is known to be wrong is of this segment itself, and so may say more at its end.
  private func hasOwnLoss(_ position: Position) -> Bool {
    segments[position.index].failure != nil && losses.count == 1
  }

  /// Continues behind bytes that are no batch.
  private func skip(_ reason: String?, _ position: inout Position) throws -> Bool {
    let next = reason == nil ? nil : position.reader.nextHeader(after: position.offset)
    let tail = position.tail ?? Tail()
    let lost = position.next ?? tail.header?.first ?? expected ?? 1
    guard tail.durable >= lost else { return try end(&position, isTorn: reason != nil) }
    let upTo = max(lost, min(tail.durable, next.map { $0.sequence - 1 } ?? tail.durable))
    let place = JournalPlace.segment(segments[position.index].number, offset: position.offset)
    if position.next == nil, let header = tail.header {
      // What is missing before this segment is not its own.
      try reportBefore(header, position)
      expected = max(expected ?? 0, header.first)
    }
    if let reason {
      try visit(.damage(place, "\(reason); \(JournalFormat.batches(lost...upTo)) unreadable"))
    } else if expected ?? lost <= upTo {
      try report(missing: max(lost, expected ?? lost)...upTo, at: place)
    }
    expected = max(expected ?? 0, upTo + 1)
    position.next = upTo + 1
    guard let next else { return try end(&position, isTorn: false) }
    position.offset = next.offset
    return true
  }

  private func end(_ position: inout Position, isTorn: Bool) throws -> Bool {
    if isTorn {
      try visit(
        .tornTail(.segment(segments[position.index].number, offset: position.offset)))
    }
    return false
  }

  private func isDurable(_ sequence: UInt64, _ position: Position) -> Bool {
    (position.tail?.durable ?? 0) >= sequence
  }

  /// Looks at what there is after a place, and in the later segments.
  private func look(after position: Position) -> Tail {
    var tail = Tail()
    let number = segments[position.index].number
    position.reader.headers(from: position.offset) { header in
      tail.header = tail.header ?? header
      tail.durable = max(tail.durable, header.durable)
    }
    if let end = inspection.marks.end, end.segment == number {
      tail.durable = max(tail.durable, end.sequence)
    }
    // Whether every segment between this one and a later one is there, and unused.
    var isNext = true
    var last = number
    for file in segments[(position.index + 1)...] {
      if file.number != last + 1 || file.failure != nil { isNext = false }
      last = file.number
      guard case .success(let later) = inspection.open(file) else {
        isNext = false
        continue
      }
      if let first = later.firstHeader() {
        tail.isLast = false
        if isNext { tail.durable = max(tail.durable, first.before) }
        break
      }
      if !later.isFresh() { (tail.isLast, isNext) = (false, false) }
    }
    return tail
  }

  // MARK: Connections

  /// Checks that a record continues its connection.
  private func check(_ record: RecordHeader, _ place: JournalPlace) throws {
    guard record.kind != .opened else {
      positions[record.connection] = positions[record.connection] ?? 0
      return
    }
    let isTrimmed = record.connection < trimmedConnections
    let next = positions[record.connection] ?? (isTrimmed ? record.position : 0)
    if record.position != next {
      let range =
        next < record.position ? next..<record.position : record.position..<record.position
      try visit(.gap(connection: record.connection, range, place))
    }
    // Nothing follows a closing. Both are far below the highest number.
    positions[record.connection] =
      record.kind == .closed ? nil : record.position + UInt64(record.length)
  }
}
