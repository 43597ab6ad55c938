// SPDX-License-Identifier: Apache-2.0
//
// From commands to the socket: the heads of replies, and sending many replies in one call.

import Glibc
import SystemPackage

extension Connection {
  /// Answers a command that has done its work.
  ///
  /// - Parameter error: the error that the client is told, if it failed.
  func finish(_ command: Command, _ error: (NBD.ErrorCode, String)? = nil) {
    guard !isClosed else { return release(command) }
    if command.request.command == .write { giveMemory(of: command) }
    if let stream = command.stream {
      encodeChunk(of: stream, command, error)
    } else if let (code, message) = error {
      let cookie = command.request.cookie
      command.replyCount = 0
      command.headCount =
        session.isStructured
        ? Replies.error(command.head, cookie: cookie, code, message: message)
        : Replies.simple(command.head, cookie: cookie, error: code)
    } else {
      encodeReply(command)
    }
    send(command)
  }

  /// One part of a large read: its data, or, in the last part, the error of any of them.
  private func encodeChunk(
    of stream: StreamedRead, _ command: Command, _ error: (NBD.ErrorCode, String)?
  ) {
    let request = command.request
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
  }

  /// The reply to a request that succeeded.
  @inline(__always)
  private func encodeReply(_ command: Command) {
    let request = command.request
    switch request.command {
    case .read where session.isStructured:
      command.replyCount = Int(request.length)
      command.headCount =
        request.length == 0
        ? Replies.chunk(command.head, .none, cookie: request.cookie, isLast: true, length: 0)
        : Replies.data(
          command.head, cookie: request.cookie, isLast: true, offset: request.offset,
          count: command.replyCount)
    case .blockStatus where session.isStructured:
      command.headCount = Replies.chunk(
        command.head, .blockStatus, cookie: request.cookie, isLast: true,
        length: command.replyCount)
    default:
      // A reply without data may always be a simple one.
      command.headCount = Replies.simple(command.head, cookie: request.cookie)
      if request.command == .read { command.replyCount = Int(request.length) }
    }
  }

  // MARK: Sending

  /// Sends the session's output: the answers of the handshake.
  func sendAnswer() {
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
    if outbox.count >= ServerLoop.burst && isWritable { flush() }
    loop.requestFlush(self)
  }

  /// Sends the replies that wait, as far as the socket takes them.
  func flush() {
    while isWritable && !isClosed && !outbox.isEmpty { sendOnce() }
    outbox.compact()
    if outbox.isEmpty { lastProgress = nil }
    if !isClosed {
      closeIfDone()
      if isBlocked || !deferredReads.isEmpty { loop.markReady(self) }
    }
  }

  private func sendOnce() {
    let most = 512
    let (asked, sent) = withUnsafeTemporaryAllocation(of: iovec.self, capacity: most) { vectors in
      let (elements, asked) = outbox.gather(into: vectors)
      // A part of a read that failed before the last has nothing to send.
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
        // A client that has said that it leaves need not wait for the answer.
        close(inputEnded ? nil : "\(Errno(rawValue: errno))")
      }
      return
    }
    loop.statistics.bytesSent += sent
    bytesSent += sent
    if sent < asked { isWritable = false }
    outbox.advance(by: sent)
    // One at a time: releasing one may add others.
    while let command = outbox.popSent() { release(command) }
  }
}
