// SPDX-License-Identifier: Apache-2.0
//
// One send of a part of a file to a socket: what the page cache has goes out from there, the rest
// is read into a buffer first, and where the socket takes no more, the send waits for it in the
// ring. Each step is short, and the send is then waiting for one thing: a read, the socket, or its
// turn.

internal import CKernel
internal import PlatformLibc
internal import Synchronization
internal import SystemPackage

/// What the sends of a loop share.
struct FileSends {
  /// The sizes of the buffers: for most answers, and for the parts of large ones.
  static let (small, large) = (16 << 10, 128 << 10)
  /// The most bytes that are kept in buffers of each size.
  private static let limit = 8 << 20

  private var smallOnes: [BufferStorage] = []
  private var largeOnes: [BufferStorage] = []
  /// The sockets to which something is being sent.
  var sockets: Set<Int32> = []

  /// A buffer, with whatever is in it; `nil` if there is no memory.
  mutating func take(atLeast count: Int) -> BufferStorage? {
    if count <= Self.small {
      return smallOnes.popLast() ?? BufferStorage(count: Self.small, alignment: 4096)
    }
    return largeOnes.popLast() ?? BufferStorage(count: Self.large, alignment: 4096)
  }

  mutating func give(_ buffer: BufferStorage) {
    if buffer.count == Self.small {
      if smallOnes.count < Self.limit / Self.small { smallOnes.append(buffer) }
    } else if largeOnes.count < Self.limit / Self.large {
      largeOnes.append(buffer)
    }
  }
}

/// - Safety: `@unchecked Sendable` because what is not constant or atomic is touched on the loop's
///   queue only.
final class FileSend: @unchecked Sendable {
  /// From so many bytes on, sendfile is cheaper than to copy.
  private static let sendfileThreshold = 24 << 10
  /// The most bytes that one step sends from the page cache, before others get their turn.
  private static let share = 1 << 20

  private enum Waiting {
    case nothing
    case read(RequestID)
    case slot(Waiter)
    case socket(PollTable.ID)
    case turn
  }

  let loop: Loop
  /// Held until the send has ended.
  let file: OpenFile
  let socket: Int32
  private let offset: Int64
  private let count: Int
  private let completion: AIOCompletion

  private var header: [UInt8]
  private var headerSent = 0
  /// The number of bytes of the file that the socket has taken.
  private var sent = 0
  /// What has been read of the file, and has not been sent.
  private var buffer: BufferStorage?
  private var unsent = 0..<0
  private var waiting = Waiting.nothing
  private var isCancelled = false
  private var hasEnded = false
  /// The number of bytes that the socket has taken, with the header.
  let progress = Atomic<Int>(0)

  /// - Parameter file: Held by the caller for the send.
  init(
    _ file: OpenFile, at offset: Int64, count: Int, header: [UInt8], to socket: Int32,
    on loop: Loop,
    completion: @escaping AIOCompletion
  ) {
    (self.file, self.offset, self.count, self.header) = (file, offset, count, header)
    (self.socket, self.loop, self.completion) = (socket, loop, completion)
  }

  var subject: AIOError.Subject {
    .init(
      operation: .send, path: file.path, descriptor: file.descriptor, offset: offset, length: count)
  }

  // MARK: Steps

  /// Begins, in a turn. The completion is not called within the call.
  func start() {
    guard loop.sends.sockets.insert(socket).inserted else {
      hasEnded = true
      file.release()
      let error = AIOError(
        .exists, subject,
        .text(
          "something is being sent to socket \(socket) already; send this when it has completed"))
      return loop.async { [completion] in completion(.failure(error)) }
    }
    if let result = step() { end(result) { [loop] body in loop.async(body) } }
  }

  private func proceed() {
    guard !hasEnded else { return }
    if let result = step() { end(result) { $0() } }
  }

