// SPDX-License-Identifier: Apache-2.0
//
// The daemon: listeners and signals, and loops that serve the connections. All of it but the other
// loops is on the first loop's queue, in whose ring connections are accepted. Made and started by
// the command.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to `queue` from `start` on, but for the
///   loops, which do not change any more then.
final class Server: @unchecked Sendable {
  private let settings: Settings
  private let logger: Logger
  private var loops: [ServerLoop] = []
  /// The number of connections of each loop.
  private var loads: [Int]
  private let acceptor: Acceptor
  private var signals: ShutdownSignals?
  private var isDraining = false
  private var exit: (Int32) -> Void = { _ in }
  /// A reference to itself while it serves, so that its maker need not keep one.
  private var selfWhileServing: Server?

  private var context: AIOContext { loops[0].context }
  private var queue: DispatchQueue { loops[0].queue }

  /// - Throws: `AIOError` if a context cannot be made.
  init(
    root: Root, listeners: [Listener], settings: Settings, log: AccessLog.Sink?, logger: Logger
  ) throws {
    (self.settings, self.logger) = (settings, logger)
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
  }

  /// Serves until SIGTERM or SIGINT.
  ///
  /// - Parameters:
  ///   - ready: called once, when connections and signals are handled.
  ///   - exit: called with the exit status.
  /// - Throws: `AIOError` if the listeners cannot be watched.
  func start(
    ready: @escaping @Sendable () -> Void, exit: @escaping @Sendable (Int32) -> Void
  ) throws {
    try queue.sync {
      self.exit = exit
      selfWhileServing = self
      signals = ShutdownSignals(queue: queue, whenInstalled: ready) { [unowned self] _, name in
        shutDown(because: name)
      }
      try acceptor.activate(in: context) { [unowned self] in
        loads.reduce(0, +)
      } take: { [unowned self] in
        assign($0, $1)
      }
    }
  }

  /// Gives a connection to the loop that has the fewest.
  private func assign(_ socket: Int32, _ peer: String) {
    let least = loads.indices.min { loads[$0] < loads[$1] } ?? 0
    loads[least] += 1
    loops[least].add(socket, peer)
  }

  private func shutDown(because signal: String) {
    guard !isDraining else {
      logger.warning("\(signal) again: waiting for nobody")
      for loop in loops { loop.forceClose() }
      return
    }
    isDraining = true
    logger.notice("\(signal): answering what is in flight")
    acceptor.close()
    let group = DispatchGroup()
    let total = Lock(LoopStatistics())
    for loop in loops {
      group.enter()
      loop.drain(timeout: settings.drainTimeout) {
        total.withLock { $0 += loop.statistics }
        group.leave()
      }
    }
    group.notify(queue: queue) { [self] in
      let total = total.withLock { $0 }
      logger.info(
        """
        done: \(acceptor.statistics); \(total.requests) requests; \
        sent \(ByteCount(Int(total.bytesSent))), received \(ByteCount(Int(total.bytesReceived)))
        """)
      selfWhileServing = nil
      exit(0)
    }
  }
}
