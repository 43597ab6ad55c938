// SPDX-License-Identifier: Apache-2.0
//
// The daemon: listeners and signals on a queue of their own, and loops that serve the connections.

import CSockets
import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport
import SystemPackage

/// - Safety: `@unchecked Sendable` because it is confined to `queue` from `start` on.
final class Server: @unchecked Sendable {
  struct Settings: Sendable {
    var loops = 1
    var loop = ServerLoop.Settings()
    var maxConnections = 256
    /// `nil`: never.
    var statisticsInterval: Duration?
    /// How long clients may take to take their last answers.
    var drainTimeout: Duration = .seconds(10)
    /// Whether to end when the last connection has closed.
    var endsWhenUnused = false
  }

  private let settings: Settings
  private let logger: Logger
  private let queue = DispatchQueue(label: "aio-nbd")
  private var loops: [ServerLoop] = []
  /// How many connections each loop has.
  private var loads: [Int]
  private let listeners: [Listener]
  private var signals: ShutdownSignals?
  private var timer: (any DispatchSourceTimer)?
  private var isDraining = false
  private var accepted = 0
  private var refused = 0
  private var exit: (Int32) -> Void = { _ in }
  /// Keeps it alive while it serves, whatever its maker does with its reference.
  private var selfWhileServing: Server?

  /// - Throws: `AIOError` when a context cannot be had.
  init(
    exports: [Export], listeners: [Listener], settings: Settings, logger: Logger
  ) throws {
    (self.settings, self.logger, self.listeners) = (settings, logger, listeners)
    loads = Array(repeating: 0, count: settings.loops)
    for number in 0..<settings.loops {
      loops.append(
        try ServerLoop(
          number: number, exports: exports, settings: settings.loop, logger: logger,
          whenClosed: { [weak self] in
            guard let self else { return }
            queue.async { self.closed(on: number) }
          }))
    }
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

  /// Serves until a signal comes.
  ///
  /// - Parameters:
  ///   - connection: one that is there already.
  ///   - ready: called once connections and signals are taken.
  ///   - exit: called with the exit status.
  func start(
    connection: (socket: Int32, peer: String)? = nil, ready: @escaping @Sendable () -> Void,
    exit: @escaping @Sendable (Int32) -> Void
  ) {
    queue.sync {
      self.exit = exit
      selfWhileServing = self
      signals = ShutdownSignals(queue: queue, whenInstalled: ready) { [unowned self] in
        shutDown(because: $0)
      }
      for listener in listeners {
        listener.activate(on: queue) { [unowned self] in accept($0) }
      }
      if let interval = settings.statisticsInterval {
        let timer = DispatchSource.makeTimerSource(queue: queue)
        let nanoseconds = DispatchTimeInterval.nanoseconds(Int(interval / .nanoseconds(1)))
        timer.schedule(deadline: .now() + nanoseconds, repeating: nanoseconds)
        timer.setEventHandler { [unowned self] in logStatistics {} }
        timer.activate()
        self.timer = timer
      }
      if let connection { accept(.success(connection)) }
    }
  }

  private func accept(_ result: Result<(socket: Int32, peer: String), Errno>) {
    switch result {
    case .failure(let errno):
      logger.error("cannot accept a connection: \(errno)")
    case .success(let (socket, peer)):
      let count = loads.reduce(0, +)
      guard count < settings.maxConnections else {
        refused += 1
        logger.warning("refused \(peer): \(count) connections are the most (--max-connections)")
        Glibc.close(socket)
        return
      }
      accepted += 1
      let least = loads.indices.min { loads[$0] < loads[$1] } ?? 0
      loads[least] += 1
      loops[least].add(socket, peer)
    }
  }

  private func closed(on loop: Int) {
    loads[loop] -= 1
    if settings.endsWhenUnused && !isDraining && loads.allSatisfy({ $0 == 0 }) {
      isDraining = true
      end()
    }
  }

  private func logStatistics(_ completion: @escaping @Sendable () -> Void) {
    let group = DispatchGroup()
    let total = Lock(ServerLoop.Statistics())
    for loop in loops {
      group.enter()
      loop.report { one in
        total.withLock { $0 += one }
        group.leave()
      }
    }
    let (logger, accepted, refused) = (logger, accepted, refused)
    group.notify(queue: queue) {
      let total = total.withLock { $0 }
      logger.info(
        """
        \(total.connections) connections, \(accepted) accepted, \(refused) refused; \
        \(total.requests) requests, \(total.failures) failed, \(total.syncs) syncs; \
        received \(ByteCount(total.bytesReceived)), sent \(ByteCount(total.bytesSent))
        """)
      completion()
    }
  }

  private func shutDown(because signal: String) {
    guard !isDraining else {
      logger.warning("\(signal) again: waiting for nobody")
      for loop in loops { loop.hurry() }
      return
    }
    isDraining = true
    logger.notice("\(signal): answering what is in flight")
    end()
  }

  private func end() {
    for listener in listeners { listener.close() }
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
        selfWhileServing = nil
        exit(isDurable.withLock { $0 } ? 0 : 1)
      }
    }
  }
}
