// SPDX-License-Identifier: Apache-2.0
//
// A queue with a context, and a share of the connections: sockets, timers and disk in one ring. The
// server calls `add`, `drain` and `report`, from any thread; all else runs on the
// loop's queue, called by its connections.

import CServedFiles
import Dispatch
import DispatchAIO
import Glibc
import HTTPRules
import Logging
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to its queue; others use `context.async`.
final class ServerLoop: ServingLoop, @unchecked Sendable {
  /// The most bytes received at once, and kept of a connection that is not answered yet.
  static let scratchSize = 32 << 10
  /// The most bytes of answers that are collected before they are sent.
  static let outputSize = 64 << 10
  /// The most bytes of listings that clients have not taken.
  static let listingLimit = 8 << 20
  /// How precise timeouts are, in nanoseconds.
  private static let timerPrecision: UInt64 = 200_000_000

  /// The time after which is tried again what failed for want of descriptors.
  private static let descriptorInterval = Duration.milliseconds(20)

  let queue: DispatchQueue
  let context: AIOContext
  let root: Root
  let settings: Settings
  let logger: Logger
  /// Set by `init`, because it needs the context.
  private(set) var accessLog: AccessLog?

  /// The memory that sockets are received to.
  let scratch: UnsafeMutableRawBufferPointer
  /// What is sent by the connection whose turn it is; empty between two.
  let output = OutputBuffer(capacity: outputSize)
  var path = TargetPath(bytes: [], isDirectory: false)
  var cache: FileCache
  var buffers = BufferPool()
  var statistics = LoopStatistics()
  /// Bytes of listings that clients have not taken.
  var listingBytes = 0

  /// By the monotonic clock, as of the beginning of this handler.
  private(set) var now: UInt64 = 0
  private(set) var seconds: Int64 = 0
  /// The line of the Date field, and the time as the access log has it.
  private(set) var dateLine: [UInt8] = []
  private(set) var logDate = ""

  /// The number of the context's turn, as far as anybody has asked for it: see `turn`.
  private var turns = 0
  private var isTurnKnown = false

  private var connections: [ObjectIdentifier: Connection] = [:]
  private let timer: AIOTimerSource
  /// When the timer fires; `.max` for never.
  private var timerDeadline = UInt64.max
  /// Requests whose files could not be opened for want of descriptors, in order.
  private var waitingForDescriptor: [() -> Void] = []
  private var lastTicket = 0
  private var isDraining = false
  private var whenDrained: (@Sendable () -> Void)?
  /// Called on the queue when a connection's place is free.
  private let whenClosed: @Sendable () -> Void

  init(
    number: Int, root: Root, settings: Settings, log: AccessLog.Sink?, logger: Logger,
    whenClosed: @escaping @Sendable () -> Void
  ) throws {
    queue = DispatchQueue(label: "aio-httpd.loop.\(number)")
    (self.root, self.settings, self.logger) = (root, settings, logger)
    self.whenClosed = whenClosed
    scratch = .allocate(byteCount: Self.scratchSize, alignment: 64)
    cache = FileCache(capacity: settings.openFiles)
    var options = AIOContext.Options()
    options.minimumQueueDepth = 1
    // Room for all: a connection has one request at a time, until whose end its place is not
    // another's, and the log has one.
    context = try AIOContext(
      queueDepth: settings.queueDepth, queue: queue, pendingLimit: settings.maxConnections + 16,
      options: options)
    timer = try context.makeTimerSource()
    if let log {
      accessLog = AccessLog(log, context: context, rate: settings.accessLogRate, logger: logger)
    }
    timer.setEventHandler { [unowned self] in checkDeadlines() }
    timer.activate()
    refreshTime()
  }

  deinit { scratch.deallocate() }

  /// A handler begins: what time it is.
  @inline(__always)
  func refreshTime() {
    now = cserved_coarse_nanoseconds()
    let seconds = Int64(time(nil))
    if seconds != self.seconds { secondBegan(seconds) }
  }

  /// A number that is the same for all handlers between two submissions of the context, from 1.
  var turn: Int {
    if !isTurnKnown {
      isTurnKnown = true
      turns += 1
      context.beforeSubmit { [unowned self] in isTurnKnown = false }
    }
    return turns
  }

  private func secondBegan(_ seconds: Int64) {
    self.seconds = seconds
    dateLine = Array("Date: \(HTTPDate.text(seconds))\r\n".utf8)
    logDate = HTTPDate.logText(seconds)
  }

  // MARK: Connections

  /// Adds a connection. From any thread.
  func add(_ socket: Int32, _ peer: String) {
    context.async { [self] in
      refreshTime()
      do throws(AIOError) {
        let connection = try Connection(socket: socket, peer: peer, loop: self)
        connections[ObjectIdentifier(connection)] = connection
        connection.start()
        if isDraining { connection.drain() }
      } catch {
        logger.error("cannot watch the connection from \(peer): \(error)")
        Glibc.close(socket)
        whenClosed()
      }
    }
  }

