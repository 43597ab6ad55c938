// SPDX-License-Identifier: Apache-2.0
//
// The daemon: listeners, and loops that serve the connections. All of it but the other loops is on
// the first loop's queue, in whose ring connections are accepted. Made and started by the command.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to `queue` from `start` on, but for the
///   loops, which do not change any more then.
final class Server: GracefulServer, @unchecked Sendable {
  private let settings: Settings
  private let logger: Logger
  private var loops: [ServerLoop] = []
  /// The number of connections of each loop.
  private var loads: [Int]
  private let acceptor: Acceptor
  private let metrics: MetricsServer?
  private var isDraining = false
  private var whenEnded: (Int32) -> Void = { _ in }

  private var context: AIOContext { loops[0].context }
  var queue: DispatchQueue { loops[0].queue }

  /// - Throws: `AIOError` if a context cannot be made.
  init(
    root: Root, listeners: [Listener], metrics: MetricsServer? = nil, settings: Settings,
    log: AccessLog.Sink?, logger: Logger
  ) throws {
    (self.settings, self.logger, self.metrics) = (settings, logger, metrics)
    acceptor = Acceptor(listeners, limit: settings.maxConnections, logger: logger)
    loads = Array(repeating: 0, count: settings.loops)
    for number in 0..<settings.loops {
      loops.append(
        try ServerLoop(
          number: number, root: root, settings: settings, log: log, logger: logger,
          whenClosed: { [weak self] in
            guard let self else { return }
            context.async { self.loads[number] -= 1 }
          }))
    }
    logger.logKernel(of: loops[0].context)
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
    }
  }

  /// Gives the numbers of all loops to `reply`, on the queue.
  private func collectMetrics(_ reply: @escaping @Sendable (MetricsText) -> Void) {
    collectStatistics { [self] total in
      var text = MetricsText()
      acceptor.addMetrics(to: &text, prefix: "aio_httpd")
      text.add(.counter, "aio_httpd_requests_total", "Requests answered.", total.requests)
      text.add(
        .counter, "aio_httpd_sent_bytes_total", "Bytes of bodies sent.", Int(total.bytesSent))
      text.add(
        .counter, "aio_httpd_received_bytes_total", "Bytes of uploads received.",
        Int(total.bytesReceived))
      text.add(loops.enumerated().map { ("\($0)", $1.context.statistics) })
      reply(text)
    }
  }

  /// Gathers the statistics of all loops, and calls back with their sum on the queue.
  ///
  /// - Parameter drains: Whether the loops are to be drained before.
  private func collectStatistics(
    drains: Bool = false, _ body: @escaping @Sendable (LoopStatistics) -> Void
  ) {
    let group = DispatchGroup()
    let total = Lock(LoopStatistics())
    for loop in loops {
      group.enter()
      let add: @Sendable (LoopStatistics) -> Void = { one in
        total.withLock { $0 += one }
        group.leave()
      }
      if drains {
        loop.drain(timeout: settings.drainTimeout) { add(loop.statistics) }
      } else {
        loop.report(add)
      }
    }
    group.notify(queue: queue) { body(total.withLock { $0 }) }
  }

  /// Gives a connection to the loop that has the fewest.
  private func assign(_ socket: Int32, _ peer: String) {
    let least = loads.indices.min { loads[$0] < loads[$1] } ?? 0
    loads[least] += 1
    loops[least].add(socket, peer)
  }

  func shutDown(because reason: String) {
    guard !isDraining else { return }
    isDraining = true
    logger.notice("\(reason): answering what is in flight")
    acceptor.close()
    metrics?.close()
    collectStatistics(drains: true) { [self] total in
      logger.info(
        """
        done: \(acceptor.statistics); \(total.requests) requests; \
        sent \(ByteCount(Int(total.bytesSent))), received \(ByteCount(Int(total.bytesReceived)))
        """)
      whenEnded(0)
    }
  }
}
