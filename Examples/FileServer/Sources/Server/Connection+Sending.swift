// SPDX-License-Identifier: Apache-2.0
//
// How an answer is sent. What is in the page cache goes out by sendfile where it is large, and is
// copied behind its head where it is small; what the cache does not have is read by the library,
// and sent together with the head.

import CServedFiles
import DispatchAIO
import Glibc

extension Connection {
  /// From so many bytes on, sendfile is cheaper than to copy.
  private static let sendfileThreshold: Int64 = 24 << 10
  /// The most bytes that one handler sends.
  private static let share: Int64 = 4 << 20
  /// The most reads after those that the page cache refused for which it is not asked: who reads
  /// what is not there mostly goes on to. After the first refusal it is 4, then twice as many each.
  private static let mostReadsToSkip = 256

  private enum Progress {
    case done
    /// The socket takes no more, or the disk is being read: goes on by itself.
    case waiting
  }

  /// Begins to send `reply`, whose head is pending.
  func send() {
    phase = .sending
    if reply.isHead {
      appendPendingHead()
      return finishReply()
    }
    if pump() == .done { finishReply() }
  }

  /// Goes on with an answer that had to wait.
  func drive() {
    // What is being read comes first, also where the socket has room meanwhile.
    guard phase == .sending, reading == nil else { return }
    if pump() == .done {
      finishReply()
      flush()
      proceed()
    }
  }

  private func pump() -> Progress {
    var share = Self.share
    while true {
      guard phase == .sending else { return .waiting }
      if !unsent.isEmpty {
        waitToWrite()
        return .waiting
      }
      if chunk != nil {
        guard sendChunk() else { return .waiting }
      } else if reply.position < reply.end {
        guard share > 0 else {
          waitToWrite()
          return .waiting
        }
        guard let sent = sendFromCache() else { return .waiting }
        guard sent > 0 else {
          read()
          return .waiting
        }
        share -= sent
      } else if !nextPart() {
        return .done
      }
    }
  }

  /// Begins with the next of several ranges.
  ///
  /// - Returns: whether there was one; if not, the end is in the output.
  private func nextPart() -> Bool {
    appendPendingHead()
    guard let multipart = reply.multipart else { return false }
    guard reply.nextPart < multipart.ranges.count else {
      multipart.appendEnd(to: loop.output)
      return false
    }
    let range = multipart.ranges[reply.nextPart]
    reply.nextPart += 1
    multipart.appendHead(of: range, to: loop.output)
    (reply.position, reply.end) = (range.lowerBound, range.upperBound)
    return true
  }

  private func appendPendingHead() {
    guard reply.isHeadPending else { return }
    reply.isHeadPending = false
    appendFileHead()
  }

  // MARK: From the page cache

  /// Sends the next piece, or puts it into the output, if the page cache has all of it. Looked at
  /// piece by piece: who reads on has the cache filled ahead of them.
  ///
  /// - Returns: How many bytes; 0 if they are not there; `nil` if the socket takes no more.
  private func sendFromCache() -> Int64? {
    guard let file = reply.file, file.isInPageCache else { return 0 }
    let size = min(reply.end - reply.position, Int64(AIOContext.maximumCachedSend))
    guard size >= Self.sendfileThreshold else { return copyFromCache(file, size) }
    let output = loop.output
    let (before, wasHeadPending) = (output.count, reply.isHeadPending)
    appendPendingHead()
    do throws(AIOError) {
      let answer = try loop.context.sendIfCached(
        file.file, at: reply.position, count: Int(size), to: socket, header: output.bytes.bytes)
      guard answer != .notCached else {
        output.removeAll(after: before)
        reply.isHeadPending = wasHeadPending
        return 0
      }
      var sent = 0
      if case .sent(let count) = answer { sent = count }
      let ofHead = min(sent, output.count)
      if ofHead < output.count { unsent += output.bytes[ofHead...] }
      output.removeAll()
      count(Int64(sent - ofHead))
      if Int64(sent - ofHead) == size { return size }
      waitToWrite()
    } catch {
      // The client is gone.
      close()
    }
    return nil
  }

  private func copyFromCache(_ file: ServedFile, _ size: Int64) -> Int64? {
    guard readsToSkip == 0 else {
      readsToSkip -= 1
      return 0
    }
    let output = loop.output
    // One send for all that a client asked for at once, but no more than the memory is meant for.
    if output.count + Int(size) > ServerLoop.outputSize, !flush(hasMore: true) { return nil }
    let (before, wasHeadPending) = (output.count, reply.isHeadPending)
    appendPendingHead()
    var answer: Int64 = 0
    output.append(room: Int(size)) { memory in
      answer = cserved_read_cached(
        file.descriptor, memory.baseAddress, memory.count, reply.position)
      return max(0, Int(answer))
    }
    guard answer == size else {
      output.removeAll(after: before)
      reply.isHeadPending = wasHeadPending
      readsAfterRefusal = min(Self.mostReadsToSkip, max(4, readsAfterRefusal * 2))
      readsToSkip = readsAfterRefusal
      return 0
    }
    readsAfterRefusal = 0
    count(size)
    return size
  }

