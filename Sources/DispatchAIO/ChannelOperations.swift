// SPDX-License-Identifier: Apache-2.0
//
// The operations of a channel. Each is confined to the queue of the context, once it has begun; it
// begins in place, on whichever thread, where that makes one request.

internal import Dispatch
internal import PlatformLibc
internal import SystemPackage

/// What operations do alike: they call the handler, and end once.
///
/// - Safety: `@unchecked Sendable` because `start` sets what it sets before it makes a request, and
///   all else is touched on the context's queue.
class ChannelTransfer: @unchecked Sendable {
  typealias Handler = @Sendable (Bool, DispatchData?, Int32) -> Void

  let core: ChannelCore
  let limits: ChannelCore.Limits
  let handler: Handler
  let queue: DispatchQueue
  /// The offset in the file; `nil` if there is none.
  let offset: Int64?
  private(set) var opened: ChannelCore.Opened?
  private var timer: AIOTimerSource?
  private var hasEnded = false

  init(
    _ core: ChannelCore, _ offset: Int64, _ queue: DispatchQueue, _ handler: @escaping Handler
  ) {
    (self.core, self.queue, self.handler) = (core, queue, handler)
    limits = core.limits.withLock { $0 }
    let (sum, overflow) = core.position.addingReportingOverflow(offset)
    self.offset = overflow || sum < 0 ? nil : sum
  }

  /// The most bytes of one request.
  var chunkSize: Int { min(limits.high, 1 << 20) }

  /// Whether it asks for no bytes, and so ends without a look at the offset or the file's mode.
  var isEmpty: Bool { false }
  /// Whether it is one request, which may be made on any thread.
  var isShort: Bool { false }
  /// Makes the first requests.
  func begin(_ opened: ChannelCore.Opened) {}
  /// Ends with what there is.
  func end(_ error: Int32, inPlace: Bool) {}
  /// Delivers what there is at the interval.
  func intervalPassed() {}

  /// Begins the operation on a file, or ends it with an error. From any thread; calls
  /// `core.ended()` once its last handler has returned.
  func start(_ result: Result<ChannelCore.Opened, Errno>) {
    switch result {
    case .failure(let error): end(error.rawValue, inPlace: false)
    case .success(let opened):
      guard !isEmpty else { return end(0, inPlace: false) }
      guard offset != nil else { return end(EINVAL, inPlace: false) }
      self.opened = opened
      if isShort && limits.interval == nil { return begin(opened) }
      opened.context.async { [self] in
        startTimer(opened.context)
        begin(opened)
      }
    }
  }

  private func startTimer(_ context: AIOContext) {
    guard let interval = limits.interval, let timer = try? context.makeTimerSource() else { return }
    timer.setEventHandler { [weak self] in self?.intervalPassed() }
    timer.schedule(deadline: .now() + interval, repeating: interval)
    timer.activate()
    self.timer = timer
  }

  /// Calls the handler.
  ///
  /// - Parameter inPlace: Whether the caller is a completion handler, on the context's queue.
  func deliver(_ isDone: Bool, _ data: DispatchData?, _ error: Int32, inPlace: Bool) {
    if isDone {
      guard !hasEnded else { return }
      hasEnded = true
      timer?.cancel()
    }
    if inPlace, queue === opened?.context.queue {
      handler(isDone, data, error)
      if isDone { core.ended() }
      return
    }
    // Nobody else refers to it: DispatchData is an immutable value.
    nonisolated(unsafe) let data = data
    queue.async { [self] in
      unsafe handler(isDone, data, error)
      if isDone { core.ended() }
    }
  }
}

/// A read, in chunks of which several are under way, delivered in order.
///
/// - Safety: As its superclass.
final class ChannelRead: ChannelTransfer, @unchecked Sendable {
  private static let mostChunks = 4

  /// - Safety: `@unchecked Sendable` because it is confined as the operation is.
  private final class Chunk: @unchecked Sendable {
    let count: Int
    var result: Result<DispatchData, AIOError>?
    init(_ count: Int) { self.count = count }
  }

  /// The number of bytes that are not asked for yet.
  private var left: Int
  private var next: Int64
  private var chunks: [Chunk] = []
  private var undelivered = DispatchData.empty
  private var isOver = false

