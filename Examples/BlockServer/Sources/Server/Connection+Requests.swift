// SPDX-License-Identifier: Apache-2.0
//
// From requests to commands: what may begin now, what waits for memory, and large reads in parts.

extension Connection {
  @inline(__always)
  func newCommand(_ request: Request, cost: Int) -> Command {
    let command = loop.commands.take(for: loop)
    command.connection = self
    command.request = request
    command.cost = cost
    budget.charge(cost)
    commandCount += 1
    return command
  }

  /// Releases a command whose reply was sent, or will not be.
  func release(_ command: Command) {
    commandCount -= 1
    budget.refund(command.cost)
    let stream = command.stream
    loop.recycle(command)
    if let stream {
      stream.unsent -= 1
      continueStream(stream)
      if stream.unsent == 0 {
        budget.refund(stream.cost)
        streamCount -= 1
      }
    }
  }

  // MARK: Admission

  /// Begins a request, or keeps it until there is memory for it.
  ///
  /// - Returns: whether the requests behind it may be parsed.
  @inline(__always)
  func take(_ request: Request) -> Bool {
    let cost = cost(of: request)
    if !budget.admits(cost) {
      if MemoryBudget.isLarge(cost) && request.command == .read {
        deferredReads.append(request)
        return true
      }
      heldRequest = request
      isBlocked = true
      return false
    }
    begin(request, cost: cost)
    return true
  }

  func admitDeferredReads() {
    while let request = deferredReads.first {
      let cost = cost(of: request)
      guard budget.admits(cost) else { return }
      deferredReads.removeFirst()
      begin(request, cost: cost)
    }
  }

  /// The memory that a request takes, in bytes.
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

  @inline(__always)
  private func begin(_ request: Request, cost: Int) {
    loop.statistics.requests += 1
    begunInTurn += 1
    if isStreamed(request) {
      budget.charge(cost)
      streamCount += 1
      return continueStream(StreamedRead(request, cost: cost))
    }
    let command = newCommand(request, cost: cost)
    if request.command == .read || request.command == .write { command.takeBuffers(export) }
    if request.command == .write && request.length > 0 {
      incomingWrite = command
    } else {
      loop.start(command)
    }
  }

  /// Starts the write whose payload has been received.
  func startIncomingWrite() {
    guard let command = incomingWrite else { preconditionFailure("no write is being received") }
    incomingWrite = nil
    loop.start(command)
  }

  // MARK: Large reads in parts

  /// Whether the reply to a read is sent in chunks, each as soon as it is read.
  private func isStreamed(_ request: Request) -> Bool {
    request.command == .read && session.isStructured && !request.flags.contains(.df)
      && Int(request.length) > BufferPool.largest
  }

  /// Starts the next parts of a large read, as many as may be in progress.
  func continueStream(_ stream: StreamedRead) {
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
}

/// A large read whose reply is sent in chunks, each as soon as it is read. Confined to its loop.
final class StreamedRead {
  let request: Request
  /// The offset of the next part.
  var next: UInt64
  /// The number of parts not read from the disk yet.
  var unread = 0
  /// The number of parts not sent yet, read or not.
  var unsent = 0
  /// The first error of a part, which the last chunk of the reply tells.
  var error: (NBD.ErrorCode, String)?
  let cost: Int

  init(_ request: Request, cost: Int) {
    self.request = request
    self.cost = cost
    next = request.offset
  }

  var end: UInt64 { request.offset + UInt64(request.length) }
}
