// SPDX-License-Identifier: Apache-2.0
//
// A queue with a context and a share of the connections: sockets and disk in one loop.
//
// A turn of the loop: what the sockets have brought becomes commands; all their disk requests go
// down in one `io_submit`; the completions that are there become replies; each connection's replies
// go out in one `sendmsg`.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport
import SystemPackage

/// - Safety: `@unchecked Sendable` because it is confined to its queue; others `post` to its
///   sockets.
final class ServerLoop: @unchecked Sendable {
  struct Settings: Sendable {
    var queueDepth = 128
    var linger = Duration.microseconds(500)
    /// How long a client may take to choose an export; `nil`: as long as it likes.
    var handshakeLimit: Duration? = .seconds(10)
  }

  /// How many disk requests can wait behind those in the kernel. What is beyond waits here.
  private static let pendingLimit = 4096
  /// How much is received at once.
  static let scratchSize = 64 << 10
  /// How many requests go to the disk, and how many replies to a client, at once: few enough that
  /// client, server and disk work at the same time, rather than each waiting for the one before.
  static let burst = 4
  /// How many bursts make a turn; then the loop looks at its sockets again.
  private static let mostRounds = 4

  let queue: DispatchQueue
  let context: AIOContext
  let exports: [Export]
  let logger: Logger
  /// Set by `start`.
  private(set) var sockets: SocketSet!
  private let handshakeLimit: Duration?

  /// Where sockets are received to, before anybody knows what it is.
  let scratch: UnsafeMutableRawBufferPointer
  var pool = BufferPool()
  /// All commands there are; those in use hold their connection.
  private var commands: [Command] = []
  private var unused: [Command] = []

  private var connections: [ObjectIdentifier: Connection] = [:]
  /// Connections with something to send.
  private var dirty: [Connection] = []
  /// Connections that may go on receiving.
  private var line: [Connection] = []
  /// What makes the requests for which the context had no room.
  private var waiting: [() -> Void] = []
  private var isLookQueued = false
  private var isComingBack = false
  private(set) var isDraining = false
  private var whenDrained: (@Sendable (_ isDurable: Bool) -> Void)?
  private var drainTimer: (any DispatchSourceTimer)?

  /// The fdatasyncs of one export: one at a time, for all who asked before it began.
  private struct Syncs {
    var isRunning = false
    var running: [Command] = []
    var waiting: [Command] = []

    mutating func begin() {
      isRunning = true
      swap(&running, &waiting)
    }
  }
  private var syncs: [Syncs]
  private var wantsSync = false

  var bytesReceived = 0
  var bytesSent = 0
  private var requests = 0
  private var syncCount = 0
  private var failures = 0
  /// Called when a connection has closed, on the queue.
  private let whenClosed: @Sendable () -> Void