  init(
    _ core: ChannelCore, _ offset: Int64, _ length: Int, _ queue: DispatchQueue,
    _ handler: @escaping Handler
  ) {
    // A negative length is the largest of the C function's.
    left = length < 0 ? .max : length
    next = 0
    super.init(core, offset, queue, handler)
    next = self.offset ?? 0
  }

  override var isEmpty: Bool { left == 0 }
  override var isShort: Bool { left <= chunkSize }

  override func begin(_ opened: ChannelCore.Opened) {
    if isShort { issueOne(opened) } else { issue(opened) }
  }

  /// Makes requests until as many as may be are under way.
  private func issue(_ opened: ChannelCore.Opened) {
    while !isOver, left > 0, chunks.count < Self.mostChunks { issueOne(opened) }
  }

  /// Makes the next request, as its last action: it may complete at once on another thread.
  private func issueOne(_ opened: ChannelCore.Opened) {
    let chunk = Chunk(min(left, chunkSize))
    chunks.append(chunk)
    let offset = next
    // A chunk that ends behind the last offset is refused, and with it the read ends.
    (next, left) = (next &+ Int64(chunk.count), left - chunk.count)
    opened.context.readData(opened.file, from: offset, count: chunk.count) { [self] result in
      chunk.result = result
      drain(opened)
    }
  }

  /// Takes what has been read, in order.
  private func drain(_ opened: ChannelCore.Opened) {
    while !isOver, let chunk = chunks.first, let result = chunk.result {
      chunks.removeFirst()
      switch result {
      case .success(let data):
        if undelivered.count > 0, undelivered.count > limits.high - data.count { flush() }
        undelivered.append(data)
        if core.isStopped { return end(ECANCELED, inPlace: true) }
        if data.count < chunk.count {
          // The file ends here.
          if undelivered.count > 0 { flush() }
          return end(0, inPlace: true)
        }
        if chunks.isEmpty && left == 0 { return end(0, inPlace: true) }
        if undelivered.count >= limits.low { flush() }
      case .failure(let error): return end(error.channelErrno.rawValue, inPlace: true)
      }
    }
    issue(opened)
  }

  private func flush() {
    deliver(false, undelivered, 0, inPlace: true)
    undelivered = .empty
  }

  override func intervalPassed() {
    if !isOver { flush() }
  }

  override func end(_ error: Int32, inPlace: Bool) {
    isOver = true
    deliver(
      true, error != 0 && undelivered.count == 0 ? nil : undelivered, error, inPlace: inPlace)
    undelivered = .empty
  }
}

/// A write, one chunk after the other.
///
/// - Safety: As its superclass.
final class ChannelWrite: ChannelTransfer, @unchecked Sendable {
  /// The bytes that are not written yet.
  private var data: DispatchData
  private var next: Int64 = 0
  /// The number of bytes written since the handler was called.
  private var unreported = 0

  init(
    _ core: ChannelCore, _ offset: Int64, _ data: DispatchData, _ queue: DispatchQueue,
    _ handler: @escaping Handler
  ) {
    self.data = data
    super.init(core, offset, queue, handler)
    next = self.offset ?? 0
  }

  override var isEmpty: Bool { data.count == 0 }
  override var isShort: Bool { data.count <= chunkSize }

  override func begin(_ opened: ChannelCore.Opened) { write(opened) }

  private func write(_ opened: ChannelCore.Opened) {
    let chunk = data.subdata(in: 0..<min(data.count, chunkSize))
    opened.context.writeData(opened.file, chunk, at: next) { [self] result in
      let (count, error) =
        switch result {
        case .success(let count): (count, Int32(0))
        case .failure(let error): (error.transferred, error.channelErrno.rawValue)
        }
      data = count < data.count ? data.subdata(in: count..<data.count) : .empty
      next += Int64(count)
      unreported += count
      if error != 0 { return end(error, inPlace: true) }
      if core.isStopped { return end(ECANCELED, inPlace: true) }
      if data.count == 0 { return end(0, inPlace: true) }
      if unreported >= limits.low { report() }
      write(opened)
    }
  }

  private func report() {
    unreported = 0
    deliver(false, data, 0, inPlace: true)
  }

  override func intervalPassed() {
    if data.count > 0 { report() }
  }

  override func end(_ error: Int32, inPlace: Bool) {
    deliver(true, error == 0 ? nil : data, error, inPlace: inPlace)
    data = .empty
  }
}
