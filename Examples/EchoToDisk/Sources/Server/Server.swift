// SPDX-License-Identifier: Apache-2.0
//
// The daemon: sockets, timers and disk on one serial queue. Made and started by `Serve`; everything
// else runs on the loop's queue.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport
import SystemPackage

/// The server of `echo-to-disk serve`.
///
/// - Safety: `@unchecked Sendable` because it is confined to `queue` from `start` on.
final class Server: GracefulServer, @unchecked Sendable {
  struct Settings: Sendable {
    var address: Listener.Address
    /// Where to serve metrics. If `nil`, nowhere.
    var metrics: MetricsAddress?
    var directory: FilePath
    var journal = Journal.Settings()
    var queueDepth = 64
    var maxConnections = 1024
    /// The time after which an idle connection is closed. If `nil`, it never is.
    var idleTimeout: Duration?
    /// The interval of the statistics in the log. If `nil`, they are logged at the end only.
    var statisticsInterval: Duration?
    /// The time that clients have to receive their last echoes when the server shuts down.
    var drainTimeout: Duration = .seconds(10)
  }

  private let settings: Settings
  private let logger: Logger
  let queue = DispatchQueue(label: "echo-to-disk")
  private let context: AIOContext
  let journal: Journal
  private let listener: Listener
  private let acceptor: Acceptor
  private let metrics: MetricsServer?
  private let drainTimer: AIOTimerSource
  private var drainDeadline: ContinuousClock.Instant
  private let clock = ContinuousClock()

  private var connections: [UInt64: Connection] = [:]
  /// The connections that may have something to receive, in the order in which they get their turn.
  private var readyConnections: [Connection] = []
  /// Whether `receiveAll` follows in this turn of the loop.
  private var isReceivePlanned = false
  /// The connections whose first record may not be in the journal yet.
  private var openedConnections: [Connection] = []
  /// The connections that have closed, and whose last record is not in the journal yet.
  private var closedConnections: [Connection] = []
  /// Whether the journal had no room for all of those when that was last tried.
  private var lacksRoomForClosings = false
  /// The longest time that an opening or a closing waits for a batch that somebody waits for: each
  /// batch takes a block of the disk at least.
  private static let recordDelay = Duration.milliseconds(200)
  private let recordTimer: AIOTimerSource
  private enum Recording {
    /// With the next batch. The timer is running if there is something to record.
    case planned
    case due
  }
  private var recording = Recording?.none
  private(set) var isDraining = false
  private var whenEnded: (Int32) -> Void = { _ in }

  var bytesReceived = 0
  var bytesEchoed = 0

  /// The time when this turn of the loop received: exact enough for timeouts, and no call.
  private(set) var now: ContinuousClock.Instant

  /// Opens the listening sockets and the journal. Blocks the calling thread, for as long as it
  /// takes to make a segment.
  init(_ settings: Settings, logger: Logger) throws {
    self.settings = settings
    self.logger = logger
    now = clock.now
    drainDeadline = now
    // First, so that nothing is made on the disk where an address is in use.
    listener = try Listener(settings.address)
    metrics = try settings.metrics.map { try MetricsServer($0, logger: logger) }
    let directory = try JournalDirectory(settings.directory, syncs: settings.journal.syncs)
    for (place, what) in directory.damages {
      logger.error(
        "the journal is damaged: \(place): \(what); see echo-to-disk verify \(settings.directory)")
    }
    if let failure = directory.nameFailure {
      logger.warning(
        """
        the directory that \(settings.directory) is in cannot be read (\(failure)): a power \
        failure may take the journal with it, unless its name is on the disk already
        """)
    }
    if let torn = directory.tornTail {
      logger.notice(
        """
        the last run ended within a batch, at \(torn); nothing of it had been echoed, unless the \
        disk has damaged it since
        """)
    }
    context = try AIOContext(queueDepth: settings.queueDepth, queue: queue)
    logger.logKernel(of: context)
    drainTimer = try context.makeTimerSource()
    recordTimer = try context.makeTimerSource()
    journal = try Journal(
      directory, context: context, settings: settings.journal, logger: logger)
    acceptor = Acceptor([listener], limit: settings.maxConnections, logger: logger)
    logger.info(
      """
      journal in \(settings.directory), next batch \(directory.nextSequence), \
      segments of \(ByteCount(settings.journal.segmentSize))
      """)
  }