  private func end(
    _ result: Result<Int, AIOError>, _ run: (@escaping @Sendable () -> Void) -> Void
  ) {
    hasEnded = true
    if let buffer { loop.sends.give(buffer) }
    buffer = nil
    header = []
    loop.sends.sockets.remove(socket)
    file.release()
    run { [completion] in completion(result) }
  }

  private func failure(_ errno: Int32) -> Result<Int, AIOError> {
    .failure(AIOError(errno: errno, subject, transferred: sent))
  }

  /// The failure of the send for that of one of its parts.
  private func failure(_ error: AIOError) -> Result<Int, AIOError> {
    .failure(error.with(subject, transferred: sent))
  }

  /// Sends what can be sent now, and begins what has to be waited for.
  ///
  /// - Returns: The result, if this was the last step.
  private func step() -> Result<Int, AIOError>? {
    waiting = .nothing
    if isCancelled { return .failure(.cancelledSend(subject, transferred: sent)) }
    // The cancel handlers of the socket's sources have run, and may have closed it.
    if loop.readiness.isClosed { return failure(.contextClosed(subject)) }
    var share = Self.share
    while true {
      if !unsent.isEmpty || sent == count {
        if let errno = sendUnsent() { return wait(after: errno) }
        if sent == count { return .success(count) }
        continue
      }
      guard share > 0 else {
        waiting = .turn
        loop.async { [self] in proceed() }
        return nil
      }
      guard let answer = sendFromCache() else { return read() }
      if answer < 0 { return wait(after: Int32(-answer)) }
      share -= answer
    }
  }

  /// Sends the header, and what has been read.
  ///
  /// - Returns: `nil` if all has been sent, or an errno.
  private func sendUnsent(hasMore: Bool = false) -> Int32? {
    while headerSent < header.count || !unsent.isEmpty {
      let answer = unsafe header.withUnsafeBytes { header in
        let first = unsafe UnsafeRawBufferPointer(rebasing: header[headerSent...])
        // The buffer is this send's.
        let second = unsafe buffer.map { unsafe UnsafeRawPointer($0.base + unsent.lowerBound) }
        return unsafe first.isEmpty
          ? ckernel_send(socket, second, UInt64(unsent.count), nil, 0, 0)
          : ckernel_send(
            socket, first.baseAddress, UInt64(first.count), second, UInt64(unsent.count),
            hasMore ? 1 : 0)
      }
      guard answer >= 0 else { return Int32(-answer) }
      progress.add(Int(answer), ordering: .relaxed)
      let ofHeader = min(Int(answer), header.count - headerSent)
      headerSent += ofHeader
      unsent.removeFirst(Int(answer) - ofHeader)
      sent += Int(answer) - ofHeader
    }
    if let buffer { loop.sends.give(buffer) }
    buffer = nil
    return nil
  }

  /// Sends the next part from the page cache, or copies it to be sent with the header.
  ///
  /// - Returns: The number of bytes; `nil` if they are not there; or a negative errno.
  private func sendFromCache() -> Int? {
    let (at, left) = (offset + Int64(sent), count - sent)
    if left < Self.sendfileThreshold {
      guard let memory = loop.sends.take(atLeast: left) else { return nil }
      let bytes = unsafe UnsafeMutableRawBufferPointer(start: memory.base, count: left)
      guard unsafe file.copyCached(at: at, into: bytes) else {
        loop.sends.give(memory)
        return nil
      }
      (buffer, unsent) = (memory, 0..<left)
      return left
    }
    let size = min(left, OpenFile.largestSend)
    guard file.isCached(at, size) else { return nil }
    if let errno = sendUnsent(hasMore: true) { return -Int(errno) }
    guard let answer = file.sendCached(at: at, count: size, to: socket) else { return nil }
    guard answer > 0 else { return answer }
    sent += answer
    progress.add(answer, ordering: .relaxed)
    return answer < size ? -Int(EAGAIN) : answer
  }

  // MARK: Waiting

