// SPDX-License-Identifier: Apache-2.0
//
// The daemon: listeners, and loops that serve the connections. All of it but the other loops is on
// the first loop's queue, in whose ring connections are accepted. Made and started by `Serve`.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to `queue` from `start` on.
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
  private let loops: ServingLoops<ServerLoop>
  private let acceptor: Acceptor
  private let metrics: MetricsServer?
  /// A connection that existed before the server.
  private let connection: (socket: Int32, peer: String)?
  private var isDraining = false
  private var whenEnded: (Int32) -> Void = { _ in }

  var queue: DispatchQueue { loops.queue }

  /// - Parameter connection: a connection that exists already.
  /// - Throws: `AIOError` if a context cannot be made.
  init(
    exports: [Export], listeners: [Listener], connection: (socket: Int32, peer: String)? = nil,
    metrics: MetricsServer? = nil, settings: Settings, logger: Logger
  ) throws {
    (self.settings, self.logger, self.metrics) = (settings, logger, metrics)
    self.connection = connection
    acceptor = Acceptor(listeners, limit: settings.maxConnections, logger: logger)
    loops = try ServingLoops(count: settings.loops) { number, whenClosed in
      try ServerLoop(
        number: number, exports: exports, settings: settings.loop, logger: logger,
        whenClosed: whenClosed)
    }
    logger.logKernel(of: loops.context)
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
      if settings.endsWhenUnused { loops.onClosed { [weak self] in self?.endIfUnused() } }
      try loops.activate(acceptor)
      try metrics?.activate(in: loops.context, contexts: loops.contexts) { [unowned self] in
        collectMetrics($0)
      }
      if let interval = settings.statisticsInterval {
        _ = try loops.context.every(interval) { [unowned self] in logStatistics {} }
      }
      if let connection { acceptor.accept(connection.socket, connection.peer) }
    }
  }

  /// Ends when the last connection has closed.
  private func endIfUnused() {
    guard !isDraining, loops.connections == 0 else { return }
    isDraining = true
    end()
  }

  /// Gathers the statistics of all loops, and calls back with their sum on the queue.
  private func total(_ body: @escaping @Sendable (LoopStatistics) -> Void) {
    loops.gather(LoopStatistics(), +=, { $0.report($1) }, then: body)
  }

  /// Gives the server's own numbers to `reply`, on the queue.
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
      loops.gather(true) {
        $0 = $0 && $1
      } _: {
        $0.drain(timeout: settings.drainTimeout, $1)
      } then: { [self] isDurable in
        logger.info("done")
        whenEnded(isDurable ? 0 : 1)
      }
    }
  }
}