  /// The address that the server listens on.
  var address: String { listener.name }

  /// - Throws: `AIOError` if the sockets cannot be watched.
  func start(whenEnded: @escaping @Sendable (Int32) -> Void) throws {
    try queue.sync {
      self.whenEnded = whenEnded
      journal.afterProgress = { [unowned self] in
        // At the end, closings have to be recorded before the journal ends.
        if isDraining { receiveAll() } else { receiveSoon() }
      }
      drainTimer.setEventHandler { [unowned self] in drainConnections() }
      drainTimer.activate()
      recordTimer.setEventHandler { [unowned self] in
        recording = .due
        receiveSoon()
      }
      recordTimer.activate()
      try acceptor.activate(in: context) { [unowned self] in
        // Those that have closed, as idle ones do, take memory as long as the disk hangs.
        connections.count + (lacksRoomForClosings ? closedConnections.count : 0)
      } take: { [unowned self] in
        try accept($0, $1)
      }
      try metrics?.activate(in: context, contexts: [context]) { [unowned self] in
        $0(metricsText)
      }
      if let timeout = settings.idleTimeout {
        _ = try context.every(min(timeout, .seconds(1))) { [unowned self] in closeIdle(timeout) }
      }
      if let age = settings.journal.retention.age {
        let interval = min(max(age, .seconds(1)), .seconds(3600))
        _ = try context.every(interval) { [unowned self] in journal.trim() }
      }
      if let interval = settings.statisticsInterval {
        _ = try context.every(interval) { [unowned self] in logStatistics() }
      }
    }
  }

  // MARK: Connections

  private func accept(_ socket: Int32, _ peer: String) throws {
    now = clock.now
    let connection = try Connection(
      number: journal.newConnection(), peer: peer, socket: socket, server: self,
      context: context)
    connections[connection.number] = connection
    logger.debug("connection \(connection.number) from \(peer)")
    openedConnections.append(connection)
    receiveSoon()
  }

  /// Removes a connection that is about to close.
  ///
  /// - Parameter reason: the fault; `nil` for the normal end.
  func connectionCloses(_ connection: Connection, _ reason: String?) {
    connections[connection.number] = nil
    if let reason {
      logger.warning("connection \(connection.number) from \(connection.peer) closed: \(reason)")
    } else {
      logger.debug("connection \(connection.number) from \(connection.peer) closed")
    }
    closedConnections.append(connection)
    receiveSoon()
    if isDraining && connections.isEmpty { drained() }
  }

  // MARK: Receiving

  /// Adds a connection to those that may have something to receive.
  func markReady(_ connection: Connection) {
    guard !connection.isMarkedReady else { return }
    connection.isMarkedReady = true
    readyConnections.append(connection)
    receiveSoon()
  }

  /// Receives after the handlers of this turn, so that what they have received is one batch.
  private func receiveSoon() {
    guard !isReceivePlanned else { return }
    isReceivePlanned = true
    context.beforeSubmit { [unowned self] in receiveAll() }
  }

  /// Receives from every ready connection, a share from each in turn, until there is nothing left
  /// or the journal has no room; then submits the batch.
  private func receiveAll() {
    now = clock.now
    receiving: while !readyConnections.isEmpty {
      let ready = readyConnections
      readyConnections.removeAll(keepingCapacity: true)
      for (index, connection) in ready.enumerated() {
        connection.isMarkedReady = false
        switch connection.receive() {
        case .nothing: break
        case .more: markReady(connection)
        case .noRoom:
          // Those that had no turn are first the next time.
          readyConnections = ready[index...] + readyConnections
          for connection in readyConnections { connection.isMarkedReady = true }
          break receiving
        }
      }
    }
    recordOpeningsAndClosings()
    // What becomes ready from here on, because a batch has failed, is not received in this call.
    isReceivePlanned = false
    journal.seal()
  }

