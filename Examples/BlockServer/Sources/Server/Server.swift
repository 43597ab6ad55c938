// SPDX-License-Identifier: Apache-2.0
//
// The daemon: listeners, and loops that serve the connections. All of it but the other loops is on
// the first loop's queue, in whose ring connections are accepted. Made and started by `Serve`.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to `queue` from `start` on, but for the
///   loops, which do not change any more then.
final class Server: GracefulServer, @unchecked Sendable {
  struct Settings: Sendable {
    var loops = 1
    var loop = ServerLoop.Settings()
    var maxConnections = 256
    /// The interval of the statistics in the log. If `nil`, they are logged at the end only.
    var statisticsInterval: Duration?
    /// The time that clients have to receive their last answers when the server shuts down.
    var drainTimeout: Duration = .seconds(10)
    /// Whether to end when the last connection has closed.
    var endsWhenUnused = false
  }

  private let settings: Settings
  private let logger: Logger
  private var loops: [ServerLoop] = []
  /// The number of connections of each loop.
  private var loads: [Int]
  private let acceptor: Acceptor
  private let metrics: MetricsServer?
  /// A connection that existed before the server.
  private let connection: (socket: Int32, peer: String)?
  private var isDraining = false
  private var whenEnded: (Int32) -> Void = { _ in }

  private var context: AIOContext { loops[0].context }
  var queue: DispatchQueue { loops[0].queue }

  /// - Parameter connection: a connection that exists already.
  /// - Throws: `AIOError` if a context cannot be made.
  init(
    exports: [Export], listeners: [Listener], connection: (socket: Int32, peer: String)? = nil,
    metrics: MetricsServer? = nil, settings: Settings, logger: Logger
  ) throws {
    (self.settings, self.logger, self.metrics) = (settings, logger, metrics)
    self.connection = connection
    acceptor = Acceptor(listeners, limit: settings.maxConnections, logger: logger)
    loads = Array(repeating: 0, count: settings.loops)
    for number in 0..<settings.loops {
      loops.append(
        try ServerLoop(
          number: number, exports: exports, settings: settings.loop, logger: logger,
          whenClosed: { [weak self] in
            guard let self else { return }
            context.async { self.closed(on: number) }
          }))
    }
    logger.logKernel(of: loops[0].context)
    for export in exports {
      if export.size == 0 {
        logger.warning(
          "\(export.path) has 0 bytes; to give it a size: truncate -s 1G \(export.path)")
      }
      logger.info(
        """
        serving \(export.path) as '\(export.description.name)': \
        \(ByteCount(Int(export.size)))\(export.description.isReadOnly ? ", read-only" : ""), \
        \(export.file.caching == .direct ? "direct, blocks of \(export.block)" : "buffered")
        """)
    }
  }

  /// - Throws: `AIOError` if the listeners cannot be watched.
  func start(whenEnded: @escaping @Sendable (Int32) -> Void) throws {
    try queue.sync {
      self.whenEnded = whenEnded
      try acceptor.activate(in: context) { [unowned self] in
        loads.reduce(0, +)
      } take: { [unowned self] in
        assign($0, $1)
      }
      try metrics?.activate(in: context) { [unowned self] in collectMetrics($0) }
      if let interval = settings.statisticsInterval {
        _ = try context.every(interval) { [unowned self] in logStatistics {} }
      }
      if let connection { acceptor.accept(connection.socket, connection.peer) }
    }
  }

  /// Gives a connection to the loop that has the fewest.
  private func assign(_ socket: Int32, _ peer: String) {
    let least = loads.indices.min { loads[$0] < loads[$1] } ?? 0
    loads[least] += 1
    loops[least].add(socket, peer)
  }

  private func closed(on loop: Int) {
    loads[loop] -= 1
    if settings.endsWhenUnused && !isDraining && loads.allSatisfy({ $0 == 0 }) {
      isDraining = true
      end()
    }
  }

  /// Gathers the statistics of all loops, and calls back with their sum on the queue.
  private func total(_ body: @escaping @Sendable (LoopStatistics) -> Void) {
    let group = DispatchGroup()
    let total = Lock(LoopStatistics())
    for loop in loops {
      group.enter()
      loop.report { one in
        total.withLock { $0 += one }
        group.leave()
      }
    }
    group.notify(queue: queue) { body(total.withLock { $0 }) }
  }

  /// Gives the numbers of all loops to `reply`, on the queue.
  private func collectMetrics(_ reply: @escaping @Sendable (MetricsText) -> Void) {
    total { [self] total in
      var text = MetricsText()
      acceptor.addMetrics(to: &text, prefix: "aio_nbd")
      text.add(.counter, "aio_nbd_requests_total", "Requests answered.", total.requests)
      text.add(
        .counter, "aio_nbd_requests_failed_total", "Requests that failed.", total.failures)
      text.add(.counter, "aio_nbd_syncs_total", "Calls of fdatasync.", total.syncs)
      text.add(
        .counter, "aio_nbd_received_bytes_total", "Bytes received.", total.bytesReceived)
      text.add(.counter, "aio_nbd_sent_bytes_total", "Bytes sent.", total.bytesSent)
      text.add(loops.enumerated().map { ("\($0)", $1.context.statistics) })
      reply(text)
    }
  }

  private func logStatistics(_ completion: @escaping @Sendable () -> Void) {
    total { [self] total in
      logger.info(
        """
        \(acceptor.statistics); \
        \(total.requests) requests, \(total.failures) failed, \(total.syncs) syncs; \
        received \(ByteCount(total.bytesReceived)), sent \(ByteCount(total.bytesSent))
        """)
      completion()
    }
  }

  func shutDown(because reason: String) {
    guard !isDraining else { return }
    isDraining = true
    logger.notice("\(reason): answering what is in flight")
    end()
  }

  private func end() {
    acceptor.close()
    metrics?.close()
    logStatistics { [self] in
      let group = DispatchGroup()
      let isDurable = Lock(true)
      for loop in loops {
        group.enter()
        loop.drain(timeout: settings.drainTimeout) { isLoopDurable in
          if !isLoopDurable { isDurable.withLock { $0 = false } }
          group.leave()
        }
      }
      group.notify(queue: queue) { [self] in
        logger.info("done")
        whenEnded(isDurable.withLock { $0 } ? 0 : 1)
      }
    }
  }
}
