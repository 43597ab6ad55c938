// SPDX-License-Identifier: Apache-2.0
//
// One client: its bytes through the session into commands, and their replies back.
//
// What it can cost is bounded, whatever it sends: the buffers of its requests by two budgets, one
// for small and one for large requests, so that the small ones pass the large ones; the requests
// by their number; the rest by what one receive brings. What is over a budget waits: a large read
// as a request of a few bytes, so that what comes behind it goes on; anything else in the socket.

import CSockets
import Dispatch
import Glibc
import ServerSupport
import SystemPackage

final class Connection: SocketHandler {
  /// The most memory of small requests: reads and writes of up to `largestSmall`.
  static let smallBudget = 8 << 20
  /// The most memory of large ones; one of the largest fits.
  static let largeBudget = Int(ExportDescription.largestPayload) + BufferPool.largest
  static let largestSmall = 256 << 10
  /// How many requests may be under way, or wait for memory.
  static let mostRequests = 256
  /// How many answers to options may wait to be sent. (Clients are to wait for each.)
  private static let mostAnswers = 8
  /// Receives in a row before others get their turn.
  private static let mostReceives = 8
  /// Beyond so much payload to come, no more than it is received, so that it need not be copied.
  private static let longPayload = 16 << 10

  let peer: String
  private let socket: Int32
  private unowned let loop: ServerLoop
  private var token: UInt64 = 0
  private var session: Session
  /// Set once the client has chosen.
  private(set) var export: Export!
  private(set) var exportIndex = 0

  private var isReadable = false
  /// The end has been announced, and will not be again: a receive has to find it.
  private var hasHungUp = false
  private var isWritable = true
  private var inputEnded = false
  private(set) var isClosed = false
  private var isBlocked = false
  /// How many requests this turn has brought.
  private var begun = 0
  var isInLine = false
  var isDirty = false

  /// Received, and not taken by the session yet.
  private var rest: [UInt8] = []
  /// The write whose payload is coming.
  private var current: Command?
  /// A request for which there was no room.
  private var held: Request?
  /// Large reads for which there was no room.
  private var deferred: [Request] = []
  /// Commands that are the client's: on their way, or in `outbox`, or `current`.
  private var commands = 0
  private var streams = 0
  private var smallUsed = 0
  private var largeUsed = 0

  private var outbox: [Command] = []
  private var outboxHead = 0
  /// How much of the first has been sent.
  private var sentOfFirst = 0

  /// When it was accepted; with that it is told from one that had the same identity before it.
  let opened: ContinuousClock.Instant
  var hasEntered: Bool { export != nil }

  init(peer: String, socket: Int32, loop: ServerLoop) throws(Errno) {
    (self.peer, self.socket, self.loop) = (peer, socket, loop)
    session = Session(exports: loop.exports.map(\.description))
    opened = ContinuousClock.now
    token = try loop.sockets.add(socket, self)
    sendAnswer()
  }

  // MARK: In

  func socket(isReadyFor readiness: Readiness) {
    if !readiness.isDisjoint(with: .writable), !isWritable {
      isWritable = true
      loop.mark(dirty: self)
    }
    if !readiness.isDisjoint(with: [.readable, .hungUp]) {
      isReadable = true
      if !readiness.isDisjoint(with: .hungUp) { hasHungUp = true }
      if !isInLine { receive() }
    }
  }

  /// Takes what has come, as far as there is room for it.
  func receive() {
    guard !isClosed else { return }
    isBlocked = false
    begun = 0
    admitDeferred()
    let scratch = loop.scratch
    var filled = rest.count
    if filled > 0 {
      rest.withUnsafeBytes { scratch.copyMemory(from: $0) }
      rest.removeAll(keepingCapacity: filled <= 4096)
      filled = parse(filled)
    } else if held != nil {
      filled = parse(0)
    }
    var receives = 0
    while isReadable && !inputEnded && !isClosed && !isBlocked && !isInLine && !loop.isDraining {
      if receives == Self.mostReceives {
        loop.line(up: self)
        break
      }
      receives += 1
      let (asked, count) = receiveOnce(behind: filled)
      if count > 0 {
        loop.bytesReceived += count
        var count = count
        let remaining = session.payloadRemaining
        if remaining > 0, let current {
          let payload = min(remaining, count)
          current.payload += payload
          session.received(payload: payload)
          count -= payload
          if payload == remaining { startCurrent() }
        }
        if count < asked - remaining && !hasHungUp { isReadable = false }
        filled = parse(filled + count)
      } else if count == 0 {
        inputEnded = true
      } else if errno == EAGAIN {
        isReadable = false
      } else if errno != EINTR {
        close("\(Errno(rawValue: errno))")
      }
    }
    if isClosed { return }
    if filled > 0 { rest.append(contentsOf: scratch[..<filled]) }
    closeIfDone()
  }

