// SPDX-License-Identifier: Apache-2.0
//
// The daemon: sockets, timers and disk on one serial queue.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport
import SystemPackage

/// - Safety: `@unchecked Sendable` because it is confined to `loop` from `start` on.
final class Server: @unchecked Sendable {
  struct Settings: Sendable {
    var address: Listener.Address
    var directory: FilePath
    var journal = Journal.Settings()
    var queueDepth = 64
    var maxConnections = 1024
    /// `nil`: never.
    var idleTimeout: Duration?
    /// `nil`: never.
    var statisticsInterval: Duration?
    /// How long to look for what comes next before the loop's queue is let go; zero: not at all.
    var polling: Duration = .microseconds(100)
    /// How long connections may take to take their last echoes.
    var drainTimeout: Duration = .seconds(10)
  }

  private let settings: Settings
  private let logger: Logger
  private let loop = DispatchQueue(label: "echo-to-disk")
  private let context: AIOContext
  let journal: Journal
  private let listener: Listener
  /// Set by `start`, as `polling` is; needs the loop.
  private(set) var sockets: SocketSet!
  private var polling: Polling!
  private var signals: ShutdownSignals?
  /// Keeps it alive while it serves, whatever its maker does with its reference.
  private var selfWhileServing: Server?
  private var timers: [any DispatchSourceTimer] = []
  private let clock = ContinuousClock()

  private var connections: [UInt64: Connection] = [:]
  /// Connections that may have something to receive, in order.
  private var line: [Connection] = []
  /// Connections that have closed, and whose last record is not in the journal yet.
  private var closings: [Connection] = []
  private(set) var isDraining = false
  private var exit: (Int32) -> Void = { _ in }

  var bytesReceived = 0
  var bytesEchoed = 0
  private var accepted = 0
  private var refused = 0

  /// The time at the beginning of this turn of the loop: exact enough for timeouts, and free.
  private(set) var now: ContinuousClock.Instant

  /// Opens everything. Blocks the calling thread, for as long as it takes to make a segment.
  init(_ settings: Settings, logger: Logger) throws {
    self.settings = settings
    self.logger = logger
    now = clock.now
    let directory = try JournalDirectory(settings.directory, syncs: settings.journal.syncs)
    for (place, what) in directory.damages {
      logger.error(
        "the journal is damaged: \(place): \(what); see echo-to-disk verify \(settings.directory)")
    }
    if let torn = directory.tornTail {
      logger.notice(
        "the last run ended within a batch, at \(torn); nothing of it had been echoed")
    }
    var options = AIOContext.Options()
    // `polling` looks at the sockets and the completions alike.
    options.waiting = .source
    context = try AIOContext(queueDepth: settings.queueDepth, queue: loop, options: options)
    journal = try Journal(
      directory, context: context, settings: settings.journal, logger: logger)
    listener = try Listener(settings.address)
    logger.info(
      "journal in \(settings.directory), next batch \(directory.nextSequence), segments of \(ByteCount(settings.journal.segmentSize))"
    )
  }

  /// Serves until a signal comes.
  ///
  /// - Parameters:
  ///   - ready: called once with where the server listens.
  ///   - exit: called with the exit status, on the loop.
  func start(
    ready: @escaping @Sendable (String) -> Void, exit: @escaping @Sendable (Int32) -> Void
  ) throws {
    try loop.sync {
      self.exit = exit
      selfWhileServing = self
      sockets = try SocketSet(queue: loop) { [unowned self] tell in
        tell()
        receiveAll()
      }
      polling = Polling(on: loop, longest: settings.polling) { [unowned self] in
        let hasCompletions = context.process() > 0
        return sockets.look() || hasCompletions
      }
      journal.afterProgress = { [unowned self] in receiveAll() }
      signals = ShutdownSignals(queue: loop) { [unowned self] in
        ready(listener.name)
      } handler: { [unowned self] in
        shutDown(because: $0)
      }
      listener.activate(on: loop) { [unowned self] in accept($0) }
      if let timeout = settings.idleTimeout {
        every(min(timeout, .seconds(1))) { [unowned self] in closeIdle(timeout) }
      }
      if let interval = settings.statisticsInterval {
        every(interval) { [unowned self] in logStatistics() }
      }
    }
  }

  private func every(_ interval: Duration, _ body: @escaping () -> Void) {
    let timer = DispatchSource.makeTimerSource(queue: loop)
    let nanoseconds = Int(interval / .nanoseconds(1))
    timer.schedule(
      deadline: .now() + .nanoseconds(nanoseconds), repeating: .nanoseconds(nanoseconds),
      leeway: .milliseconds(10))
    timer.setEventHandler(handler: body)
    timer.activate()
    timers.append(timer)
  }