  /// Removes a connection that has closed. Its place is not free before `placeIsFree`.
  func closed(_ connection: Connection) {
    connections[ObjectIdentifier(connection)] = nil
    endIfDrained()
  }

  /// All that a connection that has closed was waiting for has come back.
  func placeIsFree() { whenClosed() }

  /// A number that no other request of the loop has.
  func nextTicket() -> Int {
    lastTicket += 1
    return lastTicket
  }

  /// Runs `work` where it may sleep in a disk, to look up a path for the first time, to list, to
  /// rename, and `body` with its result on the loop's queue.
  func offload<Value>(
    _ work: @escaping @Sendable () -> Value, then body: @escaping @Sendable (Value) -> Void
  ) where Value: Sendable {
    BlockingCalls.run(on: nil) { [context] in
      let value = work()
      context.async { body(value) }
    }
  }

  // MARK: Descriptors

  /// Runs a block when there may be a descriptor, which answers that end give back, and files that
  /// were kept open for nobody.
  func waitForDescriptor(_ body: @escaping () -> Void) {
    cache.removeAll()
    waitingForDescriptor.append(body)
    guard waitingForDescriptor.count == 1 else { return }
    logger.warning("no descriptor to open a file with: answers wait (`ulimit -n`, fs.file-max)")
    retryLater()
  }

  private func retryLater() {
    // It cannot fail: the context has timers. When it closes, connections close before.
    _ = try? context.once(after: Self.descriptorInterval) { [weak self] in
      self?.retryForDescriptors()
    }
  }

  /// Runs what waits, until one of it has to wait on.
  private func retryForDescriptors() {
    refreshTime()
    let waiting = waitingForDescriptor
    waitingForDescriptor = []
    var next = 0
    while next < waiting.count, waitingForDescriptor.isEmpty {
      waiting[next]()
      next += 1
    }
    let isRetried = !waitingForDescriptor.isEmpty
    waitingForDescriptor += waiting[next...]
    if !isRetried, !waitingForDescriptor.isEmpty { retryLater() }
  }

  // MARK: Timeouts

  /// A connection waits until a time at the most.
  @inline(__always)
  func watch(_ deadline: UInt64) {
    if deadline < timerDeadline { setTimer(deadline) }
  }

  private func setTimer(_ deadline: UInt64) {
    timerDeadline = deadline
    timer.schedule(deadline: DispatchTime(uptimeNanoseconds: deadline))
  }

  private func checkDeadlines() {
    refreshTime()
    timerDeadline = .max
    var next = UInt64.max
    for connection in Array(connections.values) {
      if connection.deadline <= now { connection.expired() }
      next = min(next, connection.deadline)
    }
    // A file that is open for nobody is closed at the next opportunity, which is soon while there
    // are connections.
    cache.removeStale(now: now)
    if next < .max { setTimer(max(next, now + Self.timerPrecision)) }
  }

  // MARK: The end

  /// Answers what has been received, closes every connection and the context, then calls back. From
  /// any thread.
  func drain(timeout: Duration, _ completion: @escaping @Sendable () -> Void) {
    context.async { [self] in
      refreshTime()
      isDraining = true
      whenDrained = completion
      // It cannot fail: the context has timers, and is open.
      _ = try? context.once(after: timeout) { [weak self] in self?.forceClose() }
      for connection in Array(connections.values) { connection.drain() }
      endIfDrained()
    }
  }

  /// Closes every connection without waiting for its client. From any thread.
  private func forceClose() {
    context.async { [self] in
      for connection in Array(connections.values) { connection.close() }
      // For the access log nobody waits any more, either.
      accessLog = nil
      endIfDrained()
    }
  }

  private func endIfDrained() {
    guard isDraining, connections.isEmpty, whenDrained != nil,
      accessLog?.finish({ [self] in endIfDrained() }) ?? true, let completion = whenDrained
    else { return }
    whenDrained = nil
    cache.removeAll()
    timer.cancel()
    context.close(completion: completion)
  }

  /// Calls back with the loop's statistics, on the queue. From any thread.
  func report(_ body: @escaping @Sendable (LoopStatistics) -> Void) {
    context.async { [self] in body(statistics) }
  }
}

/// What a loop has done.
struct LoopStatistics: Sendable {
  var requests = 0
  var bytesSent = 0
  var bytesReceived = 0

  static func += (a: inout LoopStatistics, b: LoopStatistics) {
    a.requests += b.requests
    a.bytesSent += b.bytesSent
    a.bytesReceived += b.bytesReceived
  }
}