  /// One receive: of payload into its place, and of what follows into the scratch memory.
  ///
  /// - Parameter filled: how much of the scratch memory is in use; 0 while payload is to come.
  private func receiveOnce(behind filled: Int) -> (asked: Int, received: Int) {
    let remaining = session.payloadRemaining
    guard remaining > 0, let current else {
      let count = loop.scratch.count - filled
      return (count, recv(socket, loop.scratch.baseAddress! + filled, count, 0))
    }
    let most = Int(ExportDescription.largestPayload) / BufferPool.largest + 3
    return withUnsafeTemporaryAllocation(of: iovec.self, capacity: most) { vectors in
      var elements = 0
      var position = current.payload
      let end = position + remaining
      while position < end {
        let memory = current.memory(from: position, upTo: end)
        vectors.initializeElement(
          at: elements, to: iovec(iov_base: memory.baseAddress, iov_len: memory.count))
        elements += 1
        position += memory.count
      }
      let behind = remaining > Self.longPayload ? NBD.requestSize : loop.scratch.count
      vectors.initializeElement(
        at: elements, to: iovec(iov_base: loop.scratch.baseAddress, iov_len: behind))
      return (remaining + behind, readv(socket, vectors.baseAddress, Int32(elements + 1)))
    }
  }

  /// Lets the session have what is at the beginning of the scratch memory.
  ///
  /// - Returns: how much is left of it, moved to the beginning.
  private func parse(_ filled: Int) -> Int {
    let scratch = loop.scratch
    var position = 0
    parsing: while !isClosed {
      if let request = held {
        held = nil
        guard take(request) else { break }
      }
      if commands + deferred.count >= Self.mostRequests
        || (export == nil && commands >= Self.mostAnswers)
      {
        isBlocked = true
        break
      }
      if begun >= ServerLoop.burst {
        loop.line(up: self)
        break
      }
      var consumed = 0
      let event = session.next(
        UnsafeRawBufferPointer(rebasing: scratch[position..<filled]), consumed: &consumed)
      position += consumed
      switch event {
      case nil: break parsing
      case .request(let request):
        if !take(request) { break parsing }
      case .payload(let count):
        guard let current else { preconditionFailure("payload of no write") }
        current.take(payload: .init(rebasing: scratch[position..<position + count]))
        position += count
        session.received(payload: count)
        if session.payloadRemaining == 0 { startCurrent() }
      case .refused(let request, let error, let message):
        loop.logger.debug("\(peer): \(request) refused: \(message)")
        let command = newCommand(request, cost: 0)
        loop.fail(command, error, message)
      case .answer: sendAnswer()
      case .enter(let index):
        export = loop.exports[index]
        exportIndex = index
        loop.logger.debug("\(peer) uses \(export.description.name)")
        sendAnswer()
      case .end:
        sendAnswer()
        inputEnded = true
        break parsing
      case .violation(let text):
        close(text)
      }
    }
    let left = filled - position
    if left > 0 && position > 0 {
      memmove(scratch.baseAddress!, scratch.baseAddress! + position, left)
    }
    return isClosed || inputEnded ? 0 : left
  }

  // MARK: Requests

  @inline(__always)
  private func newCommand(_ request: Request, cost: Int) -> Command {
    let command = loop.newCommand()
    command.connection = self
    command.request = request
    command.cost = cost
    command.isLarge = cost > Self.largestSmall
    if command.isLarge { largeUsed += cost } else { smallUsed += cost }
    commands += 1
    return command
  }

  /// Whether the reply to a read is sent in chunks, as they come.
  private func isStreamed(_ request: Request) -> Bool {
    request.command == .read && session.isStructured && !request.flags.contains(.df)
      && Int(request.length) > BufferPool.largest
  }

  private func cost(of request: Request) -> Int {
    switch request.command {
    case .read, .write:
      if isStreamed(request) { return (Command.window + 1) * BufferPool.largest }
      let start = export.down(request.offset, to: export.block)
      let end = export.up(request.offset + UInt64(request.length), to: export.block)
      return BufferPool.cost(Int(end - start))
    case .blockStatus:
      // The answer: a number, and as many extents as there may be.
      return BufferPool.cost(4 + 8 * Export.mostExtents)
    default: return BufferPool.smallest
    }
  }

