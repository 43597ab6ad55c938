// SPDX-License-Identifier: Apache-2.0
//
// A queue with a context and a share of the connections: sockets and disk in one loop. The server
// calls `add`, `drain`, `forceClose` and `report`, from any thread; all else runs on the loop's
// queue, called by its connections and commands.
//
// A turn of the loop: the bytes that sockets have received become commands; all their disk requests
// are submitted in one `io_submit`; the completions become replies; each connection's replies are
// sent in one `sendmsg`.
//
// In other files: the execution of requests (+Requests), unaligned writes (+UnalignedWrites),
// flushes (+Sync), the end (+Shutdown).

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to its queue; others `post` to its
///   sockets.
final class ServerLoop: @unchecked Sendable {
  struct Settings: Sendable {
    var queueDepth = 128
    var linger = Duration.microseconds(500)
    /// The time that a client has to choose an export. If `nil`, it has any.
    var handshakeLimit: Duration? = .seconds(10)
  }

  /// The most disk requests that wait in the context behind those in the kernel. Those beyond wait
  /// in `retries`.
  private static let pendingLimit = 4096
  /// The most bytes received at once.
  static let scratchSize = 64 << 10
  /// The most requests to the disk, and replies to a client, at once: few enough that client,
  /// server and disk work at the same time, rather than each waiting for the one before.
  static let burst = 4
  /// The most bursts in a turn. Then the sockets have their turn.
  private static let mostRounds = 4

  let queue: DispatchQueue
  let context: AIOContext
  let exports: [Export]
  let logger: Logger
  /// Set by `init`, because it needs the loop; never `nil` afterwards.
  private(set) var sockets: SocketSet!
  private let handshakeLimit: Duration?

  /// The memory that sockets are received to.
  let scratch: UnsafeMutableRawBufferPointer
  var pool = BufferPool()
  var commands = CommandPool()
  /// The fdatasyncs of each export.
  var syncs: [SyncQueue]
  var wantsSync = false
  var statistics = LoopStatistics()

  private(set) var connections: [ObjectIdentifier: Connection] = [:]
  /// The connections that have replies to send.
  private var connectionsToFlush: [Connection] = []
  /// The connections that may continue to receive.
  private var readyConnections: [Connection] = []
  /// Closures that make the requests for which the context had no room.
  private var retries: [() -> Void] = []
  private var isTurnScheduled = false
  private var isYielding = false
  /// Called on the queue when a connection has closed.
  private let whenClosed: @Sendable () -> Void

  // The end: see +Shutdown.
  var isDraining = false
  var whenDrained: (@Sendable (_ isDurable: Bool) -> Void)?
  var drainTimer: (any DispatchSourceTimer)?

  /// - Throws: `AIOError` if a context cannot be made, `Errno` if an epoll set cannot.
  init(
    number: Int, exports: [Export], settings: Settings, logger: Logger,
    whenClosed: @escaping @Sendable () -> Void
  ) throws {
    queue = DispatchQueue(label: "aio-nbd.loop.\(number)")
    self.exports = exports
    self.logger = logger
    self.whenClosed = whenClosed
    handshakeLimit = settings.handshakeLimit
    syncs = Array(repeating: SyncQueue(), count: exports.count)
    scratch = .allocate(byteCount: Self.scratchSize, alignment: 4096)
    var options = AIOContext.Options()
    options.minimumQueueDepth = 1
    // The set waits for sockets and completions together.
    options.waiting = .source
    context = try AIOContext(
      queueDepth: settings.queueDepth, queue: queue,
      pendingLimit: Self.pendingLimit, options: options)
    sockets = try SocketSet(
      queue: queue, linger: settings.linger,
      companion: context.completionDescriptor.rawValue
    ) { [unowned self] in turn($0) }
  }

  deinit {
    scratch.deallocate()
  }

  // MARK: Connections

