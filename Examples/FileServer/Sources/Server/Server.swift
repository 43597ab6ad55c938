// SPDX-License-Identifier: Apache-2.0
//
// The daemon: listeners, and loops that serve the connections. All of it but the other loops is on
// the first loop's queue, in whose ring connections are accepted. Made and started by the command.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to `queue` from `start` on.
final class Server: GracefulServer, @unchecked Sendable {
  private let settings: Settings
  private let logger: Logger
  private let loops: ServingLoops<ServerLoop>
  private let acceptor: Acceptor
  private let metrics: MetricsServer?
  private var isDraining = false
  private var whenEnded: (Int32) -> Void = { _ in }

  var queue: DispatchQueue { loops.queue }

  /// - Throws: `AIOError` if a context cannot be made.
  init(
    root: Root, listeners: [Listener], metrics: MetricsServer? = nil, settings: Settings,
    log: AccessLog.Sink?, logger: Logger
  ) throws {
    (self.settings, self.logger, self.metrics) = (settings, logger, metrics)
    acceptor = Acceptor(listeners, limit: settings.maxConnections, logger: logger)
    loops = try ServingLoops(count: settings.loops) { number, whenClosed in
      try ServerLoop(
        number: number, root: root, settings: settings, log: log, logger: logger,
        whenClosed: whenClosed)
    }
    logger.logKernel(of: loops.context)
  }

  /// - Throws: `AIOError` if the listeners cannot be watched.
  func start(whenEnded: @escaping @Sendable (Int32) -> Void) throws {
    try queue.sync {
      self.whenEnded = whenEnded
      try loops.activate(acceptor)
      try metrics?.activate(in: loops.context, contexts: loops.contexts) { [unowned self] in
        collectMetrics($0)
      }
    }
  }

  /// Gives the server's own numbers to `reply`, on the queue.
  private func collectMetrics(_ reply: @escaping @Sendable (MetricsText) -> Void) {
    loops.gather(LoopStatistics(), +=) {
      $0.report($1)
    } then: { [self] total in
      var text = MetricsText()
      acceptor.addMetrics(to: &text, prefix: "aio_httpd")
      text.add(.counter, "aio_httpd_requests_total", "Requests answered.", total.requests)
      text.add(.counter, "aio_httpd_sent_bytes_total", "Bytes of bodies sent.", total.bytesSent)
      text.add(
        .counter, "aio_httpd_received_bytes_total", "Bytes of uploads received.",
        total.bytesReceived)
      reply(text)
    }
  }

  func shutDown(because reason: String) {
    guard !isDraining else { return }
    isDraining = true
    logger.notice("\(reason): answering what is in flight")
    acceptor.close()
    metrics?.close()
    loops.gather(LoopStatistics(), +=) { loop, reply in
      loop.drain(timeout: settings.drainTimeout) { reply(loop.statistics) }
    } then: { [self] total in
      logger.info(
        """
        done: \(acceptor.statistics); \(total.requests) requests; \
        sent \(ByteCount(total.bytesSent)), received \(ByteCount(total.bytesReceived))
        """)
      whenEnded(0)
    }
  }
}
