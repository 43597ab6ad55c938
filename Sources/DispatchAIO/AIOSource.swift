// SPDX-License-Identifier: Apache-2.0

internal import CKernel
public import Dispatch
internal import SystemPackage

/// The readiness of a descriptor, or a timer, as events on a context's queue: from
/// ``AIOContext/makeReadSource(fileDescriptor:)``, ``AIOContext/makeWriteSource(fileDescriptor:)``
/// and ``AIOContext/makeTimerSource()``.
///
/// It has the vocabulary and the meaning of a `DispatchSource`, but its events arrive through the
/// context's completion ring, beside those of the disk: one wait ends for either, without the
/// system calls and thread hand-overs of Dispatch.
///
/// - Sources are level-triggered: the handler runs for as long as the descriptor is ready. A
///   hang-up or an error makes it readable and writable.
/// - Handlers run on the context's ``AIOContext/queue``. Every method may be called from any
///   thread. Once ``cancel()`` or ``suspend()`` has returned on the queue, no event handler runs.
/// - The cancel handler runs after the last event handler, on the queue, and closes the descriptor,
///   which must stay open until then.
/// - The context holds a source until the source is cancelled; of timers see ``AIOTimerSource``. A
///   context that closes cancels its sources.
/// - In a forked child a source is as one that was cancelled: what it watches with is the parent's,
///   too, and no method has an effect on it.
///
/// Corresponds to `epoll_ctl(2)` and `IOCB_CMD_POLL`; where the kernel has no AIO poll (before
/// Linux 4.18), one `DispatchSourceRead` on the epoll set takes its place.
///
/// - Safety: `@unchecked Sendable` because everything that changes is touched under the lock of the
///   context's readiness only.
public class AIOSource: @unchecked Sendable {
  let fd: Int32
  let isWriter: Bool
  let loop: Loop

  // Under the lock of `loop.readiness`.
  private(set) var eventHandler: Block?
  /// The iteration over ``events``, if there is one.
  var iteration = Iteration()
  /// The number of times that a task has begun to wait for an event.
  var waits: UInt64 = 0
  private var cancelHandler: Block?
  private var registrationHandler: Block?
  private var isActive = false
  private var suspensions = 0
  private(set) var hasEnded = false

  init(fd: Int32, isWriter: Bool, loop: Loop) {
    self.fd = fd
    self.isWriter = isWriter
    self.loop = loop
  }

  // MARK: Under the lock

  var isRunning: Bool { isActive && suspensions == 0 && !iteration.isPaused && !hasEnded }

  func willRun(_ state: inout Readiness.State) -> Bool { true }

  /// Called after `isRunning` has changed, and to reschedule a timer.
  ///
  /// - Returns: The errno of `epoll_ctl(2)`, if it failed.
  @discardableResult
  func runningChanged(_ state: inout Readiness.State) -> Errno? {
    loop.readiness.update(fd, &state)
  }

  /// Makes the event handler that of an iteration, and activates the source.
  func beginIteration(_ handler: @escaping @Sendable () -> Void, _ state: inout Readiness.State) {
    if let eventHandler { state.retired.append(eventHandler) }
    eventHandler = Block(handler)
    isActive = true
    if let handler = registrationHandler.take() { state.handlers.append(handler) }
  }

  fileprivate func remove(from state: inout Readiness.State) {
    loop.readiness.remove(self, &state)
  }

  func cancel(_ state: inout Readiness.State) {
    guard !hasEnded else { return }
    hasEnded = true
    remove(from: &state)
    if let waiter = iteration.waiter.take() {
      state.handlers.append(Block { waiter.resume(returning: .success(nil)) })
    }
    if let cancelHandler { state.handlers.append(cancelHandler) }
    // Released outside of the lock: with a handler may end the last reference to something that
    // cancels another source.
    state.retired += [eventHandler, registrationHandler].compactMap { $0 }
    eventHandler = nil
    cancelHandler = nil
    registrationHandler = nil
  }

