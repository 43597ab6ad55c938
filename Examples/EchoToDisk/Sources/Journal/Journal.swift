// SPDX-License-Identifier: Apache-2.0
//
// The writing side of the journal: group commit over batches.
//
//   append ->  [open batch]  --seal-->  [in flight, in order: writing, written, …]  --> durable
//
// Connections put what they receive straight into the open batch's buffer. It is sealed as soon as
// there is room for one more batch in flight; what arrives until then goes down together. The
// segment is open with O_DSYNC, so a write completes when its bytes are durable; a batch counts as
// durable when those of all batches before have completed, too. Only then its bytes are echoed,
// from the same buffer.
//
// (A write and then an fdatasync would be two requests, one after the other. In flight at once, the
// synchronous writes share the flushes of the disk's cache: the kernel merges those.)

import Dispatch
import DispatchAIO
import Glibc
import Logging
import SystemPackage

/// Somebody whose bytes are in the journal, or on their way.
protocol JournalClient: AnyObject {
  /// These bytes, appended in this order, are durable: none for an opening. Valid during the call.
  func becameDurable(_ bytes: UnsafeRawBufferPointer)
  /// Some that were appended, or the opening, will never be durable.
  func journalFailed(_ error: any Error)
}

/// - Safety: `@unchecked Sendable` because it is confined to the loop's queue: every method is called
///   there, and every completion handler runs there.
final class Journal: @unchecked Sendable {
  struct Settings: Sendable {
    var segmentSize = 64 << 20
    /// The most bytes of one batch.
    var batchSize = 1 << 20
    /// How many batches may be in flight.
    var batchesInFlight = 4
    /// Whether a write is to be durable when it completes.
    var syncs = true
  }

  struct Statistics {
    var batches = 0
    var records = 0
    var bytes = 0
    var failures = 0
    /// From the sealing of a batch to its durability, in nanoseconds; the longest.
    var slowestBatch: UInt64 = 0
  }

  private(set) var statistics = Statistics()
  /// Called after some batches have become durable or failed, or a segment has been made: there may
  /// be room again where `append` had said that there is none.
  var afterProgress: () -> Void = {}

  private let loop: DispatchQueue
  private let context: AIOContext
  private let settings: Settings
  private let logger: Logger
  private let directory: JournalDirectory
  private let clock = ContinuousClock()

  private var openBatch: Batch?
  /// In order of their sequence numbers.
  private var inFlight: [Batch] = []
  private var emptyBuffers: [AIOBuffer] = []
  private var nextSequence: UInt64
  /// The last batch of which all before are durable, too.
  private var durable: UInt64
  private var nextConnection: UInt64

  private var segment: Segment?
  private var segmentOffset = 0
  private var spares: [Segment]
  private var nextSegment: UInt64
  private var isMakingSegment = false
  private var makingFailure: (any Error)?
  private var end = End.no

  private enum End {
    case no
    /// Once idle, an empty batch is written: it calls all before it durable.
    case wanted(then: () -> Void)
    case written(then: () -> Void)
  }

  /// Of every batch's buffer: a multiple of each segment's unit.
  private let batchSize: Int

  private let maker = DispatchQueue(label: "echo-to-disk.segments")

  /// - Safety: `@unchecked Sendable` as the journal is.
  private final class Batch: @unchecked Sendable {
    let buffer: AIOBuffer
    var used = JournalFormat.headerLength
    var pieces: [(client: any JournalClient, start: Int, count: Int)] = []
    var records = 0
    var sequence: UInt64 = 0
    var isWritten = false
    /// Its clients have been told that it failed.
    var isGivenUp = false
    var sealed = ContinuousClock.now

    init(buffer: AIOBuffer) { self.buffer = buffer }
  }

