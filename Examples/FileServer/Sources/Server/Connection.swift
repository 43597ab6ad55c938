// SPDX-License-Identifier: Apache-2.0
//
// One client: from the bytes of its requests to the bytes of their answers, one request after the
// other. Confined to the loop's queue. In other files: what a request is answered with (+Requests),
// how an answer is sent (+Sending), what is received of an upload (+Uploads).
//
// A connection has at most `ServerLoop.scratchSize` bytes of requests that were not answered yet,
// one buffer of up to 128 KiB that is being read, sent or written, and `ServerLoop.outputSize`
// bytes of heads and small answers that the client is slow to take, or a listing; beyond that
// nothing is received. One that is idle has no memory but itself.

import CServedFiles
import DispatchAIO
import Glibc

/// - Safety: `@unchecked Sendable` because it is confined to its loop's queue.
final class Connection: @unchecked Sendable {
  enum Phase {
    /// Waits for a request, or has a part of one.
    case reading
    /// A path is being looked up.
    case resolving
    case sending
    /// Of an upload.
    case receiving
    /// All has been sent, and the connection is to close: what the client still sends is passed
    /// over, because to close a socket with unread bytes would discard what it has not taken yet.
    case lingering
    case closed
  }

  /// The most requests answered in a row before others get their turn.
  private static let burst = 64
  private static let lingerTimeout: UInt64 = 2_000_000_000

  let socket: Int32
  let peer: String
  /// The loop, which holds the connection until it has closed: not weak, because to count each use
  /// costs more than what a request needs of it.
  let loop: ServerLoop
  var phase = Phase.reading
  /// When to give up on the client, by the monotonic clock; `.max` while it is not to blame.
  private(set) var deadline = UInt64.max

  private let readSource: AIOSource
  private var isReadSuspended = false
  private var writeSource: AIOSource?
  private(set) var isWaitingToWrite = false

  /// Bytes received and not used.
  var stash: [UInt8] = []
  /// How many of them were looked at for the end of a head in vain.
  private var scanned = 0
  /// Whether a part of a head is here, and its time counts.
  private var isHeadBegun = false
  private var isDraining = false

  // An answer: see +Sending.
  var reply = Reply()
  /// Heads and small answers that the socket has not taken.
  var unsent: [UInt8] = []
  /// How many of these it has taken meanwhile.
  var unsentStart = 0
  /// The bytes of a listing that is among them, of the loop's `listingBytes`.
  var listingBytes = 0
  /// Bytes of a file that were read, and not sent.
  var chunk: AIOBuffer?
  var chunkRange = 0..<0
  /// The read that is not back yet.
  var reading: AIORequest?
  /// For how many reads the page cache is not asked, and for how many it was not the last time.
  var (readsToSkip, readsAfterRefusal) = (0, 0)

  var upload: UploadInProgress?

  /// The reads, writes, look-ups and the like that are not back yet.
  private var work = 0

  init(socket: Int32, peer: String, loop: ServerLoop) throws(AIOError) {
    (self.socket, self.peer, self.loop) = (socket, peer, loop)
    readSource = try loop.context.makeReadSource(fileDescriptor: socket)
  }

  func start() {
    // Each holds the connection until its source is cancelled, which `close` sees to.
    readSource.setEventHandler { [self] in readable() }
    readSource.setCancelHandler { [socket] in Glibc.close(socket) }
    readSource.activate()
    wait(loop.settings.requestTimeout)
  }

  // MARK: What is done elsewhere

  func workBegins() { work += 1 }

  func workIsBack() {
    work -= 1
    if work == 0, phase == .closed { loop.placeIsFree() }
  }

  /// As the loop's `offload`; time is as of now in `body`.
  func offload<Value: Sendable>(
    _ work: @escaping @Sendable () -> Value, then body: @escaping @Sendable (Value) -> Void
  ) {
    workBegins()
    loop.offload(work) { [self] value in
      loop.refreshTime()
      workIsBack()
      body(value)
    }
  }

  // MARK: Readiness

  /// Gives the client so long.
  func wait(_ timeout: UInt64) {
    deadline = loop.now &+ timeout
    loop.watch(deadline)
  }

  /// The client is not to blame for what takes long now.
  func waitForDisk() { deadline = .max }

  private func readable() {
    loop.refreshTime()
    switch phase {
    case .reading where unsent.isEmpty: receive()
    case .receiving where upload?.isBusy == false: receive()
    case .lingering: discard()
    case .closed: break
    default: suspendReading()
    }
  }

  /// Not before the client goes on sending while it is being answered, which few do.
  private func suspendReading() {
    guard !isReadSuspended else { return }
    isReadSuspended = true
    readSource.suspend()
  }

  func resumeReading() {
    guard isReadSuspended, phase != .closed else { return }
    isReadSuspended = false
    readSource.resume()
  }

  /// Has the socket tell when it takes more.
  func waitToWrite() {
    wait(loop.settings.sendTimeout)
    guard !isWaitingToWrite else { return }
    isWaitingToWrite = true
    if let writeSource { return writeSource.resume() }
    do throws(AIOError) {
      let source = try loop.context.makeWriteSource(fileDescriptor: socket)
      source.setEventHandler { [self] in writable() }
      writeSource = source
      source.activate()
    } catch {
      loop.logger.error("cannot watch the connection from \(peer): \(error)")
      close()
    }
  }

  private func writable() {
    loop.refreshTime()
    guard phase != .closed else { return }
    if !unsent.isEmpty {
      guard sendUnsent() else { return }
    }
    if isWaitingToWrite {
      isWaitingToWrite = false
      writeSource?.suspend()
    }
    if phase == .sending { drive() } else { proceed() }
  }

  // MARK: Receiving

