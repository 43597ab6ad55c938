// SPDX-License-Identifier: Apache-2.0
//
// From the socket to requests. Bytes are received into the loop's scratch memory, but for the
// payload of writes, which is received into its place as far as possible.

import Glibc
import SystemPackage

extension Connection {
  /// The most requests in progress, or waiting for memory.
  static let mostRequests = 256
  /// The most answers to options waiting to be sent. (Clients are to wait for each.)
  private static let mostAnswers = 8
  /// The most receives in a row before the other connections get their turn.
  private static let mostReceives = 8
  /// The size of a write's payload beyond which no more is received with it than the head of the
  /// next request, whose payload, which may be as long, need not be copied then.
  static let longPayload = 16 << 10

  /// Receives and parses, as far as there is room for the requests.
  func receive() {
    guard !isClosed else { return }
    isBlocked = false
    begunInTurn = 0
    continueStalledStreams()
    admitDeferredReads()
    var filled = parseUnparsed()
    var receives = 0
    while isReadable && !inputEnded && !isClosed && !isBlocked && !isMarkedReady
      && !loop.isDraining
    {
      if receives == Self.mostReceives {
        loop.markReady(self)
        break
      }
      if let incomingWrite, !hasRoomForPayload(incomingWrite) { break }
      receives += 1
      let (asked, count) = receiveOnce(after: filled)
      if count > 0 {
        loop.statistics.bytesReceived += count
        if count < asked { isReadable = false }
        filled = parse(filled + count - notePayload(of: count))
      } else if count == 0 {
        inputEnded = true
      } else if errno == EAGAIN {
        isReadable = false
      } else if errno != EINTR {
        close("\(Errno(rawValue: errno))")
      }
    }
    if isClosed { return }
    if filled > 0 { unparsed.append(contentsOf: loop.scratch[..<filled]) }
    if isBlocked {
      // What has to be answered before is this server's to do.
      payloadDeadline = nil
    } else if incomingWrite != nil {
      expectPayload()
    }
    closeIfDone()
  }

  /// Parses what was left by the last turn.
  ///
  /// - Returns: the number of unparsed bytes at the beginning of the scratch memory.
  private func parseUnparsed() -> Int {
    let count = unparsed.count
    if count > 0 {
      unparsed.withUnsafeBytes { loop.scratch.copyMemory(from: $0) }
      unparsed.removeAll(keepingCapacity: count <= 4096)
      return parse(count)
    }
    return heldRequest == nil ? 0 : parse(0)
  }

  /// Receives once: payload into its place, and what follows it into the scratch memory.
  ///
  /// - Parameter filled: the bytes of the scratch memory in use; 0 while payload is expected.
  private func receiveOnce(after filled: Int) -> (asked: Int, received: Int) {
    let remaining = session.payloadRemaining
    guard remaining > 0, let incomingWrite else {
      let isHead = isWritingMuch && filled < NBD.requestSize
      let count = (isHead ? NBD.requestSize : loop.scratch.count) - filled
      return (count, recv(socket, loop.scratch.baseAddress! + filled, count, 0))
    }
    // Of the buffers that there are one is not full, and small ones follow each other in none.
    return withUnsafeTemporaryAllocation(of: iovec.self, capacity: 3) { vectors in
      var elements = 0
      var position = incomingWrite.payload
      let missing = incomingWrite.missing(of: remaining)
      let end = position + remaining - missing
      while position < end {
        let memory = incomingWrite.memory(from: position, upTo: end)
        vectors.initializeElement(
          at: elements, to: iovec(iov_base: memory.baseAddress, iov_len: memory.count))
        elements += 1
        position += memory.count
      }
      guard missing == 0 else {
        return (end - incomingWrite.payload, readv(socket, vectors.baseAddress, Int32(elements)))
      }
      let following = isWritingMuch ? NBD.requestSize : loop.scratch.count
      vectors.initializeElement(
        at: elements, to: iovec(iov_base: loop.scratch.baseAddress, iov_len: following))
      return (remaining + following, readv(socket, vectors.baseAddress, Int32(elements + 1)))
    }
  }

  /// Notes the payload among so many bytes received, which is in its place.
  ///
  /// - Returns: the number of bytes that are payload.
  private func notePayload(of count: Int) -> Int {
    let remaining = session.payloadRemaining
    guard remaining > 0, let incomingWrite else { return 0 }
    let payload = min(remaining, count)
    incomingWrite.payload += payload
    session.received(payload: payload)
    if payload == remaining { startIncomingWrite() }
    return payload
  }

  /// Gives the session the bytes at the beginning of the scratch memory.
  ///
  /// - Returns: the number of bytes that are left, moved to the beginning.
  private func parse(_ filled: Int) -> Int {
    let scratch = loop.scratch
    var position = 0
    while !isClosed {
      if let request = heldRequest {
        heldRequest = nil
        guard take(request) else { break }
      }
      guard mayParse() else { break }
      var consumed = 0
      let event = session.next(
        UnsafeRawBufferPointer(rebasing: scratch[position..<filled]), consumed: &consumed)
      position += consumed
      guard let event else { break }
      if case .payload(let count) = event {
        guard let incomingWrite else { preconditionFailure("payload of no write") }
        guard hasRoomForPayload(incomingWrite) else { break }
        let count = count - incomingWrite.missing(of: count)
        incomingWrite.take(payload: .init(rebasing: scratch[position..<position + count]))
        position += count
        session.received(payload: count)
        if session.payloadRemaining == 0 { startIncomingWrite() }
      } else if !handle(event) {
        break
      }
    }
    let left = filled - position
    if left > 0 && position > 0 {
      memmove(scratch.baseAddress!, scratch.baseAddress! + position, left)
    }
    return isClosed || inputEnded ? 0 : left
  }

  /// Whether one more event may be parsed in this turn. If not, the connection is blocked, or has
  /// its next turn after the others.
  @inline(__always)
  private func mayParse() -> Bool {
    if commandCount + deferredReads.count >= Self.mostRequests
      || (export == nil && commandCount >= Self.mostAnswers)
    {
      isBlocked = true
      return false
    }
    if begunInTurn >= ServerLoop.burst {
      loop.markReady(self)
      return false
    }
    return true
  }

  /// Acts on an event other than payload.
  ///
  /// - Returns: whether to parse on.
  @inline(__always)
  private func handle(_ event: Session.Event) -> Bool {
    switch event {
    case .request(let request):
      return take(request)
    case .refused(let request, let error, let message):
      loop.logger.debug("\(peer): \(request) refused: \(message)")
      let command = newCommand(request, cost: 0)
      loop.fail(command, error, message)
    case .answer: sendAnswer()
    case .enter(let index):
      export = loop.exports[index]
      exportIndex = index
      handshakeTimer?.cancel()
      loop.logger.debug("\(peer) uses \(export.description.name)")
      sendAnswer()
    case .end:
      sendAnswer()
      inputEnded = true
      return false
    case .violation(let text):
      close(text)
    case .payload: preconditionFailure("payload is parse's")
    }
    return true
  }
}
