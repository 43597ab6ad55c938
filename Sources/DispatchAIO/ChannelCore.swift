// SPDX-License-Identifier: Apache-2.0
//
// What the operations of one channel share: the file, the limits, and the order that barriers and
// the end ask for.

internal import Dispatch
internal import PlatformLibc
internal import SystemPackage

final class ChannelCore: Sendable {
  /// The marks and the interval that an operation begins with.
  struct Limits: Sendable {
    /// `DispatchIO`'s own low-water mark.
    var low = 1 << 20
    var high = Int.max
    /// If not `nil`, handlers are called at it.
    var interval: DispatchTimeInterval?
  }

  struct Opened: Sendable {
    let file: AIOFile
    let context: AIOContext
  }

  private enum Entry: Sendable {
    case operation(ChannelTransfer)
    case barrier(@Sendable () -> Void)
  }

  private struct State: Sendable {
    var opened: Result<Opened, Errno>?
    /// Whether a barrier runs, or the file is being opened.
    var isHeldBack = true
    var waiting: [Entry] = []
    /// The number of operations that have begun, and not ended.
    var active = 0
    var isClosed = false
    /// Whether the operations are to end.
    var isStopped = false
    var hasEnded = false
  }

  /// The context of channels that name none.
  private static let shared = Result<AIOContext, AIOError> { () throws(AIOError) in
    try AIOContext(queueDepth: 128)
  }

  let limits = Lock(Limits())
  /// The descriptor's position, from which offsets count.
  let position: Int64
  private let cleanup: @Sendable (Int32) -> Void
  private let state = Lock(State())
  private let barriers = DispatchQueue(label: "DispatchAIO.barrier")

  init(position: Int64, cleanup: @escaping @Sendable (Int32) -> Void) {
    self.position = position
    self.cleanup = cleanup
  }

  /// Whether the operations are to end.
  var isStopped: Bool { state.withLock { $0.isStopped } }

  /// Opens the file on a thread that may sleep, and then begins what has been asked for.
  func open(_ context: AIOContext?, _ open: @escaping @Sendable () -> Result<Int32, Errno>) {
    BlockingCalls.run(on: nil) { [self] in
      let opened = open().flatMap { Self.adopt($0, context) }
      state.withLock {
        $0.opened = opened
        $0.isHeldBack = false
      }
      advance()
    }
  }

  private static func adopt(_ descriptor: Int32, _ context: AIOContext?) -> Result<Opened, Errno> {
    do throws(AIOError) {
      let context = if let context { context } else { try shared.get() }
      // Whatever is not opened with O_DIRECT.
      let file = try AIOFile(
        adopting: FileDescriptor(rawValue: descriptor), isAutomatic: true)
      return .success(Opened(file: file, context: context))
    } catch {
      PlatformLibc.close(descriptor)
      return .failure(error.channelErrno)
    }
  }

  // MARK: The order

  /// Begins an operation, once the barriers before it have passed.
  func schedule(_ operation: ChannelTransfer) {
    let isClosed = state.withLock { state in
      if !state.isClosed { state.waiting.append(.operation(operation)) }
      return state.isClosed
    }
    if !isClosed { return advance() }
    // It counts, as if it had been made before.
    state.withLock { $0.active += 1 }
    operation.start(.failure(.canceled))
  }

  func barrier(_ body: @escaping @Sendable () -> Void) {
    state.withLock { $0.waiting.append(.barrier(body)) }
    advance()
  }

  func close(stops: Bool) {
    state.withLock {
      $0.isClosed = true
      if stops { $0.isStopped = true }
    }
    advance()
  }

  /// Learns that the last handler of an operation has returned.
  func ended() {
    state.withLock { $0.active -= 1 }
    advance()
  }

  private enum Step: Sendable {
    case operation(ChannelTransfer, Result<Opened, Errno>)
    case barrier(@Sendable () -> Void)
    case end(Result<Opened, Errno>)
  }

  /// Begins what nothing holds back.
  private func advance() {
    while let step = state.withLock({ Self.nextStep(&$0) }) {
      switch step {
      case .operation(let operation, let opened): operation.start(opened)
      case .barrier(let body):
        barriers.async { [self] in
          body()
          state.withLock { $0.isHeldBack = false }
          advance()
        }
      case .end(let opened): end(opened)
      }
    }
  }

  private static func nextStep(_ state: inout State) -> Step? {
    guard !state.isHeldBack, let opened = state.opened else { return nil }
    switch state.waiting.first {
    case .operation(let operation):
      state.waiting.removeFirst()
      state.active += 1
      return .operation(operation, state.isStopped ? .failure(.canceled) : opened)
    case .barrier(let body):
      guard state.active == 0 else { return nil }
      state.waiting.removeFirst()
      state.isHeldBack = true
      return .barrier(body)
    case nil:
      guard state.isClosed, state.active == 0, !state.hasEnded else { return nil }
      state.hasEnded = true
      return .end(opened)
    }
  }

  private func end(_ opened: Result<Opened, Errno>) {
    switch opened {
    case .success(let opened):
      opened.file.close { [cleanup] in cleanup(0) }
    case .failure(let error): cleanup(error.rawValue)
    }
  }
}

extension AIOError {
  /// The number that a handler of `DispatchIO` gets.
  var channelErrno: Errno {
    if let errno { return errno }
    switch code {
    case .cancelled, .contextClosed: return .canceled
    case .wrongAccessMode, .fileClosed: return .badFileDescriptor
    case .unsupportedFile: return .illegalSeek
    default: return .invalidArgument
    }
  }
}
