// SPDX-License-Identifier: Apache-2.0
//
// The writing side of the journal: group commit over batches. Called by the connections and the
// server, on the loop's queue only.
//
//   append ->  [open batch]  --seal-->  [in flight, in order: writing, written, …]  --> durable
//
// Connections put what they receive straight into the open batch's buffer. It is sealed as soon as
// one more batch may be in flight; whatever arrives until then is written together. The segment is
// open with O_DSYNC, so that a write completes when its bytes are durable; a batch counts as
// durable when the batches before it are durable, too. Only then its bytes are echoed, from the
// same buffer.
//
// (A write and then an fdatasync would be two requests, one after the other. Several synchronous
// writes in flight share the flushes of the disk's cache: the kernel merges those.)

import DispatchAIO
import Logging

/// The owner of bytes that are appended to the journal. Called on the loop's queue.
protocol JournalClient: AnyObject {
  /// These bytes, appended in this order, are durable; none for an opening. Valid during the call.
  func becameDurable(_ bytes: UnsafeRawBufferPointer)
  /// Some of the bytes that were appended, or the opening, will never be durable.
  func journalFailed(_ error: any Error)
}

/// - Safety: `@unchecked Sendable` because it is confined to the loop's queue: every method is
///   called there, and every completion handler runs there.
final class Journal: @unchecked Sendable {
  struct Settings: Sendable {
    var segmentSize = 64 << 20
    /// The most bytes of one batch.
    var batchSize = 1 << 20
    /// The most batches in flight.
    var batchesInFlight = 4
    /// Whether a write is durable when it completes.
    var syncs = true
    /// What the daemon trims by itself.
    var retention = Retention()
  }

  struct Statistics {
    var batches = 0
    var records = 0
    var bytes = 0
    var failures = 0
    /// The longest time from the sealing of a batch to its durability, in nanoseconds.
    var slowestBatch: UInt64 = 0
  }

  private(set) var statistics = Statistics()
  /// Called after batches have become durable or failed, or a segment has been made: `append` may
  /// have room where it had none.
  var afterProgress: () -> Void = {}

  private let context: AIOContext
  private let settings: Settings
  private let logger: Logger
  private let identity: JournalIdentity
  private let supply: SegmentSupply
  /// The size of every batch's buffer: a multiple of each segment's unit.
  private let batchSize: Int

  private var openBatch: Batch?
  /// The batches in flight, in order of their sequence numbers.
  private var inFlight: [Batch] = []
  private var emptyBuffers: [AIOBuffer] = []
  private var nextSequence: UInt64
  /// The last batch that is durable, as all before it are.
  private var durable: UInt64
  private var nextConnection: UInt64

  private var segment: Segment?
  private var segmentOffset = 0
  /// The sequence number of the segment's first batch, and the last durable batch before it.
  private var segmentFirst: UInt64 = 0
  private var segmentBefore: UInt64 = 0
  /// Where the last durable batch ends.
  private var durableEnd: (segment: UInt64, offset: Int)?

  private enum End {
    case no
    /// Once idle, an empty batch is to be written, which calls all before it durable.
    case wanted(then: ((any Error)?) -> Void)
    case written(then: ((any Error)?) -> Void)
    /// The mark outside of the segments is being written.
    case marking(then: ((any Error)?) -> Void)
  }
  private var end = End.no
  /// The error of a batch that failed after the end was wanted.
  private var endFailure: (any Error)?

  /// Blocks the calling thread, if it has to make the first segment.
  init(
    _ directory: JournalDirectory, context: AIOContext, settings: Settings, logger: Logger
  ) throws {
    (self.context, self.settings, self.logger) = (context, settings, logger)
    identity = directory.identity
    nextSequence = directory.nextSequence
    durable = directory.durable
    durableEnd = directory.durableEnd
    nextConnection = directory.nextConnection
    supply = try SegmentSupply(directory, settings, loop: context.queue, logger: logger)
    // Units are powers of two.
    batchSize = settings.batchSize & ~(max(4096, supply.largestUnit) - 1)
    // Weak, because a segment may be completed after the journal is gone.
    supply.afterAttempt = { [weak self] in
      guard let self else { return }
      // The batch that waited for the segment is written, or fails.
      seal()
      afterProgress()
    }
  }

  /// What the journal takes on disk, as of the last segment that was made or trimmed.
  var space: JournalSpace { supply.space }

  /// Trims what has become too old since a segment was filled.
  func trim() { supply.trimAgain() }

  // MARK: Appending

  /// A number that no connection had before.
  func newConnection() -> UInt64 {
    defer { nextConnection += 1 }
    return nextConnection
  }

  /// Appends a record.
  ///
  /// - Parameters:
  ///   - most: the most bytes that `fill` will give; 1 or more.
  ///   - fill: puts the payload into the memory it is given, and returns the number of bytes, or a
  ///     negative number to append nothing.
  /// - Returns: the number that `fill` returned. `nil` if there is no room: retry after progress.
  func append(
    _ kind: RecordHeader.Kind, of connection: UInt64, at position: UInt64, most: Int,
    for client: any JournalClient, fill: (UnsafeMutableRawBufferPointer) -> Int
  ) -> Int? {
    var batch = openBatch ?? makeBatch()
    if batch.room < min(most, Self.leastRoom) {
      seal()
      guard openBatch == nil else { return nil }
      batch = makeBatch()
    }
    openBatch = batch
    let header = RecordHeader(
      kind: kind, connection: connection, position: position, length: min(most, batch.room))
    let count = batch.append(header, for: client, fill: fill)
    if batch.records == 0 {
      // Nothing has been appended, and no block is written for that.
      openBatch = nil
      emptyBuffers.append(batch.buffer)
    }
    return count
  }