  private func count(_ sent: Int64) {
    reply.position += sent
    counted(sent)
  }

  private func counted(_ sent: Int64) {
    reply.sent += sent
    loop.statistics.bytesSent += Int(sent)
  }

  // MARK: From the disk

  private func read() {
    // The answers before this one need not wait for the disk.
    flush(hasMore: !reply.isHeadPending)
    guard phase == .sending, let served = reply.file else { return }
    waitForDisk()
    do throws(AIOError) {
      let file = served.file
      let unit = Int64(file.alignment.offset)
      let start = reply.position / unit * unit
      let wanted = min((reply.end - start + unit - 1) / unit * unit, Int64(BufferPool.large))
      let buffer = loop.buffers.take(atLeast: Int(wanted))
      reading = try loop.context.read(file, at: start, into: buffer[..<Int(wanted)]) {
        [self] result in
        reading = nil
        workIsBack()
        hasRead(result, from: start, into: buffer)
      }
      workBegins()
    } catch {
      readFailed(error)
    }
  }

  private func hasRead(_ result: Result<Int, AIOError>, from start: Int64, into buffer: AIOBuffer) {
    loop.refreshTime()
    guard phase == .sending else { return loop.buffers.give(buffer) }
    switch result {
    case .success(let count):
      let end = min(start + Int64(count), reply.end)
      guard end > reply.position else {
        // The file is shorter than it was: the client sees that something is missing.
        loop.buffers.give(buffer)
        return close()
      }
      chunk = buffer
      chunkRange = Int(reply.position - start)..<Int(end - start)
      reply.position = end
      drive()
    case .failure(let error):
      loop.buffers.give(buffer)
      readFailed(error)
    }
  }

  private func readFailed(_ error: AIOError) {
    loop.logger.error("\(error)")
    guard reply.isHeadPending else { return close() }
    // Nothing of it has been sent.
    answer(500, keepsAlive: false)
    flush()
  }

  /// Sends the head, if it is still to be sent, and the chunk.
  ///
  /// - Returns: whether all was taken.
  private func sendChunk() -> Bool {
    guard let buffer = chunk else { return true }
    appendPendingHead()
    let output = loop.output
    let answer = buffer.withUnsafeBytes { bytes -> Int64 in
      let body = Bytes(rebasing: bytes[chunkRange])
      return output.bytes.isEmpty
        ? cserved_send(socket, body.baseAddress, body.count, nil, 0, 0)
        : cserved_send(
          socket, output.bytes.baseAddress, output.count, body.baseAddress, body.count, 0)
    }
    guard answer >= 0 || answer == -Int64(EAGAIN) else {
      close()
      return false
    }
    let sent = max(0, Int(answer))
    let ofHead = min(sent, output.count)
    if ofHead < output.count { unsent += output.bytes[ofHead...] }
    output.removeAll()
    counted(Int64(sent - ofHead))
    chunkRange = chunkRange.lowerBound + (sent - ofHead)..<chunkRange.upperBound
    guard chunkRange.isEmpty else {
      waitToWrite()
      return false
    }
    loop.buffers.give(buffer)
    chunk = nil
    return true
  }

  // MARK: Heads and small answers

  /// Sends what is in the output, so that it is empty for the next connection.
  ///
  /// - Parameter hasMore: Whether more follows at once, to go into the same packet.
  /// - Returns: whether the socket took all. What it did not take waits.
  @discardableResult
  func flush(hasMore: Bool = false) -> Bool {
    let output = loop.output
    guard !output.isEmpty else { return unsent.isEmpty }
    defer { output.removeAll() }
    guard phase != .closed else { return false }
    if unsent.isEmpty {
      let answer = cserved_send(
        socket, output.bytes.baseAddress, output.count, nil, 0, hasMore ? 1 : 0)
      guard answer >= 0 || answer == -Int64(EAGAIN) else {
        close()
        return false
      }
      let sent = max(0, Int(answer))
      if sent == output.count { return true }
      unsent += output.bytes[sent...]
    } else {
      unsent += output.bytes
    }
    waitToWrite()
    return false
  }

  /// - Returns: whether the socket took all.
  func sendUnsent() -> Bool {
    let answer = unsent.withUnsafeBytes {
      let rest = Bytes(rebasing: $0[unsentStart...])
      return cserved_send(socket, rest.baseAddress, rest.count, nil, 0, 0)
    }
    guard answer >= 0 || answer == -Int64(EAGAIN) else {
      close()
      return false
    }
    unsentStart += max(0, Int(answer))
    guard unsentStart == unsent.count else {
      wait(loop.settings.sendTimeout)
      return false
    }
    (unsent, unsentStart) = ([], 0)
    releaseListing()
    unsentIsSent()
    return true
  }
}