  /// Adds a connection. From any thread.
  func add(_ socket: Int32, _ peer: String) {
    sockets.post { [self] in
      do {
        let connection = try Connection(peer: peer, socket: socket, loop: self)
        connections[ObjectIdentifier(connection)] = connection
        logger.debug("\(peer) connected")
        if isDraining { connection.close(nil) }
        limitHandshake(of: connection)
      } catch {
        logger.error("cannot watch the connection from \(peer): \(error)")
        Glibc.close(socket)
        whenClosed()
      }
    }
  }

  /// Closes the connection later if it has not chosen an export by then, so that it does not take
  /// the place of one that would.
  private func limitHandshake(of connection: Connection) {
    guard let limit = handshakeLimit else { return }
    let (id, opened) = (ObjectIdentifier(connection), connection.opened)
    queue.asyncAfter(deadline: .now() + limit.dispatchInterval) { [weak self] in
      // Another connection may have the same identity by now, but not the same time.
      guard let connection = self?.connections[id], connection.opened == opened,
        !connection.hasEntered
      else { return }
      connection.close("has chosen no export within \(limit) (--handshake-limit)")
    }
  }

  /// Removes a connection that has closed.
  ///
  /// - Parameter reason: the fault; `nil` for the normal end.
  func closed(_ connection: Connection, _ reason: String?) {
    connections[ObjectIdentifier(connection)] = nil
    if let reason {
      logger.notice("\(connection.peer): connection closed: \(reason)")
    } else {
      logger.debug("\(connection.peer) disconnected")
    }
    whenClosed()
    endIfDrained()
  }

  // MARK: The turn

  /// - Parameter tell: tells the connections what their sockets are ready for.
  private func turn(_ tell: () -> Void) {
    context.process(after: {
      submitRetries()
      tell()
    })
    var rounds = 0
    while !connectionsToFlush.isEmpty || !readyConnections.isEmpty || wantsSync {
      rounds += 1
      guard rounds <= Self.mostRounds else { return yield() }
      // Sending makes room, so that it may lead to requests.
      context.process(after: {
        flushConnections()
        startSyncs()
        receiveFromReady()
      })
    }
  }

  /// Gives others on the queue, and sockets that are ready, their turn before the next.
  private func yield() {
    guard !isYielding else { return }
    isYielding = true
    sockets.post { [self] in isYielding = false }
  }

  private func flushConnections() {
    let connections = connectionsToFlush
    connectionsToFlush.removeAll(keepingCapacity: true)
    for connection in connections {
      connection.needsFlush = false
      connection.flush()
    }
  }

  private func receiveFromReady() {
    let ready = readyConnections
    readyConnections.removeAll(keepingCapacity: true)
    for connection in ready {
      connection.isMarkedReady = false
      connection.receive()
    }
  }

  private func submitRetries() {
    guard !retries.isEmpty else { return }
    let requests = retries
    retries.removeAll(keepingCapacity: true)
    for request in requests { request() }
  }

  /// Makes sure that a turn follows, if this is not called within one.
  @inline(__always)
  func scheduleTurn() {
    guard !sockets.isLooking, !isTurnScheduled else { return }
    isTurnScheduled = true
    queue.async { [self] in
      isTurnScheduled = false
      sockets.look()
    }
  }

  /// Has a connection send its replies at the end of the turn.
  @inline(__always)
  func requestFlush(_ connection: Connection) {
    guard !connection.needsFlush else { return }
    connection.needsFlush = true
    connectionsToFlush.append(connection)
    scheduleTurn()
  }

  /// Has a connection receive in a later round or turn.
  func markReady(_ connection: Connection) {
    guard !connection.isMarkedReady else { return }
    connection.isMarkedReady = true
    readyConnections.append(connection)
    scheduleTurn()
  }

  /// Calls `submit` in the next turn: for a request that the context had no room for.
  func retryLater(_ submit: @escaping () -> Void) {
    retries.append(submit)
    scheduleTurn()
  }

  @inline(__always)
  func recycle(_ command: Command) {
    command.reset()
    commands.give(command)
    if isDraining { endIfDrained() }
  }

  /// Calls back with the loop's statistics, on the queue. From any thread.
  func report(_ body: @escaping @Sendable (LoopStatistics) -> Void) {
    sockets.post { [self] in body(statistics) }
  }
}