  /// Waits for the socket, if that is what the errno says.
  private func wait(after errno: Int32) -> Result<Int, AIOError>? {
    guard errno == EAGAIN else { return failure(errno) }
    let poll = OneShotPoll(fd: socket, events: .writable) { [self] result in
      waiting = .nothing
      guard !hasEnded else { return }
      if case .failure(let error) = result, error.code == .contextClosed {
        return end(failure(error)) { $0() }
      }
      proceed()
    }
    do {
      waiting = .socket(try loop.readiness.add(poll))
    } catch {
      return error == .canceled ? failure(.contextClosed(subject)) : failure(error.rawValue)
    }
    loop.readinessChanged(hasHandlers: false)
    return nil
  }

  /// Reads the next part from the disk.
  private func read() -> Result<Int, AIOError>? {
    let unit = file.directReads?.alignment ?? file.traits.alignment
    let at = Int(offset) + sent
    let start = unit.roundDown(at)
    // No file has a byte in the block that holds the largest offset.
    let end = min(unit.roundUp(Int(offset) + count), unit.roundDown(.max))
    let length = min(end - start, unit.roundDown(FileSends.large))
    guard let memory = loop.sends.take(atLeast: length) else { return failure(ENOMEM) }
    file.retainHeld()
    let skipped = at - start
    // The request owns the memory.
    let piece = unsafe Piece(
      bytes: UnsafeMutableRawBufferPointer(start: memory.base, count: length), owner: memory)
    func request(_ completion: @escaping AIOCompletion) -> Request<Delivery> {
      Request(
        operation: .read(into: .piece(piece)), file: file, offset: Int64(start), length: length,
        attachment: .callback(completion, queue: nil))
    }
    do throws(AIOError) {
      waiting = .read(try loop.accept(request { [self] in hasRead($0, memory, skipped) }))
      return nil
    } catch {
      guard error.code == .full else { return refused(error, memory) }
      let waiter = Waiter()
      waiting = .slot(waiter)
      loop.admit(request { [self] in continueInTurn($0, memory, skipped) }, waiter)
      return nil
    }
  }

  private func refused(_ error: AIOError, _ memory: BufferStorage) -> Result<Int, AIOError> {
    file.release()
    loop.sends.give(memory)
    return failure(error)
  }

  /// Continues after a read that had to wait for a slot: such a request ends on the thread that
  /// ends it, that of a `close` for one, and within the call.
  private func continueInTurn(
    _ result: Result<Int, AIOError>, _ memory: BufferStorage, _ skipped: Int
  ) {
    loop.async { [self] in hasRead(result, memory, skipped) }
  }

  private func hasRead(_ result: Result<Int, AIOError>, _ memory: BufferStorage, _ skipped: Int) {
    waiting = .nothing
    switch result {
    case .success(let answer):
      // In this order, the sum does not overflow.
      let end = skipped + min(answer - skipped, count - sent)
      // The file ends there, which the caller sees from the result.
      guard end > skipped else {
        loop.sends.give(memory)
        return self.end(.success(sent)) { $0() }
      }
      (buffer, unsent) = (memory, skipped..<end)
      proceed()
    case .failure(let error):
      loop.sends.give(memory)
      self.end(failure(error)) { $0() }
    }
  }

  // MARK: Cancelling

  /// Ends the send as soon as it can be. From any thread.
  func cancel() {
    loop.async { [self] in
      guard !hasEnded, !isCancelled else { return }
      isCancelled = true
      switch waiting {
      case .read(let id): _ = loop.cancel(id)
      case .slot(let waiter): loop.cancel(waiter)
      case .socket(let poll): if loop.readiness.remove(poll) != nil { proceed() }
      case .turn, .nothing: break
      }
    }
  }
}

extension AIOError {
  static func cancelledSend(_ subject: Subject, transferred: Int) -> AIOError {
    AIOError(
      .cancelled, errno: .canceled, subject, .text("cancelled before all had been sent"),
      transferred: transferred)
  }
}