  init(
    _ directory: JournalDirectory, context: AIOContext, settings: Settings, logger: Logger
  ) throws {
    self.directory = directory
    self.context = context
    self.settings = settings
    self.logger = logger
    loop = context.queue
    nextSequence = directory.nextSequence
    durable = directory.durable
    nextConnection = directory.nextConnection
    nextSegment = directory.nextSegment
    // A spare of an earlier run may be too small for a batch of this one; it stays empty.
    spares = directory.fresh.filter { $0.unit + settings.batchSize <= $0.size }
    if spares.isEmpty {
      spares = [try Self.make(nextSegment, directory, settings)]
      nextSegment += 1
    }
    // Units are powers of two, and no segment made later has a greater one.
    let unit = max(4096, spares.map(\.unit).max()!)
    batchSize = settings.batchSize & ~(unit - 1)
  }

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
  ///   - fill: puts the payload into the memory it is given, and answers how many bytes; a negative
  ///     number, and nothing is appended.
  /// - Returns: what `fill` answered; `nil` when there is no room: try again after progress.
  func append(
    _ kind: RecordHeader.Kind, of connection: UInt64, at position: UInt64, most: Int,
    for client: any JournalClient, fill: (UnsafeMutableRawBufferPointer) -> Int
  ) -> Int? {
    let header = JournalFormat.recordHeaderLength
    var batch = openBatch ?? makeBatch()
    let enough = min(most, Self.leastRoom)
    if batch.buffer.count - batch.used - header < enough {
      seal()
      guard openBatch == nil else { return nil }
      batch = makeBatch()
    }
    openBatch = batch
    let start = batch.used + header
    let room = min(most, batch.buffer.count - start)
    let count = batch.buffer.withUnsafeMutableBytes { bytes -> Int in
      let count = fill(.init(rebasing: bytes[start..<start + room]))
      guard count >= 0 else { return count }
      let record = RecordHeader(
        kind: kind, connection: connection, position: position, length: count)
      record.write(to: .init(rebasing: bytes[batch.used...]))
      // The padding, too: the buffer has been used before.
      for index in start + count..<batch.used + record.stride { bytes[index] = 0 }
      batch.used += record.stride
      return count
    }
    guard count >= 0 else { return count }
    batch.records += 1
    // An opening has nothing to echo, but its client, too, is to know when it is lost.
    if kind != .closed { batch.pieces.append((client, start, kind == .data ? count : 0)) }
    return count
  }

  /// Less room than this in a batch is not worth a record.
  private static let leastRoom = 4096

  private func makeBatch() -> Batch {
    Batch(
      buffer: emptyBuffers.popLast()
        ?? AIOBuffer(count: batchSize, alignment: 4096))
  }

  // MARK: Down

