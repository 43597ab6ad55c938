// SPDX-License-Identifier: Apache-2.0
//
// From requests to commands: what may begin now, what waits for memory, and large reads in parts.

extension Connection {
  @inline(__always)
  func newCommand(_ request: Request, cost: Int, memory: Int = 0) -> Command {
    let command = loop.commands.take(for: loop)
    command.connection = self
    command.request = request
    command.cost = cost
    budget.charge(cost)
    charge(memory, to: command)
    commandCount += 1
    return command
  }

  /// Charges memory to the loop's for a command.
  @inline(__always)
  func charge(_ memory: Int, to command: Command) {
    command.memory += memory
    loop.memory.charge(memory, to: self)
  }

  /// Takes a command's memory off the loop's.
  @inline(__always)
  private func refund(_ command: Command) {
    loop.memory.refund(command.memory, to: self)
    command.memory = 0
    if !loop.memory.waiting.isEmpty {
      loop.memoryWasFreed = true
      loop.workSoon()
    }
  }

  /// Gives back the memory of a command that needs none any more, before its reply is sent.
  @inline(__always)
  func giveMemory(of command: Command) {
    command.giveBuffers()
    refund(command)
  }

  /// Releases a command whose reply was sent, or will not be.
  func release(_ command: Command) {
    commandCount -= 1
    budget.refund(command.cost)
    refund(command)
    let stream = command.stream
    loop.recycle(command)
    if let stream {
      stream.unsent -= 1
      continueStream(stream)
      if stream.unsent == 0 && stream.next == stream.end {
        budget.refund(stream.cost)
        streamCount -= 1
      }
    }
    if isClosed && commandCount == 0 { loop.placeIsFree() }
  }

  // MARK: Admission

  /// Begins a request, or keeps it until there is memory for it.
  ///
  /// - Returns: whether the requests behind it may be parsed.
  @inline(__always)
  func take(_ request: Request) -> Bool {
    isWritingMuch = request.command == .write && Int(request.length) > Self.longPayload
    let cost = cost(of: request)
    if !admits(request, cost) {
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

  /// Whether there is memory for a request; if not, the connection continues when there is.
  @inline(__always)
  private func admits(_ request: Request, _ cost: Int) -> Bool {
    guard budget.admits(cost) else { return false }
    let memory = memoryAtOnce(request, cost)
    return memory == 0 || hasMemory(memory)
  }

  /// Whether the loop has so many bytes more for this connection; if not, the connection continues
  /// when memory is given back.
  @inline(__always)
  func hasMemory(_ bytes: Int) -> Bool {
    if loop.memory.admits(bytes, for: self) { return true }
    loop.memory.wait(self)
    loop.planStallCheck()
    return false
  }

  /// The memory that a request needs when it begins. A large write's buffers are taken as its
  /// payload is received, those of a read in parts by each part.
  @inline(__always)
  private func memoryAtOnce(_ request: Request, _ cost: Int) -> Int {
    MemoryBudget.isLarge(cost) && (request.command == .write || isStreamed(request)) ? 0 : cost
  }

  func admitDeferredReads() {
    while let request = deferredReads.first {
      let cost = cost(of: request)
      guard admits(request, cost) else { return }
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
    let memory = memoryAtOnce(request, cost)
    let command = newCommand(request, cost: cost, memory: memory)
    if request.command == .read || request.command == .write {
      command.setBlocks(export)
      if memory > 0 { command.takeBuffers() }
    }
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
    payloadDeadline = nil
    loop.start(command)
  }

  /// Makes room for payload of the write that is being received.
  ///
  /// - Returns: whether there is some; if not, the connection continues when memory is given back.
  @inline(__always)
  func hasRoomForPayload(_ command: Command) -> Bool {
    guard command.missing(of: 1) > 0, let next = command.nextBuffer else { return true }
    guard hasMemory(next) else {
      isBlocked = true
      return false
    }
    charge(next, to: command)
    command.takeBuffer()
    payloadDeadline = nil
    return true
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
      let memory = BufferPool.cost(
        Int(export.up(end, to: export.block) - export.down(stream.next, to: export.block)))
      guard hasMemory(memory) else {
        if !stream.isStalled { stalledStreams.append(stream) }
        stream.isStalled = true
        return
      }
      var part = stream.request
      part.offset = stream.next
      part.length = UInt32(end - stream.next)
      stream.next = end
      stream.unread += 1
      stream.unsent += 1
      let command = newCommand(part, cost: 0, memory: memory)
      command.stream = stream
      command.setBlocks(export)
      command.takeBuffers()
      loop.start(command)
    }
  }
}

extension Connection {
  /// Starts parts of the large reads that waited for memory.
  func continueStalledStreams() {
    guard !stalledStreams.isEmpty else { return }
    let streams = stalledStreams
    stalledStreams = []
    for stream in streams {
      stream.isStalled = false
      continueStream(stream)
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
  /// Whether the next part waits for memory.
  var isStalled = false
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
