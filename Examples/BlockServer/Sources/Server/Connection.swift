// SPDX-License-Identifier: Apache-2.0
//
// One client: its bytes through the session into commands (+Receiving, +Requests), and their
// replies back (+Replies). Confined to its loop's queue; called by the loop and the socket set.
//
// Its cost is bounded, whatever it sends: the buffers of its requests by a MemoryBudget; the
// requests by their number; the rest by the bytes of one receive. A request over a budget waits: a
// large read as a request of a few bytes, so that those behind it continue; any other in the
// socket.

import Glibc
import ServerSupport
import SystemPackage

final class Connection: SocketHandler {
  let peer: String
  let socket: Int32
  unowned let loop: ServerLoop
  private var token: UInt64 = 0
  var session: Session
  /// The export that the client has chosen; `nil` before. Commands exist only afterwards.
  var export: Export!
  var exportIndex = 0
  var hasEntered: Bool { export != nil }
  /// The time when it was accepted, which tells it from an earlier connection of the same identity.
  let opened: ContinuousClock.Instant

  // The state of the socket, which is edge-triggered.
  var isReadable = false
  var isWritable = true
  /// Whether the peer's end was announced, which happens once: a receive has to find it.
  var hasHungUp = false
  var inputEnded = false
  private(set) var isClosed = false

  // Kept by the loop: whether it is in one of its lists.
  var isMarkedReady = false
  var needsFlush = false

  // Receiving.
  /// Whether receiving has to wait until requests are answered.
  var isBlocked = false
  /// The requests begun in this turn.
  var begunInTurn = 0
  /// The bytes received and not parsed yet.
  var unparsed: [UInt8] = []
  /// The write whose payload is being received.
  var incomingWrite: Command?
  /// A request that was parsed, and waits for memory.
  var heldRequest: Request?
  /// Large reads that wait for memory.
  var deferredReads: [Request] = []

  // Requests.
  var budget = MemoryBudget()
  /// The number of this client's commands: in progress, in `outbox`, or `incomingWrite`.
  var commandCount = 0
  var streamCount = 0

  // Replies.
  var outbox = Outbox()

  init(peer: String, socket: Int32, loop: ServerLoop) throws(Errno) {
    (self.peer, self.socket, self.loop) = (peer, socket, loop)
    session = Session(exports: loop.exports.map(\.description))
    opened = ContinuousClock.now
    token = try loop.sockets.add(socket, self)
    sendAnswer()
  }

  func socket(isReadyFor readiness: Readiness) {
    if !readiness.isDisjoint(with: .writable), !isWritable {
      isWritable = true
      loop.requestFlush(self)
    }
    if !readiness.isDisjoint(with: [.readable, .hungUp]) {
      isReadable = true
      if !readiness.isDisjoint(with: .hungUp) { hasHungUp = true }
      if !isMarkedReady { receive() }
    }
  }

  // MARK: The end

  /// Whether every request that was received whole has been answered, and the answer sent.
  private var isIdle: Bool {
    commandCount == (incomingWrite == nil ? 0 : 1) && streamCount == 0 && deferredReads.isEmpty
      && heldRequest == nil
  }

  func closeIfDone() {
    if inputEnded && isIdle { close(nil) }
  }

  /// Closes if all that was received is answered, and the answers have arrived. Called repeatedly
  /// while the server shuts down; nothing more is received then.
  func drain() {
    if isIdle && endSending(on: socket) { close(nil) }
  }

  /// - Parameter reason: the fault; `nil` for the normal end.
  func close(_ reason: String?) {
    guard !isClosed else { return }
    isClosed = true
    loop.sockets.remove(token, socket)
    Glibc.close(socket)
    deferredReads = []
    heldRequest = nil
    unparsed = []
    if let incomingWrite {
      self.incomingWrite = nil
      release(incomingWrite)
    }
    for command in outbox.removeAll() { release(command) }
    loop.closed(self, reason)
  }
}