  /// Sends the open batch on its way, if it may go now; else it goes when it may.
  func seal() {
    guard let batch = openBatch, inFlight.count < settings.batchesInFlight,
      let segment = segment(for: batch.used)
    else { return }
    openBatch = nil
    let length = (batch.used + segment.unit - 1) & ~(segment.unit - 1)
    precondition(length <= batch.buffer.count && segmentOffset + length <= segment.size)
    batch.sequence = nextSequence
    nextSequence += 1
    let header = BatchHeader(
      journal: directory.journal, segment: segment.number, sequence: batch.sequence,
      durable: durable, nextConnection: nextConnection,
      length: batch.used - JournalFormat.headerLength, records: batch.records)
    batch.buffer.withUnsafeMutableBytes { bytes in
      header.write(to: bytes)
      for index in batch.used..<length { bytes[index] = 0 }
    }
    batch.sealed = clock.now
    let offset = segmentOffset
    segmentOffset += length
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
          self.giveUp(
            batch, JournalError("a write was cut short after \(count) of \(length) bytes"))
        case .failure(let error): self.giveUp(batch, error)
        }
      }
    } catch {
      giveUp(batch, error)
    }
  }

  private func written(_ batch: Batch) {
    batch.isWritten = true
    guard !batch.isGivenUp else { return }
    makeDurable()
  }

  /// Tells the clients of the batches that are durable now, in order.
  private func makeDurable() {
    var done: [Batch] = []
    while let batch = inFlight.first, batch.isWritten {
      inFlight.removeFirst()
      durable = batch.sequence
      done.append(batch)
    }
    // First the next batch, then the echoes: the disk works while the sockets are written to.
    seal()
    for batch in done {
      let took = (clock.now - batch.sealed).components
      statistics.slowestBatch = max(
        statistics.slowestBatch,
        UInt64(took.seconds) * 1_000_000_000 + UInt64(took.attoseconds / 1_000_000_000))
      batch.buffer.withUnsafeBytes { bytes in
        for (client, start, count) in batch.pieces {
          client.becameDurable(.init(rebasing: bytes[start..<start + count]))
        }
      }
      if emptyBuffers.count <= settings.batchesInFlight { emptyBuffers.append(batch.buffer) }
    }
    afterProgress()
    endIfIdle()
  }

  // MARK: Failure

  /// What is in flight will not be durable: its clients are told, the segment is left as it is, and
  /// the journal goes on in the next one.
  private func giveUp(_ batch: Batch, _ error: any Error) {
    // Else with one before it; what is in flight now is in the next segment.
    guard !batch.isGivenUp else { return }
    let lost = inFlight + (openBatch.map { [$0] } ?? [])
    logger.error("the journal lost \(lost.count) batches that were on their way: \(error)")
    inFlight = []
    openBatch = nil
    segment = nil
    fail(lost, error)
  }

  private func fail(_ batches: [Batch], _ error: any Error) {
    statistics.failures += batches.count
    for batch in batches {
      batch.isGivenUp = true
      var told = Set<ObjectIdentifier>()
      for (client, _, _) in batch.pieces where told.insert(ObjectIdentifier(client)).inserted {
        client.journalFailed(error)
      }
    }
    afterProgress()
    endIfIdle()
  }

  // MARK: The end

  /// Makes all that was appended durable, has a last batch say so, and calls back.
  func end(_ completion: @escaping () -> Void) {
    end = .wanted(then: completion)
    seal()
    endIfIdle()
  }

  private func endIfIdle() {
    guard openBatch == nil, inFlight.isEmpty else { return }
    switch end {
    case .no: break
    case .wanted(let completion) where segment == nil:
      // Nothing has been written, or the disk has failed.
      end = .no
      completion()
    case .wanted(let completion):
      end = .written(then: completion)
      openBatch = makeBatch()
      seal()
    case .written(let completion):
      end = .no
      completion()
    }
  }

  // MARK: Segments

  /// The segment that the next batch goes to. `nil`: it has to wait, or has failed.
  private func segment(for length: Int) -> Segment? {
    if let segment, segmentOffset + length <= segment.size { return segment }
    // All of a segment is durable before the next is begun: see JournalFormat.
    guard inFlight.isEmpty else { return nil }
    if spares.isEmpty {
      if let makingFailure, let batch = openBatch {
        openBatch = nil
        fail([batch], makingFailure)
      } else {
        makeSegment()
      }
      return nil
    }
    let next = spares.removeFirst()
    logger.debug("the journal goes on in segment \(next.number)")
    segment = next
    segmentOffset = next.unit
    makeSegment()
    return next
  }

  /// Makes sure that a spare segment is there, or on its way.
  private func makeSegment() {
    guard spares.isEmpty, !isMakingSegment else { return }
    isMakingSegment = true
    let (number, directory, settings) = (nextSegment, directory, settings)
    maker.async { [self] in
      let made = Result { try Self.make(number, directory, settings) }
      loop.async { self.made(made) }
    }
  }

  private static func make(
    _ number: UInt64, _ directory: JournalDirectory, _ settings: Settings
  ) throws -> Segment {
    try Segment(
      making: number, in: directory.path, journal: directory.journal, size: settings.segmentSize,
      syncs: settings.syncs)
  }

  private func made(_ made: Result<Segment, any Error>) {
    isMakingSegment = false
    switch made {
    case .success(let segment):
      if makingFailure != nil { logger.notice("there is room for the journal again") }
      makingFailure = nil
      nextSegment += 1
      spares.append(segment)
    case .failure(let error):
      if makingFailure == nil {
        logger.error("no room for the journal's next segment, trying again each second: \(error)")
      }
      makingFailure = error
      loop.asyncAfter(deadline: .now() + .seconds(1)) { self.makeSegment() }
    }
    // What waited for it goes, or fails.
    seal()
    afterProgress()
  }
}
