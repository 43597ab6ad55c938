// SPDX-License-Identifier: Apache-2.0
//
// Who sees to it that a turn runs: the one place that knows whether one is scheduled, yields, waits
// in the ring, prepares to sleep, or is to be retried after a while.

internal import CLinux
internal import Dispatch
internal import Synchronization

/// - Safety: `@unchecked Sendable` because what is not constant or atomic is touched on `queue`
///   only.
final class TurnScheduler: @unchecked Sendable {
  /// How long to wait before asking a kernel once more that refused, at first and at the most.
  private static let retryDelays = (first: 1, longest: 16)

  private let queue: DispatchQueue
  private let event: EventDescriptor
  private let source: any DispatchSourceRead
  private let kernel: LinuxKernel

  /// Whether a turn is running or queued, and will look for arrivals before it ends.
  private let isTurnScheduled = Atomic<Bool>(false)
  /// Whether the turn sleeps in the ring.
  private let isWaiting = Atomic<Bool>(false)

  /// Whether the eventfd may have counted since it was drained.
  private var mayHaveCounted = false
  /// Runs a turn.
  private var turn: (@Sendable () -> Void)?
  /// The block that `yield` queues: one for all times, as there may be one for every few requests.
  /// It holds the loop, until that has closed.
  private var nextTurn: DispatchWorkItem?
  /// Whether it is queued.
  private var isTurnQueued = false
  /// Whether the source is suspended: while turns follow each other without a pause, or wait in the
  /// ring, so that completions do not wake Dispatch's manager thread, and a worker, for nothing.
  private var isSourceSuspended = false
  private var isRetryScheduled = false
  private var retryDelay = TurnScheduler.retryDelays.first
  /// What a retry does before its turn.
  private var prepareRetry: (@Sendable () -> Void)?
  /// Turns that began because the kernel had counted a completion on the eventfd.
  private(set) var wakeups = 0

  init(queue: DispatchQueue, event: EventDescriptor, kernel: LinuxKernel) {
    self.queue = queue
    self.event = event
    self.kernel = kernel
    source = DispatchSource.makeReadSource(fileDescriptor: event.rawValue, queue: queue)
  }

  /// Begins.
  ///
  /// - Parameters:
  ///   - turn: runs a turn. This, and the other two, are held until `closed` has been called.
  ///   - prepareRetry: called on the queue before a turn that `retryLater` asked for.
  ///   - closed: called on the queue after `close`, as the last.
  func activate(
    turn: @escaping @Sendable () -> Void, prepareRetry: @escaping @Sendable () -> Void,
    closed: @escaping @Sendable () -> Void
  ) {
    self.turn = turn
    self.prepareRetry = prepareRetry
    source.setEventHandler { [self] in
      wakeups += 1
      if isTurnScheduled.load(ordering: .relaxed) {
        // A turn is queued already, which will look; one more each time would leave the queue's
        // other blocks less and less of it.
        event.drain()
      } else {
        mayHaveCounted = true
        turn()
      }
    }
    source.setCancelHandler { [self] in
      event.close()
      nextTurn = nil
      self.turn = nil
      self.prepareRetry = nil
      closed()
    }
    nextTurn = DispatchWorkItem { [self] in
      isTurnQueued = false
      turn()
    }
    source.activate()
  }

  // MARK: From any thread

  /// Makes sure that a turn looks for arrivals, soon.
  @inline(__always)
  func scheduleTurn() {
    if isTurnScheduled.load(ordering: .sequentiallyConsistent) {
      if isWaiting.load(ordering: .sequentiallyConsistent) { endWait() }
      return
    }
    if !isTurnScheduled.exchange(true, ordering: .sequentiallyConsistent) { queueTurn() }
  }

  private func queueTurn() {
    queue.async { [self] in turn?() }
  }

  private func endWait() {
    if isWaiting.exchange(false, ordering: .sequentiallyConsistent) { kernel.wake() }
  }

  /// Somebody on the queue is about to run a turn, which looks at what a retry would look at.
  func turnByHandBegins() {
    isRetryScheduled = false
    prepareRetry?()
  }

  // MARK: In a turn

  func turnBegins() {
    isTurnScheduled.store(true, ordering: .relaxed)
  }

  /// Completions have been looked at: the eventfd may have counted them.
  func completionsWereSeen() { mayHaveCounted = true }

  /// Ends the turn, for another to begin after the queue's other blocks.
  func yield() {
    suspendSource()
    guard !isTurnQueued, let nextTurn else { return }
    isTurnQueued = true
    queue.async(execute: nextTurn)
  }

  /// Runs `wait`, which sleeps in the ring, unless there are arrivals; another thread's
  /// `scheduleTurn` ends it.
  ///
  /// - Returns: whether it ran.
  func waitInRing(unless hasArrivals: () -> Bool, _ wait: () -> Void) -> Bool {
    suspendSource()
    isWaiting.store(true, ordering: .sequentiallyConsistent)
    guard !hasArrivals() else {
      isWaiting.store(false, ordering: .sequentiallyConsistent)
      return false
    }
    wait()
    isWaiting.store(false, ordering: .sequentiallyConsistent)
    return true
  }

  /// Prepares to sleep.
  ///
  /// - Parameter hasArrivals: whether other threads have left something.
  /// - Returns: `false` if work arrived in the meantime, in which case the turn must run another
  ///   iteration.
  func prepareToSleep(_ hasArrivals: () -> Bool) -> Bool {
    if mayHaveCounted {
      // What was counted until here has been reaped, or will be in the next iteration; left on the
      // eventfd, it would wake the loop for nothing.
      mayHaveCounted = false
      event.drain()
      return false
    }
    isTurnScheduled.store(false, ordering: .sequentiallyConsistent)
    if hasArrivals() {
      isTurnScheduled.store(true, ordering: .relaxed)
      return false
    }
    resumeSource()
    return true
  }

  /// The kernel refuses, and nothing will tell when it does not any more: a turn runs after a
  /// while, rather than spin. The delay doubles, from 1 to 16 ms, until `retrySucceeded`.
  func retryLater() {
    guard !isRetryScheduled else { return }
    isRetryScheduled = true
    let delay = DispatchTimeInterval.milliseconds(retryDelay)
    retryDelay = min(2 * retryDelay, Self.retryDelays.longest)
    let retry: @Sendable () -> Void = { [self] in
      isRetryScheduled = false
      prepareRetry?()
      turn?()
    }
    queue.asyncAfter(deadline: .now() + delay, execute: retry)
  }

  func retrySucceeded() { retryDelay = Self.retryDelays.first }

  /// Ends: no turn is scheduled any more, and the source's cancel handler is the last that runs.
  func prepareToClose() {
    // A source that is suspended never runs its cancel handler.
    resumeSource()
  }

  func close() { source.cancel() }

  private func suspendSource() {
    guard !isSourceSuspended else { return }
    isSourceSuspended = true
    source.suspend()
  }

  private func resumeSource() {
    guard isSourceSuspended else { return }
    isSourceSuspended = false
    source.resume()
  }
}