  /// Sets a handler, and releases the one before outside of the lock.
  private func set(
    _ handler: (@Sendable () -> Void)?,
    _ place: ReferenceWritableKeyPath<AIOSource, Block?>
  ) {
    let handler = handler.map { Block($0) }
    let old = loop.readiness.unlessForked { _ -> Block? in
      guard !hasEnded else { return nil }
      let old = self[keyPath: place]
      self[keyPath: place] = handler
      return old
    }
    withExtendedLifetime(old) {}
  }

  // MARK: From any thread

  /// Sets the event handler, which runs on the context's queue for each event; if `nil`, events
  /// have no effect. It takes the place of an iteration over ``events``. After ``cancel()`` the
  /// call has no effect.
  public func setEventHandler(_ handler: (@Sendable () -> Void)?) {
    set(handler, \.eventHandler)
    endIteration()
  }

  /// Sets the cancel handler, which runs on the context's queue once, after the source was
  /// cancelled and its last event handler has returned. It closes the descriptor. After
  /// ``cancel()`` the call has no effect.
  public func setCancelHandler(_ handler: (@Sendable () -> Void)?) {
    set(handler, \.cancelHandler)
  }

  /// Sets the registration handler, which runs on the context's queue once, when the source has
  /// been activated; at once if it has been. After ``cancel()`` the call has no effect.
  public func setRegistrationHandler(_ handler: (@Sendable () -> Void)?) {
    set(handler, \.registrationHandler)
    let isDue = loop.readiness.unlessForked { state -> Bool in
      guard isActive, let handler = registrationHandler.take() else { return false }
      state.handlers.append(handler)
      return true
    }
    if isDue == true { loop.readinessChanged(hasHandlers: true) }
  }

  /// Starts to deliver events. A second call has no effect.
  public func activate() {
    let hasHandlers = loop.readiness.unlessForked { state -> Bool in
      guard !isActive, !hasEnded else { return false }
      isActive = true
      if let handler = registrationHandler.take() { state.handlers.append(handler) }
      if isRunning { runningChanged(&state) }
      return !state.handlers.isEmpty
    }
    loop.readinessChanged(hasHandlers: hasHandlers ?? false)
  }

  /// Stops delivering events until ``resume()`` has been called as many times.
  public func suspend() {
    loop.readiness.unlessForked { state in
      let wasRunning = isRunning
      suspensions += 1
      if wasRunning { runningChanged(&state) }
    }
  }

  /// Undoes one ``suspend()``. If there is none to undo, a source that has not been activated is
  /// activated, as Dispatch does; with one that has been, it is a programmer error, and traps.
  public func resume() {
    let activates = loop.readiness.unlessForked { state -> Bool in
      guard suspensions > 0 else {
        if isActive { fatalError("AIOSource: resumed more often than it was suspended") }
        return true
      }
      suspensions -= 1
      if isRunning { runningChanged(&state) }
      return false
    }
    if activates ?? false { activate() } else { loop.readinessChanged(hasHandlers: false) }
  }

  /// Ends the source: no more events are delivered, and the cancel handler runs. A second call has
  /// no effect.
  public func cancel() {
    loop.readiness.unlessForked { cancel(&$0) }
    loop.readinessChanged(hasHandlers: true)
  }

  /// Whether the source was cancelled, by ``cancel()`` or because its context has been closed.
  public var isCancelled: Bool { loop.readiness.unlessForked { _ in hasEnded } ?? true }

  /// The descriptor; -1 for a timer.
  public var handle: Int32 { fd }

  /// For a read source, the number of bytes that can be read now without waiting (`FIONREAD`): 0 at
  /// the end of a stream, and 1 if the descriptor has no such number, as a listening socket. For a
  /// write source, 1. For a timer, the number of times that it fired before its last handler ran
  /// and after the one before.
  public var data: UInt {
    if isWriter { return 1 }
    let count = ckernel_bytes_available(fd)
    return count < 0 ? 1 : UInt(count)
  }
}

