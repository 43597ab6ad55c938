// SPDX-License-Identifier: Apache-2.0

internal import CLinux
public import Dispatch
internal import SystemPackage

/// The readiness of a descriptor, or a timer, as an event on a context's queue: from
/// ``AIOContext/makeReadSource(fileDescriptor:)``, ``AIOContext/makeWriteSource(fileDescriptor:)``
/// and ``AIOContext/makeTimerSource()``.
///
/// It has the vocabulary and the meaning of a `DispatchSource`, but its events arrive through the
/// context's completion ring, beside those of the disk: one wait ends for either, without the
/// system calls and thread hand-overs of Dispatch.
///
/// - Sources are level-triggered: the handler runs for as long as the descriptor is ready. Hang-ups
///   and errors are readability, and writability, too.
/// - Handlers run on the context's ``AIOContext/queue``. Every method may be called from any
///   thread; on the queue, no event handler runs after ``cancel()`` or ``suspend()`` has returned.
/// - The cancel handler runs after the last event handler, on the queue: it is where the descriptor
///   is closed. It is not to be closed before.
/// - A source that was made is held by its context until it is cancelled, or the context closes,
///   which cancels it.
///
/// Beneath are `epoll_ctl(2)` and `IOCB_CMD_POLL`; where the kernel has no AIO poll (before Linux
/// 4.18), one `DispatchSourceRead` on the epoll set takes its place.
///
/// - Safety: `@unchecked Sendable` because everything that changes is touched under the lock of the
///   context's readiness only.
public class AIOSource: @unchecked Sendable {
  /// The descriptor that is watched; -1 for a timer.
  let fd: Int32
  let loop: Loop
  private let isWriter: Bool

  // Under the lock of `loop.readiness`.
  private(set) var eventHandler: (@Sendable () -> Void)?
  private var cancelHandler: (@Sendable () -> Void)?
  private var registrationHandler: (@Sendable () -> Void)?
  private var isActive = false
  private var suspensions = 0
  fileprivate private(set) var hasEnded = false

  init(fd: Int32, isWriter: Bool, loop: Loop) {
    self.fd = fd
    self.isWriter = isWriter
    self.loop = loop
  }

  /// Whether events are to be delivered. Under the lock.
  var isRunning: Bool { isActive && suspensions == 0 && !hasEnded }

  /// The event handler is about to run. Under the lock.
  func willRun() {}

  /// Running begins, or ends. Under the lock.
  func runningChanged(_ state: inout Readiness.State) {
    loop.readiness.update(fd, &state)
  }

  func cancel(_ state: inout Readiness.State) {
    guard !hasEnded else { return }
    hasEnded = true
    loop.readiness.remove(self, &state)
    if let cancelHandler { state.handlers.append(cancelHandler) }
    eventHandler = nil
    cancelHandler = nil
    registrationHandler = nil
  }

  // MARK: From any thread

  /// Sets what is called for each event, on the context's queue; `nil` for nothing.
  public func setEventHandler(_ handler: (@Sendable () -> Void)?) {
    loop.readiness.withLock { _ in if !hasEnded { eventHandler = handler } }
  }

  /// Sets what is called once after the source was cancelled, on the context's queue: where the
  /// descriptor is closed.
  public func setCancelHandler(_ handler: (@Sendable () -> Void)?) {
    loop.readiness.withLock { _ in if !hasEnded { cancelHandler = handler } }
  }

  /// Sets what is called once when the source has been activated, on the context's queue.
  public func setRegistrationHandler(_ handler: (@Sendable () -> Void)?) {
    loop.readiness.withLock { _ in if !hasEnded { registrationHandler = handler } }
  }

  /// Begins to deliver events. Once is enough.
  public func activate() {
    let hasHandlers = loop.readiness.withLock { state -> Bool in
      guard !isActive, !hasEnded else { return false }
      isActive = true
      if let handler = registrationHandler.take() { state.handlers.append(handler) }
      if isRunning { runningChanged(&state) }
      return !state.handlers.isEmpty
    }
    loop.readinessChanged(hasHandlers: hasHandlers)
  }