  /// Takes a request on, or keeps it until there is room.
  ///
  /// - Returns: whether to go on with what comes behind it.
  @inline(__always)
  private func take(_ request: Request) -> Bool {
    let cost = cost(of: request)
    let isLarge = cost > Self.largestSmall
    if isLarge ? largeUsed + cost > Self.largeBudget : smallUsed + cost > Self.smallBudget {
      if isLarge && request.command == .read {
        deferred.append(request)
        return true
      }
      held = request
      isBlocked = true
      return false
    }
    begin(request, cost: cost)
    return true
  }

  @inline(__always)
  private func begin(_ request: Request, cost: Int) {
    loop.count(request)
    begun += 1
    if isStreamed(request) {
      largeUsed += cost
      streams += 1
      return goOn(StreamedRead(request, cost: cost))
    }
    let command = newCommand(request, cost: cost)
    if request.command == .read || request.command == .write { command.takeBuffers(export) }
    if request.command == .write && request.length > 0 {
      current = command
    } else {
      loop.start(command)
    }
  }

  private func admitDeferred() {
    while let request = deferred.first {
      let cost = cost(of: request)
      guard largeUsed + cost <= Self.largeBudget else { return }
      deferred.removeFirst()
      begin(request, cost: cost)
    }
  }

  private func startCurrent() {
    guard let command = current else { preconditionFailure("no write is being received") }
    current = nil
    loop.start(command)
  }

  // MARK: Large reads in parts

  private func goOn(_ stream: StreamedRead) {
    while stream.next < stream.end && stream.unsent < Command.window && !isClosed {
      // Parts end at multiples of their size, so that all but the first and last are aligned.
      let size = UInt64(BufferPool.largest)
      let end = min(stream.end, (stream.next / size + 1) * size)
      var part = stream.request
      part.offset = stream.next
      part.length = UInt32(end - stream.next)
      stream.next = end
      stream.unread += 1
      stream.unsent += 1
      let command = newCommand(part, cost: 0)
      command.stream = stream
      command.takeBuffers(export)
      loop.start(command)
    }
  }

  /// A command has done what it had to; answers it.
  ///
  /// - Parameter error: what the client is told if it failed.
  func finish(_ command: Command, _ error: (NBD.ErrorCode, String)? = nil) {
    guard !isClosed else { return release(command) }
    let request = command.request
    if let stream = command.stream {
      stream.unread -= 1
      if let error {
        stream.error = stream.error ?? error
        stream.next = stream.end
      }
      let isLast = stream.next == stream.end && stream.unread == 0
      if error == nil && !(isLast && stream.error != nil) {
        command.replyCount = Int(request.length)
        command.headCount = Replies.data(
          command.head, cookie: request.cookie, isLast: isLast, offset: request.offset,
          count: command.replyCount)
      } else if isLast, let (code, message) = stream.error {
        command.headCount = Replies.error(
          command.head, cookie: request.cookie, code, message: message)
      }
    } else if let (code, message) = error {
      command.replyCount = 0
      command.headCount =
        session.isStructured
        ? Replies.error(command.head, cookie: request.cookie, code, message: message)
        : Replies.simple(command.head, cookie: request.cookie, error: code)
    } else if !session.isStructured {
      command.headCount = Replies.simple(command.head, cookie: request.cookie)
      if request.command == .read { command.replyCount = Int(request.length) }
    } else if request.command == .read {
      command.replyCount = Int(request.length)
      command.headCount =
        request.length == 0
        ? Replies.chunk(command.head, .none, cookie: request.cookie, isLast: true, length: 0)
        : Replies.data(
          command.head, cookie: request.cookie, isLast: true, offset: request.offset,
          count: command.replyCount)
    } else if request.command == .blockStatus {
      command.headCount = Replies.chunk(
        command.head, .blockStatus, cookie: request.cookie, isLast: true,
        length: command.replyCount)
    } else {
      // A reply without data may be a simple one, always.
      command.headCount = Replies.simple(command.head, cookie: request.cookie)
    }
    send(command)
  }

  // MARK: Out

  /// What the session has to say.
  private func sendAnswer() {
    guard !session.output.isEmpty else { return }
    let command = newCommand(
      Request(command: .flush, flags: [], cookie: 0, offset: 0, length: 0), cost: 0)
    command.setExtra(session.output)
    session.output.removeAll(keepingCapacity: true)
    send(command)
  }