  /// Records who has opened and closed, which nobody waits for, with a batch that somebody waits
  /// for, or after a while.
  private func recordOpeningsAndClosings() {
    if recording == .due || isDraining || journal.hasOpenBatch {
      // Others may be added meanwhile: those that lose their bytes.
      while let connection = openedConnections.popLast() {
        guard connection.recordOpening() else {
          openedConnections.append(connection)
          break
        }
      }
      while let connection = closedConnections.popLast() {
        guard connection.recordClosing() else {
          closedConnections.append(connection)
          break
        }
      }
      lacksRoomForClosings = !closedConnections.isEmpty
    }
    if openedConnections.isEmpty, closedConnections.isEmpty {
      recording = nil
    } else if recording == nil {
      recording = .planned
      recordTimer.schedule(
        deadline: .now() + Self.recordDelay.dispatchInterval, repeating: .never)
    }
  }

  // MARK: Timers

  private func closeIdle(_ timeout: Duration) {
    now = clock.now
    for connection in connections.values where now - connection.lastActivity >= timeout {
      connection.close("idle for \(timeout)")
    }
  }

  private func logStatistics() {
    let disk = journal.statistics
    let space = journal.space
    let perBatch = disk.batches > 0 ? Double(disk.records) / Double(disk.batches) : 0
    logger.info(
      """
      \(acceptor.statistics); \
      received \(ByteCount(bytesReceived)), echoed \(ByteCount(bytesEchoed)); \
      \(disk.batches) batches, \((perBatch * 10).rounded() / 10) records each, \
      \(ByteCount(disk.bytes)) written, \(disk.failures) failed, \
      slowest \(disk.slowestBatch / 1000) us; \
      \(space.segments) segments, \(ByteCount(space.bytes)) on disk, \
      \(space.trimmedSegments) trimmed
      """)
  }

  private var metricsText: MetricsText {
    let (disk, space) = (journal.statistics, journal.space)
    var text = MetricsText()
    acceptor.addMetrics(to: &text, prefix: "echo_to_disk")
    text.add(.counter, "echo_to_disk_received_bytes_total", "Bytes received.", bytesReceived)
    text.add(.counter, "echo_to_disk_echoed_bytes_total", "Bytes echoed.", bytesEchoed)
    text.add(.counter, "echo_to_disk_batches_total", "Batches given to the disk.", disk.batches)
    text.add(.counter, "echo_to_disk_records_total", "Records in those batches.", disk.records)
    text.add(.counter, "echo_to_disk_written_bytes_total", "Bytes of those batches.", disk.bytes)
    text.add(
      .counter, "echo_to_disk_batches_failed_total", "Batches that failed.", disk.failures)
    text.add(.gauge, "echo_to_disk_segments", "Segments on disk.", space.segments)
    text.add(.gauge, "echo_to_disk_segment_bytes", "Bytes of the segments on disk.", space.bytes)
    text.add(
      .counter, "echo_to_disk_trimmed_segments_total", "Segments that the server has trimmed.",
      space.trimmedSegments)
    text.add(
      .counter, "echo_to_disk_trimmed_bytes_total", "Bytes of those segments.", space.trimmedBytes)
    return text
  }

  // MARK: The end

  func shutDown(because reason: String) {
    guard !isDraining else { return }
    isDraining = true
    logger.notice("\(reason): finishing what is in flight on \(connections.count) connections")
    acceptor.close()
    metrics?.close()
    journal.seal()
    if connections.isEmpty { return drained() }
    drainDeadline = clock.now + settings.drainTimeout
    drainTimer.schedule(deadline: .now(), repeating: .milliseconds(10))
  }

  private func drainConnections() {
    for connection in connections.values { connection.drain() }
    guard !connections.isEmpty, clock.now > drainDeadline else { return }
    logger.warning("\(connections.count) connections did not take their echoes in time")
    for connection in connections.values { connection.close("did not take its echoes") }
  }

  /// Ends the journal and the context when every connection is closed.
  private func drained() {
    receiveAll()
    journal.end { [self] error in
      let status: Int32 = error == nil ? 0 : 1
      context.close { [self] in
        logStatistics()
        logger.notice("done")
        whenEnded(status)
      }
    }
  }
}