  /// Stops delivering events, until ``resume()`` was called as often.
  public func suspend() {
    loop.readiness.withLock { state in
      let wasRunning = isRunning
      suspensions += 1
      if wasRunning { runningChanged(&state) }
    }
  }

  /// Undoes a ``suspend()``; on a source that was not activated yet, activates it, as Dispatch
  /// does. To resume more often than was suspended is a programmer error, and traps.
  public func resume() {
    let wasInactive = loop.readiness.withLock { state -> Bool in
      guard isActive else { return true }
      guard suspensions > 0 else {
        fatalError("AIOSource: resumed more often than it was suspended")
      }
      suspensions -= 1
      if isRunning { runningChanged(&state) }
      return false
    }
    if wasInactive { activate() } else { loop.readinessChanged(hasHandlers: false) }
  }

  /// Ends the source: no more events; then the cancel handler runs. Once is enough.
  public func cancel() {
    loop.readiness.withLock { cancel(&$0) }
    loop.readinessChanged(hasHandlers: true)
  }

  /// Whether the source was cancelled, by ``cancel()`` or because its context has been closed.
  public var isCancelled: Bool { loop.readiness.withLock { _ in hasEnded } }

  /// The descriptor; -1 for a timer.
  public var handle: Int32 { fd }

  /// For a read source, how many bytes can be read now without waiting (`FIONREAD`): 0 at the end
  /// of a stream, and 1 where the descriptor has no such number, as a listening socket. For a write
  /// source 1 while there is room. For a timer, how often it fired since its handler ran last.
  public var data: UInt {
    if isWriter { return 1 }
    let count = clinux_bytes_available(fd)
    return count < 0 ? 1 : UInt(count)
  }
}

/// A timer on a context's queue: from ``AIOContext/makeTimerSource()``. It has the vocabulary of a
/// `DispatchSourceTimer`; all timers of a context share one timerfd(2).
///
/// - Safety: `@unchecked Sendable` as ``AIOSource``.
public final class AIOTimerSource: AIOSource, @unchecked Sendable {
  /// When it fires next, by the monotonic clock, and how long after that once more; in nanoseconds,
  /// 0 for never.
  private(set) var deadline: UInt64 = 0
  private(set) var interval: UInt64 = 0
  /// Which of the readiness's entries counts; 0 for none.
  var number: UInt64 = 0
  private var fireCount: UInt = 0
  private var lastCount: UInt = 0

  /// Fires at `deadline`, and then every `repeating`.
  ///
  /// - Parameters:
  ///   - deadline: When; in the past is at once.
  ///   - repeating: How long from one to the next; `.never` for once.
  ///   - leeway: Accepted as Dispatch accepts it; timers are not made to wait for each other.
  public func schedule(
    deadline: DispatchTime, repeating: DispatchTimeInterval = .never,
    leeway: DispatchTimeInterval = .nanoseconds(0)
  ) {
    let nanoseconds: UInt64 =
      switch repeating {
      case .never: 0
      default: (DispatchTime(uptimeNanoseconds: 1) + repeating).uptimeNanoseconds - 1
      }
    loop.readiness.withLock { state in
      guard !hasEnded else { return }
      self.deadline = deadline == .distantFuture ? 0 : max(1, deadline.uptimeNanoseconds)
      interval = nanoseconds
      fireCount = 0
      guard isRunning else { return }
      runningChanged(&state)
    }
    loop.readinessChanged(hasHandlers: false)
  }

  override func runningChanged(_ state: inout Readiness.State) {
    if isRunning, deadline > 0 {
      loop.readiness.schedule(self, &state)
    } else {
      loop.readiness.unschedule(self, &state)
    }
  }

  /// Its deadline has passed. Under the lock.
  func fired(now: UInt64) {
    guard interval > 0 else {
      deadline = 0
      fireCount &+= 1
      number = 0
      return
    }
    let count = 1 + (now - deadline) / interval
    fireCount &+= UInt(count)
    let (next, overflow) = deadline.addingReportingOverflow(count * interval)
    deadline = overflow ? .max : next
  }

  override func willRun() {
    lastCount = fireCount
    fireCount = 0
  }

  public override var data: UInt { loop.readiness.withLock { _ in lastCount } }
}