  @inline(__always)
  private func send(_ command: Command) {
    outbox.append(command)
    if outbox.count - outboxHead >= ServerLoop.burst && isWritable { flush() }
    loop.mark(dirty: self)
  }

  private var isOutboxEmpty: Bool { outboxHead == outbox.count }

  /// Sends what waits to be sent, as far as the socket takes it.
  func flush() {
    while isWritable && !isClosed && !isOutboxEmpty { sendOnce() }
    if isOutboxEmpty && outboxHead > 0 {
      outbox.removeAll(keepingCapacity: true)
      outboxHead = 0
    } else if outboxHead > 256 {
      outbox.removeFirst(outboxHead)
      outboxHead = 0
    }
    if !isClosed {
      closeIfDone()
      goOnReceiving()
    }
  }

  private func sendOnce() {
    let most = 512
    let (asked, sent) = withUnsafeTemporaryAllocation(of: iovec.self, capacity: most) { vectors in
      var elements = 0
      var asked = 0
      func add(_ base: UnsafeMutableRawPointer, _ count: Int) {
        vectors.initializeElement(at: elements, to: iovec(iov_base: base, iov_len: count))
        elements += 1
        asked += count
      }
      var index = outboxHead
      var skipped = sentOfFirst
      collecting: while index < outbox.count {
        let command = outbox[index]
        if skipped < command.headCount {
          if elements == most { break }
          add(command.head + skipped, command.headCount - skipped)
        }
        var position = max(0, skipped - command.headCount)
        while position < command.replyCount {
          if elements == most { break collecting }
          let memory = command.memory(from: position, upTo: command.replyCount)
          add(memory.baseAddress!, memory.count)  // Pooled memory is never nil.
          position += memory.count
        }
        skipped = 0
        index += 1
      }
      // Nothing to send for a part of a read that failed before the last.
      guard asked > 0 else { return (0, 0) }
      var message = msghdr()
      message.msg_iov = vectors.baseAddress
      message.msg_iovlen = elements
      return (asked, sendmsg(socket, &message, Int32(MSG_NOSIGNAL)))
    }
    if sent < 0 {
      if errno == EAGAIN {
        isWritable = false
      } else if errno != EINTR {
        // A client that has said it was leaving need not wait for the answer.
        close(inputEnded ? nil : "\(Errno(rawValue: errno))")
      }
      return
    }
    loop.bytesSent += sent
    if sent < asked { isWritable = false }
    sentOfFirst += sent
    while outboxHead < outbox.count {
      let command = outbox[outboxHead]
      let size = command.headCount + command.replyCount
      guard sentOfFirst >= size else { break }
      sentOfFirst -= size
      outboxHead += 1
      release(command)
    }
  }

  /// A command is done with.
  private func release(_ command: Command) {
    commands -= 1
    if command.isLarge { largeUsed -= command.cost } else { smallUsed -= command.cost }
    let stream = command.stream
    loop.recycle(command)
    if let stream {
      stream.unsent -= 1
      goOn(stream)
      if stream.unsent == 0 {
        largeUsed -= stream.cost
        streams -= 1
      }
    }
  }

  private func goOnReceiving() {
    if isBlocked || !deferred.isEmpty { loop.line(up: self) }
  }

  // MARK: The end

  /// Whether every request that was received whole has been answered, and the answer sent.
  private var isIdle: Bool {
    commands == (current == nil ? 0 : 1) && streams == 0 && deferred.isEmpty && held == nil
  }

  private func closeIfDone() {
    if inputEnded && isIdle { close(nil) }
  }

  /// While the server shuts down, nothing more is received: the connection closes when all that was
  /// is answered, and the answers have arrived. To close it earlier would throw away what is on its
  /// way, because to close a socket with bytes unread resets the connection.
  func drain() {
    guard isIdle else { return }
    shutdown(socket, Int32(SHUT_WR))
    var unacknowledged: Int32 = 0
    if ioctl(socket, UInt(TIOCOUTQ), &unacknowledged) != 0 || unacknowledged == 0 { close(nil) }
  }

  /// - Parameter reason: what went wrong; `nil` for the normal end.
  func close(_ reason: String?) {
    guard !isClosed else { return }
    isClosed = true
    loop.sockets.remove(token, socket)
    Glibc.close(socket)
    deferred = []
    held = nil
    rest = []
    if let current {
      self.current = nil
      release(current)
    }
    let unsent = outbox[outboxHead...]
    outbox = []
    outboxHead = 0
    for command in unsent { release(command) }
    loop.closed(self, reason)
  }
}
