// SPDX-License-Identifier: Apache-2.0
//
// A source's events for tasks. They are taken one at a time: an event that finds no task waiting
// pauses the source, which is level-triggered and so reports it again once the task asks for the
// next. A timer has no level: its events are counted instead.

internal import Synchronization

extension AIOSource {
  /// The events of a source, as an `AsyncSequence`.
  ///
  /// ```swift
  /// let source = try context.makeReadSource(fileDescriptor: socket)
  /// for try await count in source.events {
  ///   // `count` bytes can be read; 0 at the end of the stream.
  /// }
  /// ```
  ///
  /// - Each element is the source's ``AIOSource/data`` at the time of the event.
  /// - The first `next()` activates the source, and takes the place of its event handler. Nothing
  ///   is taken from the descriptor, and nothing piles up: while the consumer is busy, further
  ///   events are one, and the source does not wake the loop for them.
  /// - The sequence ends when the source has been cancelled, by ``AIOSource/cancel()`` or because
  ///   its context was closed, or got another event handler.
  /// - If the task is cancelled, `next()` throws ``AIOError/Code/cancelled``; the source pauses, is
  ///   not cancelled, and may be iterated over once more.
  /// - One task at a time may wait; a second one is a programmer error, and traps.
  public struct Events: AsyncSequence, Sendable {
    /// The source's data with an event.
    public typealias Element = UInt
    /// The error that ends an iteration.
    public typealias Failure = AIOError

    fileprivate let source: AIOSource

    /// Makes an iterator; all iterators of a source share its events.
    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(source: source) }

    /// An iterator, for one task at a time.
    public struct AsyncIterator: AsyncIteratorProtocol {
      fileprivate let source: AIOSource

      /// Waits for the next event.
      ///
      /// - Returns: The source's data; `nil` once the source has been cancelled.
      /// - Throws: ``AIOError`` with the code ``AIOError/Code/cancelled``; or an error of
      ///   `epoll_ctl(2)`, as ``AIOContext/makeReadSource(fileDescriptor:)`` does, if the kernel
      ///   cannot watch the descriptor any more.
      public mutating func next(
        isolation actor: isolated (any Actor)? = #isolation
      ) async throws(AIOError) -> UInt? {
        try await source.nextEvent(isolation: actor)
      }

      /// Waits for the next event, as ``next(isolation:)`` does, from no actor.
      public mutating func next() async throws(AIOError) -> UInt? {
        try await source.nextEvent(isolation: nil)
      }
    }
  }

  /// The events, for `for try await`: see ``Events``.
  public var events: Events { Events(source: self) }

  /// What an iteration keeps in the source, under the lock of its context's readiness.
  struct Iteration {
    typealias Waiter = Resumption<Result<UInt?, AIOError>>

    /// Whether the event handler is the iteration's.
    var isUnderWay = false
    /// The task that waits for the next event.
    var waiter: Waiter?
    /// Whether an event found no task waiting.
    var isPaused = false
    /// The events of a timer that found no task waiting.
    var missed: UInt = 0
  }

  fileprivate func nextEvent(
    isolation: isolated (any Actor)?
  ) async throws(AIOError) -> UInt? {
    // The number of this call's wait; 0 before it has begun.
    let number = Atomic<UInt64>(0)
    let result = await withTaskCancellationHandler {
      // Resumed once: by whoever takes it from the iteration under the lock, or here if it was not
      // put there.
      await suspended(isolation: isolation) { (waiter: Iteration.Waiter) in
        let answer =
          loop.readiness.unlessForked { wait(waiter, number, &$0) } ?? .success(nil)
        if let answer {
          waiter.resume(returning: answer)
        } else {
          loop.readinessChanged(hasHandlers: loop.readiness.hasHandlers)
        }
      }
    } onCancel: {
      let waiter = loop.readiness.unlessForked { state -> Iteration.Waiter? in
        // If the event has been delivered, the next may be another task's by now.
        guard number.load(ordering: .relaxed) == waits else { return nil }
        let waiter = iteration.waiter.take()
        if waiter != nil { pause(&state) }
        return waiter
      }
      waiter??.resume(returning: .failure(cancelled))
    }
    return try result.get()
  }

  private var cancelled: AIOError { .cancelledPoll(.init(operation: .poll, descriptor: fd)) }

  /// Ends the iteration, because another event handler takes the place of its own.
  func endIteration() {
    let waiter = loop.readiness.unlessForked { state in
      let waiter = iteration.waiter.take()
      let wasPaused = iteration.isPaused
      iteration = Iteration()
      if wasPaused, isRunning { runningChanged(&state) }
      return waiter
    }
    waiter??.resume(returning: .success(nil))
    loop.readinessChanged(hasHandlers: false)
  }

  // MARK: Under the lock

  /// Makes a task wait for the next event.
  ///
  /// - Parameter number: Gets the number of the wait.
  /// - Returns: What `next()` returns or throws instead, if it need not wait.
  private func wait(
    _ waiter: Iteration.Waiter, _ number: borrowing Atomic<UInt64>,
    _ state: inout Readiness.State
  ) -> Result<UInt?, AIOError>? {
    if hasEnded { return .success(nil) }
    // The handler of the cancellation has run, or finds the waiter.
    if Task.isCancelled { return .failure(cancelled) }
    guard iteration.waiter == nil else {
      fatalError("AIOSource: two tasks wait for the events of one source at the same time")
    }
    let wasRunning = isRunning
    if !iteration.isUnderWay {
      iteration.isUnderWay = true
      beginIteration({ [weak self] in self?.deliverEvent() }, &state)
    }
    if iteration.missed > 0 {
      defer { iteration.missed = 0 }
      return .success(iteration.missed)
    }
    iteration.waiter = waiter
    waits += 1
    number.store(waits, ordering: .relaxed)
    iteration.isPaused = false
    if isRunning, !wasRunning, let errno = runningChanged(&state) {
      iteration.waiter = nil
      iteration.isPaused = true
      return .failure(.polling(fd, errno))
    }
    return nil
  }

  private func pause(_ state: inout Readiness.State) {
    iteration.isPaused = true
    if !hasEnded { runningChanged(&state) }
  }

  // MARK: On the queue

  /// The event handler of an iteration.
  private func deliverEvent() {
    let count = data
    let waiter = loop.readiness.withLock { state in
      let waiter = iteration.waiter.take()
      if waiter == nil, !hasEnded {
        if self is AIOTimerSource { iteration.missed += count } else { pause(&state) }
      }
      return waiter
    }
    waiter?.resume(returning: .success(count))
  }
}