  /// Whether something has been appended that waits to be written.
  var hasOpenBatch: Bool { openBatch != nil }

  /// The room in a batch below which a record for more bytes goes to the next batch.
  private static let leastRoom = 4096

  private func makeBatch() -> Batch {
    Batch(
      buffer: emptyBuffers.popLast() ?? AIOBuffer(count: batchSize, alignment: 4096), identity)
  }

  // MARK: Writing

  /// Submits the open batch if one more may be in flight. Otherwise it is submitted as soon as that
  /// is so.
  func seal() {
    guard let batch = openBatch, inFlight.count < settings.batchesInFlight,
      let segment = segment(for: batch.used)
    else { return }
    openBatch = nil
    let length = (batch.used + segment.unit - 1) & ~(segment.unit - 1)
    precondition(segmentOffset + length <= segment.size)
    batch.seal(
      BatchHeader(
        segment: segment.number, offset: segmentOffset, sequence: nextSequence,
        first: segmentFirst, before: segmentBefore, durable: durable,
        nextConnection: nextConnection, length: batch.used - JournalFormat.headerLength,
        records: batch.records, unit: segment.unit),
      length: length)
    nextSequence += 1
    let offset = segmentOffset
    segmentOffset += length
    batch.end = (segment.number, segmentOffset)
    inFlight.append(batch)
    statistics.batches += 1
    statistics.records += batch.records
    statistics.bytes += length
    do {
      try context.write(segment.file, at: Int64(offset), from: batch.buffer[..<length]) {
        [self] result in
        // On the loop.
        switch result {
        case .success(length): self.written(batch)
        case .success(let count):
          self.abandon(
            batch, JournalError("a write was cut short after \(count) of \(length) bytes"))
        case .failure(let error): self.abandon(batch, error)
        }
      }
    } catch {
      abandon(batch, error)
    }
  }

  /// The segment for the next batch. `nil` if the batch has to wait, or has failed.
  private func segment(for length: Int) -> Segment? {
    if let segment, segmentOffset + length <= segment.size { return segment }
    // All of a segment is durable before the next is begun: see JournalFormat.
    guard inFlight.isEmpty else { return nil }
    guard let next = supply.take() else {
      if let failure = supply.failure, let batch = openBatch {
        openBatch = nil
        fail([batch], failure)
      }
      return nil
    }
    logger.debug("the journal continues in segment \(next.number)")
    segment = next
    segmentOffset = next.unit
    (segmentFirst, segmentBefore) = (nextSequence, durable)
    return next
  }

  private func written(_ batch: Batch) {
    batch.isWritten = true
    guard !batch.isAbandoned else { return }
    reportDurable()
  }

  /// Tells the clients of the batches that are durable now, in order.
  private func reportDurable() {
    var done: [Batch] = []
    while let batch = inFlight.first, batch.isWritten {
      inFlight.removeFirst()
      durable = batch.sequence
      durableEnd = batch.end
      done.append(batch)
    }
    // The next batch before the echoes: the disk works while the sockets are written to.
    seal()
    for batch in done {
      let took = (ContinuousClock.now - batch.sealed).components
      statistics.slowestBatch = max(
        statistics.slowestBatch,
        UInt64(took.seconds) * 1_000_000_000 + UInt64(took.attoseconds / 1_000_000_000))
      batch.reportDurable()
      if emptyBuffers.count <= settings.batchesInFlight { emptyBuffers.append(batch.buffer) }
    }
    afterProgress()
    endIfIdle()
  }

  // MARK: Failure

  /// Abandons all batches after a failed write: their clients are told, the segment is left as it
  /// is, and the journal continues in the next one.
  private func abandon(_ batch: Batch, _ error: any Error) {
    // One that failed together with it has abandoned it; what is in flight now is in the next
    // segment.
    guard !batch.isAbandoned else { return }
    let lost = inFlight + (openBatch.map { [$0] } ?? [])
    logger.error("the journal lost \(lost.count) batches that were on their way: \(error)")
    inFlight = []
    openBatch = nil
    segment = nil
    fail(lost, error)
  }

  private func fail(_ batches: [Batch], _ error: any Error) {
    if case .no = end {} else { endFailure = error }
    statistics.failures += batches.count
    for batch in batches { batch.abandon(error) }
    afterProgress()
    endIfIdle()
  }

  // MARK: The end

  /// Makes all that was appended durable, marks the journal's end, and calls back: with an error if
  /// something could not be written on the way, so that what was last could be lost unnoticed.
  func end(_ completion: @escaping ((any Error)?) -> Void) {
    end = .wanted(then: completion)
    seal()
    endIfIdle()
  }

  private func endIfIdle() {
    guard openBatch == nil, inFlight.isEmpty else { return }
    switch end {
    case .no, .marking: break
    case .wanted(let completion) where segment == nil:
      // Nothing has been written, or the disk has failed.
      mark(then: completion)
    case .wanted(let completion):
      end = .written(then: completion)
      openBatch = makeBatch()
      seal()
    case .written(let completion):
      mark(then: completion)
    }
  }

  /// Marks the end outside of the segments: see JournalFormat.
  private func mark(then completion: @escaping ((any Error)?) -> Void) {
    end = .marking(then: completion)
    let (durable, nextConnection, durableEnd) = (durable, nextConnection, durableEnd)
    supply.markEnd { mark in
      mark.isClean = true
      mark.sequence = max(mark.sequence, durable)
      mark.nextConnection = nextConnection
      if let durableEnd, durableEnd.segment >= mark.segment {
        (mark.segment, mark.offset) = durableEnd
      }
    } _: { [self] error in
      // On the loop.
      guard case .marking(let completion) = end else { return }
      end = .no
      if let error { logger.error("the journal's end could not be marked: \(error)") }
      completion(error ?? endFailure)
    }
  }
}
