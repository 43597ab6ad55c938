// SPDX-License-Identifier: Apache-2.0
//
// One client: its bytes through the session into commands (+Receiving, +Requests), and their
// replies back (+Replies). Confined to its loop's queue; called by the loop and its sources.
//
// Its cost is bounded, whatever it sends: the buffers of its requests by a MemoryBudget; the
// requests by their number; the rest by the bytes of one receive. A request over a budget waits: a
// large read as a request of a few bytes, so that those behind it continue; any other in the
// socket.

import DequeModule
import DispatchAIO
import ServerSupport

/// - Safety: `@unchecked Sendable` because it is confined to its loop's queue, where its sources'
///   handlers run.
final class Connection: @unchecked Sendable {
  let peer: String
  let socket: Int32
  unowned let loop: ServerLoop
  /// Set by `init`, because the handlers need the connection; never `nil` afterwards.
  private(set) var sources: SocketSources!
  var session: Session
  /// The export that the client has chosen; `nil` before. Commands exist only afterwards.
  var export: Export!
  var exportIndex = 0
  /// Closes it if it has chosen no export by then, so that it does not take the place of one that
  /// would.
  var handshakeTimer: AIOTimerSource?

  /// Whether there may be something to receive. If not, the sources tell when there is.
  var isReadable = false {
    didSet { if !isReadable { sources.awaitsInput = true } }
  }
  /// Whether there may be room to send. If not, the sources tell when there is.
  var isWritable = true {
    didSet { if !isClosed { sources.awaitsRoom = !isWritable } }
  }
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
  /// Whether the last request was a write with a long payload, so that the next one may be, too.
  var isWritingMuch = false
  /// A request that was parsed, and waits for memory.
  var heldRequest: Request?
  /// Large reads that wait for memory.
  var deferredReads: [Request] = []
  /// Large reads in progress whose next part waits for memory.
  var stalledStreams: [StreamedRead] = []
  /// The time by which the payload that is being received has to be there.
  var payloadDeadline: ContinuousClock.Instant?

  // Requests.
  /// The most unaligned writes that hold or wait for their ranges.
  static let mostExclusive = 4
  var budget = MemoryBudget()
  /// The bytes charged to the loop's memory.
  var memoryUsed = 0
  /// Kept by the loop's memory.
  var isWaitingForMemory = false
  /// Commands that wait for their ranges.
  var waitingForRange: [RangeLocks.Ticket: Command] = [:]
  /// The number of unaligned writes that hold or wait for their ranges, and those behind them.
  var exclusiveCount = 0
  var waitingForExclusive: Deque<Command> = []
  /// Requests to the disk that wait for this connection's turn.
  var waitingForDisk: Deque<DiskRequest> = []
  /// The number of this client's commands: in progress, in `outbox`, or `incomingWrite`.
  var commandCount = 0
  var streamCount = 0

  // Replies.
  var outbox = Outbox()
  var bytesSent = 0
  /// The bytes sent when that was last looked at and had changed, and the time. `nil` if nothing
  /// waits to be sent.
  var lastProgress: (sent: Int, at: ContinuousClock.Instant)?

  init(
    peer: String, socket: Int32, loop: ServerLoop, handshakeLimit: Duration?
  ) throws(AIOError) {
    (self.peer, self.socket, self.loop) = (peer, socket, loop)
    session = Session(exports: loop.exports.map(\.description))
    if let limit = handshakeLimit {
      handshakeTimer = try loop.context.once(after: limit) { [unowned self] in
        close("has chosen no export within \(limit) (--handshake-limit)")
      }
    }
    do throws(AIOError) {
      sources = try SocketSources(
        socket, in: loop.context,
        becameReadable: { [unowned self] in becameReadable() },
        becameWritable: { [unowned self] in
          isWritable = true
          loop.requestFlush(self)
        })
    } catch {
      handshakeTimer?.cancel()
      throw error
    }
    sendAnswer()
  }

  private func becameReadable() {
    // Known already, and it may not be received yet.
    if isReadable { sources.awaitsInput = false }
    isReadable = true
    // If it is marked, it receives after the handlers of this turn.
    if !isMarkedReady { receive() }
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
    handshakeTimer?.cancel()
    sources.close()
    deferredReads = []
    stalledStreams = []
    heldRequest = nil
    unparsed = []
    // So that its place is not free before the end.
    commandCount += 1
    if let incomingWrite {
      self.incomingWrite = nil
      release(incomingWrite)
    }
    for command in outbox.removeAll() { release(command) }
    loop.dropRequests(of: self)
    loop.closed(self, reason)
    commandCount -= 1
    if commandCount == 0 { loop.placeIsFree() }
  }
}
