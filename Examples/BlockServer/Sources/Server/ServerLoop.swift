// SPDX-License-Identifier: Apache-2.0
//
// A queue with a context and a share of the connections: sockets and disk in one loop. The server
// calls `add`, `drain` and `report`, from any thread; all else runs on the loop's queue, called by
// its connections and commands.
//
// The context turns: the bytes that sockets have received become commands, and completions become
// replies; then each connection's replies are sent in one `sendmsg` (`work`), and all disk requests
// are submitted in one `io_submit`.
//
// In other files: the execution of requests (+Requests), their turns at the disk (+Disk), unaligned
// writes (+UnalignedWrites), flushes (+Sync), clients that stall (+Stalls), the end (+Shutdown).

import DequeModule
import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to its queue; others hand it work by
///   `context.async`.
final class ServerLoop: ServingLoop, @unchecked Sendable {
  struct Settings: Sendable {
    var queueDepth = 128
    /// The time that a client has to choose an export. If `nil`, it has any.
    var handshakeLimit: Duration? = .seconds(10)
    /// The bytes that the requests of all connections may use together.
    var memory = 512 << 20
    /// How long a client may hold memory without doing its part. If `nil`, it may for ever.
    var stallLimit: Duration? = .seconds(30)
  }

  /// The most requests that wait in the context behind those in the kernel. (The loop submits no
  /// more than the kernel may have, and fdatasyncs.)
  private static let pendingLimit = 1024
  /// The most bytes received at once.
  static let scratchSize = 64 << 10
  /// The most requests to the disk, and replies to a client, at once: few enough that client,
  /// server and disk work at the same time, rather than each waiting for the one before.
  static let burst = 4

  let queue: DispatchQueue
  let context: AIOContext
  let exports: [Export]
  let logger: Logger
  private let handshakeLimit: Duration?
  let stallLimit: Duration?

  /// The memory that sockets are received to.
  let scratch: UnsafeMutableRawBufferPointer
  var pool = BufferPool()
  var memory: LoopMemory
  /// Whether memory was given back in this turn, which connections wait for.
  var memoryWasFreed = false
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
  // The disk: see +Disk.
  /// The number of reads and writes in the context.
  var inFlight = 0
  let mostInFlight: Int
  /// The connections whose requests wait, in the order of their turns.
  var diskTurns: Deque<Connection> = []
  /// Whether a check for stalled clients is planned: see +Stalls.
  var isStallCheckPlanned = false
  /// Whether `work` follows in this turn.
  private var isWorkPlanned = false
  /// Called on the queue when a connection has closed.
  private let whenClosed: @Sendable () -> Void

  // The end: see +Shutdown.
  var isDraining = false
  var whenDrained: (@Sendable (_ isDurable: Bool) -> Void)?
  let drainTimer: AIOTimerSource

  /// - Throws: `AIOError` if a context or a timer cannot be made.
  init(
    number: Int, exports: [Export], settings: Settings, logger: Logger,
    whenClosed: @escaping @Sendable () -> Void
  ) throws {
    queue = DispatchQueue(label: "aio-nbd.loop.\(number)")
    self.exports = exports
    self.logger = logger
    self.whenClosed = whenClosed
    handshakeLimit = settings.handshakeLimit
    stallLimit = settings.stallLimit
    memory = LoopMemory(limit: settings.memory)
    syncs = Array(repeating: SyncQueue(), count: exports.count)
    scratch = .allocate(byteCount: Self.scratchSize, alignment: 4096)
    var options = AIOContext.Options()
    options.minimumQueueDepth = 1
    context = try AIOContext(
      queueDepth: settings.queueDepth, queue: queue,
      pendingLimit: Self.pendingLimit, options: options)
    mostInFlight = context.queueDepth
    drainTimer = try context.makeTimerSource()
  }

  deinit {
    scratch.deallocate()
  }

  // MARK: Connections

  /// Adds a connection. From any thread.
  func add(_ socket: Int32, _ peer: String) {
    context.async { [self] in
      do {
        let connection = try Connection(
          peer: peer, socket: socket, loop: self, handshakeLimit: handshakeLimit)
        connections[ObjectIdentifier(connection)] = connection
        logger.debug("\(peer) connected")
        if isDraining { connection.close(nil) }
      } catch {
        logger.error("cannot watch the connection from \(peer): \(error)")
        Glibc.close(socket)
        whenClosed()
      }
    }
  }

  /// Removes a connection that has closed. Its place is free when its work has ended, too:
  /// `placeIsFree`.
  ///
  /// - Parameter reason: the fault; `nil` for the normal end.
  func closed(_ connection: Connection, _ reason: String?) {
    connections[ObjectIdentifier(connection)] = nil
    if let reason {
      logger.notice("\(connection.peer): connection closed: \(reason)")
    } else {
      logger.debug("\(connection.peer) disconnected")
    }
    endIfDrained()
  }

  /// A connection that has closed has no more work.
  func placeIsFree() { whenClosed() }

  // MARK: The end of a turn

  /// Has a connection send its replies after the handlers of this turn.
  @inline(__always)
  func requestFlush(_ connection: Connection) {
    guard !connection.needsFlush else { return }
    connection.needsFlush = true
    connectionsToFlush.append(connection)
    workSoon()
  }

  /// Has a connection receive after the handlers of this turn.
  func markReady(_ connection: Connection) {
    guard !connection.isMarkedReady else { return }
    connection.isMarkedReady = true
    readyConnections.append(connection)
    workSoon()
  }

  /// A request of the context's has completed.
  @inline(__always)
  func roomWasMade() {
    if !diskTurns.isEmpty || wantsSync { workSoon() }
  }

  /// Makes sure that `work` follows the handlers of this turn, before what they ask for goes down.
  @inline(__always)
  func workSoon() {
    guard !isWorkPlanned else { return }
    isWorkPlanned = true
    context.beforeSubmit { [unowned self] in work() }
  }

  private func work() {
    isWorkPlanned = false
    submitWaiting()
    flushConnections()
    startSyncs()
    wakeWaitingForMemory()
    // Sending makes room, so that it may lead to requests.
    receiveFromReady()
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

  private func wakeWaitingForMemory() {
    guard memoryWasFreed else { return }
    memoryWasFreed = false
    for connection in memory.takeWaiting() { markReady(connection) }
  }

  @inline(__always)
  func recycle(_ command: Command) {
    command.reset()
    commands.give(command)
    if isDraining { endIfDrained() }
  }

  /// Calls back with the loop's statistics, on the queue. From any thread.
  func report(_ body: @escaping @Sendable (LoopStatistics) -> Void) {
    context.async { [self] in body(statistics) }
  }
}