  // MARK: Connections

  private func accept(_ result: Result<(socket: Int32, peer: String), Errno>) {
    now = clock.now
    switch result {
    case .failure(let errno):
      logger.error("cannot accept a connection: \(errno)")
    case .success(let (socket, peer)):
      guard connections.count < settings.maxConnections else {
        refused += 1
        logger.warning(
          "refused \(peer): \(connections.count) connections are the most (--max-connections)")
        Glibc.close(socket)
        return
      }
      do {
        let connection = try Connection(
          number: journal.newConnection(), peer: peer, socket: socket, server: self,
          sockets: sockets)
        connections[connection.number] = connection
        accepted += 1
        logger.debug("connection \(connection.number) from \(peer)")
        line(up: connection)
        receiveAll()
      } catch {
        logger.error("cannot watch the connection from \(peer): \(error)")
        Glibc.close(socket)
      }
    }
  }

  /// A connection is about to close.
  func closing(_ connection: Connection, _ reason: String?) {
    connections[connection.number] = nil
    if let reason {
      logger.warning("connection \(connection.number) from \(connection.peer) closed: \(reason)")
    } else {
      logger.debug("connection \(connection.number) from \(connection.peer) closed")
    }
    closings.append(connection)
    if isDraining && connections.isEmpty { drained() }
  }

  // MARK: Receiving

  /// With more connections than this the loop does not poll: it is hardly ever idle then, and to
  /// look earlier only makes batches smaller.
  private static let mostPolled = 16

  /// Puts a connection in the line of those that may have something to receive.
  func line(up connection: Connection) {
    guard !connection.isInLine else { return }
    connection.isInLine = true
    line.append(connection)
  }

  /// Receives from every connection in line, a share of each in turn, until there is nothing left
  /// or the journal has no room; then sends on its way what has come together.
  private func receiveAll() {
    now = clock.now
    receiving: while !line.isEmpty {
      let round = line
      line.removeAll(keepingCapacity: true)
      for (index, connection) in round.enumerated() {
        connection.isInLine = false
        switch connection.receive() {
        case .nothing: break
        case .more: line(up: connection)
        case .noRoom:
          // Those who had no turn come first the next time.
          line = round[index...] + line
          for connection in line { connection.isInLine = true }
          break receiving
        }
      }
    }
    while let connection = closings.last, connection.recordClosing() { closings.removeLast() }
    journal.seal()
    if (1...Self.mostPolled).contains(connections.count) { polling.expectMore() }
  }

  // MARK: Timers

  private func closeIdle(_ timeout: Duration) {
    now = clock.now
    for connection in connections.values where now - connection.lastActivity >= timeout {
      connection.close("idle for \(timeout)")
    }
    // Records the closings: nothing else may happen for long.
    receiveAll()
  }

  private func logStatistics() {
    let disk = journal.statistics
    let perBatch = disk.batches > 0 ? Double(disk.records) / Double(disk.batches) : 0
    logger.info(
      """
      \(connections.count) connections, \(accepted) accepted, \(refused) refused; \
      received \(ByteCount(bytesReceived)), echoed \(ByteCount(bytesEchoed)); \
      \(disk.batches) batches, \((perBatch * 10).rounded() / 10) records each, \
      \(ByteCount(disk.bytes)) written, \(disk.failures) failed, \
      slowest \(disk.slowestBatch / 1000) us
      """)
  }

  // MARK: The end

  private func shutDown(because signal: String) {
    guard !isDraining else {
      logger.warning("\(signal) again: not waiting for \(connections.count) connections")
      for connection in connections.values { connection.close("did not take its echoes") }
      return
    }
    isDraining = true
    logger.notice("\(signal): finishing what is in flight on \(connections.count) connections")
    listener.close()
    journal.seal()
    if connections.isEmpty { return drained() }
    every(.milliseconds(10)) { [unowned self] in
      for connection in connections.values { connection.drain() }
    }
    let nanoseconds = Int(settings.drainTimeout / .nanoseconds(1))
    loop.asyncAfter(deadline: .now() + .nanoseconds(nanoseconds)) { [self] in
      guard !connections.isEmpty else { return }
      logger.warning("\(connections.count) connections did not take their echoes in time")
      for connection in connections.values { connection.close("did not take its echoes") }
    }
  }

  /// Every connection is closed.
  private func drained() {
    receiveAll()
    journal.end { [self] in
      context.close { [self] in
        logStatistics()
        logger.notice("done")
        exit(0)
      }
    }
  }
}