extension AIOSource: ReadinessSource {}

/// A timer on a context's queue: from ``AIOContext/makeTimerSource()``. It has the vocabulary of a
/// `DispatchSourceTimer`.
///
/// The context holds a timer only while it is active and its next event is to come: one that is
/// suspended, or has fired for the last time, is gone with the caller's last reference, and its
/// cancel handler never runs.
///
/// Corresponds to `timerfd_settime(2)` on the monotonic clock: all timers of a context share one
/// timerfd.
///
/// - Safety: `@unchecked Sendable` as ``AIOSource``.
public final class AIOTimerSource: AIOSource, @unchecked Sendable {
  // Under the lock of `loop.readiness`.
  private(set) var deadline: UInt64 = 0
  private(set) var interval: UInt64 = 0
  var number: UInt64 = 0
  private var fireCount: UInt = 0
  private var lastCount: UInt = 0

  init(loop: Loop) {
    super.init(fd: -1, isWriter: false, loop: loop)
  }

  /// Sets the time of the next event, and the interval of those after it, in place of those set
  /// before. May be called at any time, from any thread.
  ///
  /// - Precondition: The interval is a nanosecond or more.
  /// - Parameters:
  ///   - deadline: The time of the first event; a time in the past makes it due at once, and
  ///     `.distantFuture` never.
  ///   - repeating: The time between events, in nanoseconds or more; `.never` for a single one.
  ///     Events that fall due while the queue is busy become one, which ``AIOSource/data`` counts.
  ///   - leeway: Accepted for `DispatchSourceTimer`'s sake, without an effect: an event is never
  ///     delayed for the sake of another.
  public func schedule(
    deadline: DispatchTime, repeating: DispatchTimeInterval = .never,
    leeway: DispatchTimeInterval = .nanoseconds(0)
  ) {
    guard repeating == .never || repeating.isPositive else {
      fatalError(
        "AIOTimerSource: repeating: \(repeating); it must be a nanosecond or more, or .never")
    }
    let interval =
      repeating == .never
      ? 0 : (DispatchTime(uptimeNanoseconds: 1) + repeating).uptimeNanoseconds - 1
    loop.readiness.unlessForked { state in
      guard !hasEnded else { return }
      self.deadline = deadline == .distantFuture ? 0 : max(1, deadline.uptimeNanoseconds)
      self.interval = interval
      fireCount = 0
      guard isRunning else { return }
      runningChanged(&state)
    }
    loop.readinessChanged(hasHandlers: false)
  }

  public override var data: UInt { loop.readiness.unlessForked { _ in lastCount } ?? 0 }

  // MARK: Under the lock

  @discardableResult
  override func runningChanged(_ state: inout Readiness.State) -> Errno? {
    if isRunning, deadline > 0 {
      loop.readiness.schedule(self, &state)
    } else {
      loop.readiness.unschedule(self, &state)
    }
    return nil
  }

  fileprivate override func remove(from state: inout Readiness.State) {
    loop.readiness.unschedule(self, &state)
  }

  func fired(now: UInt64) {
    guard interval > 0 else {
      // The deadline is kept until the event is delivered: if the timer is suspended before, it is
      // due when it is resumed.
      fireCount = 1
      number = 0
      return
    }
    let count = 1 + (now - deadline) / interval
    fireCount &+= UInt(count)
    let (next, overflow) = deadline.addingReportingOverflow(count * interval)
    deadline = overflow ? .max : next
  }

  override func willRun(_ state: inout Readiness.State) -> Bool {
    // It has been scheduled anew since it fired.
    guard fireCount > 0 else { return false }
    (lastCount, fireCount) = (fireCount, 0)
    if interval == 0 {
      deadline = 0
      // If it was suspended and resumed since it fired, it has an entry.
      loop.readiness.unschedule(self, &state)
    }
    return true
  }
}

extension AIOTimerSource: ReadinessTimer {}