  private func receive() {
    let kept = stash.count
    if kept > 0 {
      loop.scratch.copyBytes(from: stash)
      stash.removeAll(keepingCapacity: true)
    }
    // A head that is incomplete is shorter than the scratch memory, which the options see to.
    let count = recv(socket, loop.scratch.baseAddress! + kept, loop.scratch.count - kept, 0)
    guard count > 0 else {
      if count < 0 && (errno == EAGAIN || errno == EINTR) {
        keep(Bytes(rebasing: loop.scratch[..<kept]))
      } else {
        close()
      }
      return
    }
    process(Bytes(rebasing: loop.scratch[..<(kept + count)]))
  }

  /// Goes on with what was received before.
  func proceed() {
    guard phase == .reading || phase == .receiving else { return }
    if !stash.isEmpty {
      let count = stash.count
      loop.scratch.copyBytes(from: stash)
      stash.removeAll(keepingCapacity: true)
      process(Bytes(rebasing: loop.scratch[..<count]))
    } else if isDraining {
      lingerIfIdle()
    }
    let isHungry =
      phase == .reading && unsent.isEmpty || phase == .receiving && upload?.isBusy == false
    if isHungry { resumeReading() }
  }

  private func process(_ bytes: Bytes) {
    var rest = bytes
    var answered = 0
    requests: while phase == .reading, unsent.isEmpty, !rest.isEmpty {
      rest = RequestHead.skipEmptyLines(rest)
      // Neither an empty line nor its first half begins a request.
      if rest.isEmpty || rest.equals("\r") { break }
      guard answered < Self.burst else {
        loop.context.async { [self] in
          loop.refreshTime()
          proceed()
        }
        break
      }
      switch RequestHead.parse(rest, limits: loop.settings.limits, scanned: &scanned) {
      case .incomplete:
        // From its first byte on: a head that drips in is not waited for longer.
        if !isHeadBegun { wait(loop.settings.requestTimeout) }
        isHeadBegun = true
        break requests
      case .refused(let status):
        scanned = 0
        refuse(status, received: rest)
        rest = Bytes(rebasing: rest[rest.count...])
      case .complete(let head):
        answered += 1
        isHeadBegun = false
        let request = Bytes(rebasing: rest[..<head.length])
        rest = Bytes(rebasing: rest[head.length...])
        waitForDisk()
        begin(head, request, isLast: isDraining && RequestHead.skipEmptyLines(rest).isEmpty)
      }
    }
    if phase == .receiving, !rest.isEmpty, upload?.isBusy == false {
      rest = Bytes(rebasing: rest[takeBody(rest)...])
    }
    if phase != .closed && phase != .lingering { keep(rest) }
    flush()
    if isDraining { lingerIfIdle() }
  }

  private func keep(_ bytes: Bytes) {
    if bytes.isEmpty { stash = [] } else { stash = Array(bytes) }
  }

  // MARK: The end of an answer

  /// An answer is complete, in the output at least.
  func finishReply() {
    loop.statistics.requests += 1
    logReply()
    let keepsAlive = reply.keepsAlive
    reply = Reply()
    phase = .reading
    if keepsAlive {
      wait(loop.settings.keepAliveTimeout)
    } else {
      linger()
    }
  }

  private func logReply() {
    guard let request = reply.logged else { return }
    loop.accessLog?.add(
      request, peer: peer, status: reply.status, bytes: reply.sent, seconds: loop.seconds,
      date: loop.logDate)
  }

  /// Sends what there is, and closes once the client has it.
  private func linger() {
    phase = .lingering
    stash = []
    flush()
    guard phase == .lingering, unsent.isEmpty else { return }
    endSending()
  }

  /// All that was received has been answered, and nothing more will be.
  private func lingerIfIdle() {
    if phase == .reading, stash.isEmpty, unsent.isEmpty { linger() }
  }

  private func endSending() {
    shutdown(socket, Int32(SHUT_WR))
    wait(Self.lingerTimeout)
    resumeReading()
  }

  private func discard() {
    guard unsent.isEmpty else { return suspendReading() }
    let count = recv(socket, loop.scratch.baseAddress!, loop.scratch.count, 0)
    if count == 0 || count < 0 && errno != EAGAIN && errno != EINTR { close() }
  }

  /// All that was unsent has been taken.
  func unsentIsSent() {
    if phase == .lingering { endSending() }
  }

  /// The client took too long.
  func expired() {
    switch phase {
    case .reading where isHeadBegun && unsent.isEmpty:
      let received = stash
      received.withUnsafeBytes { refuse(408, received: $0) }
    case .receiving: refuse(408)
    case .resolving where reply.isWaitingForDescriptor:
      answer(503)
      proceed()
    default: close()
    }
    flush()
  }

  /// Answers what has been received, and closes. What is idle closes at once.
  func drain() {
    isDraining = true
    let isLast = stash.withUnsafeBytes { RequestHead.skipEmptyLines($0).isEmpty }
    if isLast { reply.keepsAlive = false }
    if phase == .reading, isLast, unsent.isEmpty { close() }
  }

  func close() {
    guard phase != .closed else { return }
    // An answer that its client did not take to its end, as browsers do that seek.
    if phase == .sending { logReply() }
    phase = .closed
    // So that its place is not free before the end.
    workBegins()
    deadline = .max
    loop.output.removeAll()
    unsent = []
    releaseListing()
    stash = []
    reply = Reply()
    upload = nil
    if let chunk { loop.buffers.give(chunk) }
    chunk = nil
    // If the kernel does not have it yet, it costs the disk nothing.
    if let reading { loop.context.cancel(reading) }
    // What is suspended is cancelled, too. The socket is closed when neither is in the ring any
    // more.
    writeSource?.cancel()
    readSource.cancel()
    loop.closed(self)
    workIsBack()
  }
}