  init(
    number: Int, exports: [Export], settings: Settings, logger: Logger,
    whenClosed: @escaping @Sendable () -> Void
  ) throws {
    queue = DispatchQueue(label: "aio-nbd.loop.\(number)")
    self.exports = exports
    self.logger = logger
    self.whenClosed = whenClosed
    handshakeLimit = settings.handshakeLimit
    syncs = Array(repeating: Syncs(), count: exports.count)
    scratch = .allocate(byteCount: Self.scratchSize, alignment: 4096)
    var options = AIOContext.Options()
    options.minimumQueueDepth = 1
    // The set waits for sockets and completions alike.
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

  /// Takes a connection on. From any thread.
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

  /// Sees to it that a client that never chooses an export does not take the place of one that would.
  private func limitHandshake(of connection: Connection) {
    guard let limit = handshakeLimit else { return }
    let (id, opened) = (ObjectIdentifier(connection), connection.opened)
    queue.asyncAfter(deadline: .now() + .nanoseconds(Int(limit / .nanoseconds(1)))) { [weak self] in
      // Another connection may have the same identity by now, but not the same time.
      guard let connection = self?.connections[id], connection.opened == opened,
        !connection.hasEntered
      else { return }
      connection.close("has chosen no export within \(limit) (--handshake-limit)")
    }
  }

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
      submitWaiting()
      tell()
    })
    var rounds = 0
    while !dirty.isEmpty || !line.isEmpty || wantsSync {
      rounds += 1
      guard rounds <= Self.mostRounds else { return comeBack() }
      // To send makes room, so that it may lead to requests.
      context.process(after: {
        flushDirty()
        startSyncs()
        receiveLine()
      })
    }
  }

  /// Lets others on the queue, and sockets that are ready, have their turn before the next.
  private func comeBack() {
    guard !isComingBack else { return }
    isComingBack = true
    sockets.post { [self] in isComingBack = false }
  }

  private func flushDirty() {
    let dirty = dirty
    self.dirty.removeAll(keepingCapacity: true)
    for connection in dirty {
      connection.isDirty = false
      connection.flush()
    }
  }

  private func receiveLine() {
    let line = line
    self.line.removeAll(keepingCapacity: true)
    for connection in line {
      connection.isInLine = false
      connection.receive()
    }
  }

  /// Sees to it that a turn comes, when this is not one of its own calls.
  @inline(__always)
  private func ensureTurn() {
    guard !sockets.isLooking, !isLookQueued else { return }
    isLookQueued = true
    queue.async { [self] in
      isLookQueued = false
      sockets.look()
    }
  }

  @inline(__always)
  func mark(dirty connection: Connection) {
    guard !connection.isDirty else { return }
    connection.isDirty = true
    dirty.append(connection)
    ensureTurn()
  }

  func line(up connection: Connection) {
    guard !connection.isInLine else { return }
    connection.isInLine = true
    line.append(connection)
    ensureTurn()
  }

  func waitForRoom(_ again: @escaping () -> Void) {
    waiting.append(again)
    ensureTurn()
  }

  private func submitWaiting() {
    guard !waiting.isEmpty else { return }
    let requests = waiting
    waiting.removeAll(keepingCapacity: true)
    for request in requests { request() }
  }

  // MARK: Commands

  @inline(__always)
  func newCommand() -> Command {
    if let command = unused.popLast() { return command }
    let command = Command(loop: self)
    commands.append(command)
    return command
  }

  @inline(__always)
  func recycle(_ command: Command) {
    command.reset()
    unused.append(command)
    if isDraining { endIfDrained() }
  }

  @inline(__always)
  func count(_ request: Request) { requests += 1 }

  /// Does what a request asks for, which its connection has checked; then answers it.
  @inline(__always)
  func start(_ command: Command) {
    let request = command.request
    let export = command.connection!.export!  // A command in use has one, which has chosen.
    switch request.command {
    case .read where request.length > 0:
      lock(command, command.start..<command.start + UInt64(command.count), exclusive: false)
    case .write where request.length > 0:
      if command.range.upperBound > export.wholeBlocks
        || command.count != Int(request.length)
      {
        lock(command, export.pages(command.range), exclusive: true)
      } else {
        lock(command, command.range, exclusive: false)
      }
    case .trim where request.length > 0, .writeZeroes where request.length > 0:
      lock(command, export.pages(command.range), exclusive: true)
    case .flush: sync(command)
    case .blockStatus: perform(command)
    default: command.connection!.finish(command)
    }
  }

  @inline(__always)
  private func lock(_ command: Command, _ range: Range<UInt64>, exclusive: Bool) {
    let ticket = command.connection!.export.ranges.acquire(
      range, exclusive: exclusive,
      granted: { [self] ticket in
        sockets.post { [self] in
          command.ticket = ticket
          perform(command)
        }
      })
    guard let ticket else { return }
    command.ticket = ticket
    perform(command)
  }

  /// Does it, with its range locked.
  @inline(__always)
  private func perform(_ command: Command) {
    let request = command.request
    let export = command.connection!.export!
    switch request.command {
    case .read: command.transfer()
    case .write:
      if command.range.upperBound > export.wholeBlocks {
        onWorker(command, export) { command in
          var position = 0
          while position < Int(request.length) {
            let memory = command.memory(from: position, upTo: Int(request.length))
            if let errno = export.write(.init(memory), at: request.offset + UInt64(position)) {
              return errno
            }
            position += memory.count
          }
          return nil
        }
      } else if command.count != Int(request.length) {
        readEdges(command, export)
      } else {
        command.transfer()
      }
    case .trim:
      onWorker(command, export) { export.trim($0.range) }
    case .writeZeroes:
      onWorker(command, export) {
        export.zero(
          $0.range, keepsRoom: request.flags.contains(.noHole),
          onlyFast: request.flags.contains(.fastZero))
      }
    case .blockStatus:
      let most = request.flags.contains(.requestOne) ? 1 : Export.mostExtents
      export.worker.async { [self] in
        let extents = export.extents(command.range, most: most)
        sockets.post { [self] in answer(command, extents) }
      }
    case .flush, .cache, .disconnect: preconditionFailure("nothing to lock for")
    }
  }

  private func onWorker(
    _ command: Command, _ export: Export, _ body: @escaping @Sendable (Command) -> Errno?
  ) {
    export.worker.async { [self] in
      let errno = body(command)
      sockets.post { [self] in
        if let errno {
          unlock(command)
          fail(command, NBD.ErrorCode(errno), "\(errno)")
        } else {
          written(command)
        }
      }
    }
  }

  private func answer(_ command: Command, _ extents: [Export.Extent]) {
    var bytes: [UInt8] = []
    bytes.append(number: NBD.allocationContextID)
    for extent in extents {
      bytes.append(number: UInt32(extent.length))
      bytes.append(number: extent.isHole ? NBD.stateHole | NBD.stateZero : 0)
    }
    command.setExtra(bytes)
    command.connection!.finish(command)
  }

  /// Reads what an unaligned write leaves as it is of its first and last block, then writes.
  private func readEdges(_ command: Command, _ export: Export) {
    let block = Int(export.block)
    let end = command.skip + Int(command.request.length)
    let first = command.skip > 0 ? 0 : nil
    let last = end < command.count ? command.count - block : nil
    for place in Set([first, last].compactMap { $0 }) {
      let edge = pool.take(block)
      command.edges += 1
      let copy: @Sendable (Result<Int, AIOError>) -> Void = { [self] result in
        switch result {
        case .success(block):
          // A block lies within one buffer: their size is a multiple of it.
          let memory =
            command.buffers[place / BufferPool.largest].base + place % BufferPool.largest
          if place == 0 && command.skip > 0 {
            memory.copyMemory(from: edge.base, byteCount: command.skip)
          }
          if place + block > end {
            let from = end - place
            (memory + from).copyMemory(from: edge.base + from, byteCount: block - from)
          }
        case .success:
          command.isShort = true
        case .failure(let error):
          command.error = command.error ?? error
        }
        pool.give(edge)
        command.edges -= 1
        guard command.edges == 0 else { return }
        if command.error == nil && !command.isShort {
          command.transfer()
        } else {
          transferred(command)
        }
      }
      read(export.file, Int64(command.start) + Int64(place), edge.buffer[..<block], copy)
    }
  }

  private func read(
    _ file: AIOFile, _ offset: Int64, _ buffer: AIOBuffer, _ completion: @escaping AIOCompletion
  ) {
    do throws(AIOError) {
      try context.read(file, at: offset, into: buffer, completion: completion)
    } catch {
      if error.isRetryable {
        return waitForRoom { [self] in read(file, offset, buffer, completion) }
      }
      sockets.post { completion(.failure(error)) }
    }
  }

  /// A command's disk requests have completed.
  @inline(__always)
  func transferred(_ command: Command) {
    let connection = command.connection!
    if let error = command.error {
      unlock(command)
      return fail(command, NBD.ErrorCode(error.errno ?? .ioError), "\(error)")
    }
    if command.isShort {
      unlock(command)
      return fail(command, .inputOutput, "the file is shorter than it was")
    }
    if command.request.command == .read {
      unlock(command)
      guard command.isComplete(connection.export) else {
        return fail(command, .inputOutput, "the file is shorter than it was")
      }
      connection.finish(command)
    } else {
      written(command)
    }
  }

  @inline(__always)
  private func written(_ command: Command) {
    unlock(command)
    if command.request.flags.contains(.fua) {
      sync(command)
    } else {
      command.connection!.finish(command)
    }
  }

  @inline(__always)
  private func unlock(_ command: Command) {
    guard let ticket = command.ticket else { return }
    command.ticket = nil
    command.connection!.export.ranges.release(ticket)
  }

  /// Answers with an error.
  func fail(_ command: Command, _ error: NBD.ErrorCode, _ message: String) {
    failures += 1
    if error == .inputOutput || error == .noMemory {
      logger.error("\(command.connection!.peer): \(message)")
    }
    command.connection!.finish(command, (error, message))
  }

  // MARK: Flush

  /// Answers when all that was written before is durable.
  private func sync(_ command: Command) {
    syncs[command.connection!.exportIndex].waiting.append(command)
    wantsSync = true
    ensureTurn()
  }

  /// Starts the fdatasyncs that were asked for: at the end of a turn, for all who asked in it. One
  /// that is running may have begun before their writes; so they wait for the next.
  private func startSyncs() {
    guard wantsSync else { return }
    wantsSync = false
    for index in syncs.indices where !syncs[index].isRunning && !syncs[index].waiting.isEmpty {
      do throws(AIOError) {
        try context.fdatasync(exports[index].file) { [self] in synced(index, $0) }
        syncs[index].begin()
        syncCount += 1
      } catch {
        guard !error.isRetryable else {
          wantsSync = true
          continue
        }
        let commands = syncs[index].waiting
        syncs[index].waiting = []
        for command in commands { fail(command, .inputOutput, "\(error)") }
      }
    }
  }

  private func synced(_ index: Int, _ result: Result<Int, AIOError>) {
    let commands = syncs[index].running
    syncs[index].running.removeAll(keepingCapacity: true)
    syncs[index].isRunning = false
    if !syncs[index].waiting.isEmpty {
      wantsSync = true
      ensureTurn()
    }
    for command in commands {
      switch result {
      case .success: command.connection!.finish(command)
      case .failure(let error): fail(command, .inputOutput, "\(error)")
      }
    }
  }

  // MARK: The end

  /// Answers what has been received, closes every connection, makes all durable, and closes the
  /// context; then calls back, on the queue, with whether all is durable. From any thread.
  ///
  /// - Parameter timeout: how long clients may take to take their answers.
  func drain(
    timeout: Duration, _ completion: @escaping @Sendable (_ isDurable: Bool) -> Void
  ) {
    sockets.post { [self] in
      isDraining = true
      whenDrained = completion
      let timer = DispatchSource.makeTimerSource(queue: queue)
      let end = ContinuousClock.now + timeout
      timer.schedule(deadline: .now(), repeating: .milliseconds(10))
      timer.setEventHandler { [unowned self] in
        let isLate = ContinuousClock.now > end
        for connection in connections.values {
          connection.drain()
          if isLate { connection.close("did not take its answers in time") }
        }
        endIfDrained()
      }
      timer.activate()
      drainTimer = timer
    }
  }

  /// A second signal: waits for nobody. From any thread.
  func hurry() {
    sockets.post { [self] in
      for connection in connections.values { connection.close("did not take its answers in time") }
    }
  }

  private func endIfDrained() {
    guard isDraining, connections.isEmpty, unused.count == commands.count,
      let completion = whenDrained
    else { return }
    whenDrained = nil
    drainTimer?.cancel()
    let group = DispatchGroup()
    let failed = Lock(false)
    @Sendable func fail(_ error: AIOError) {
      logger.error("\(error)")
      failed.withLock { $0 = true }
    }
    for export in exports where !export.description.isReadOnly {
      group.enter()
      do throws(AIOError) {
        try context.fdatasync(export.file) { result in
          if case .failure(let error) = result { fail(error) }
          group.leave()
        }
      } catch {
        fail(error)
        group.leave()
      }
    }
    group.notify(queue: queue) { [self] in
      context.close { completion(!failed.withLock { $0 }) }
    }
  }

  /// Counts since the start; asked on the queue.
  struct Statistics: Sendable {
    var connections = 0
    var requests = 0
    var failures = 0
    var syncs = 0
    var bytesReceived = 0
    var bytesSent = 0

    static func += (total: inout Statistics, one: Statistics) {
      total.connections += one.connections
      total.requests += one.requests
      total.failures += one.failures
      total.syncs += one.syncs
      total.bytesReceived += one.bytesReceived
      total.bytesSent += one.bytesSent
    }
  }

  func report(_ body: @escaping @Sendable (Statistics) -> Void) {
    sockets.post { [self] in
      body(
        Statistics(
          connections: connections.count, requests: requests, failures: failures,
          syncs: syncCount, bytesReceived: bytesReceived, bytesSent: bytesSent))
    }
  }
}

extension NBD.ErrorCode {
  /// What a client is told of a system call's error.
  init(_ errno: Errno) {
    switch errno {
    case .notPermitted, .permissionDenied, .readOnlyFileSystem: self = .notPermitted
    case .noMemory: self = .noMemory
    case .invalidArgument: self = .invalid
    case .noSpace, .diskQuotaExceeded, .fileTooLarge: self = .noSpace
    case .notSupported: self = .notSupported
    default: self = .inputOutput
    }
  }
}
