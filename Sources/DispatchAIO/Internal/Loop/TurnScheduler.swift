// SPDX-License-Identifier: Apache-2.0
//
// The scheduling of turns: the one place that knows whether a turn is scheduled, yields, waits in
// the ring, prepares to sleep, or is retried after a delay.

internal import Dispatch
internal import Synchronization

/// - Safety: `@unchecked Sendable` because what is not constant or atomic is touched on `queue`
///   only.
final class TurnScheduler: @unchecked Sendable {
  /// The first and the longest delay before a retry, after the kernel has refused, in milliseconds.
  private static let retryDelays = (first: 1, longest: 16)

  private let marked: MarkedQueue
  private let event: EventDescriptor
  private let source: any DispatchSourceRead
  private let kernel: SystemKernel

  /// Whether a turn is running or queued, which checks for arrivals before it ends.
  private let isTurnScheduled = Atomic<Bool>(false)
  /// Whether the running turn sleeps in the ring.
  private let isWaiting = Atomic<Bool>(false)

  /// Whether the eventfd may have counted since it was drained.
  private var mayHaveCounted = false
  /// Runs a turn.
  private var turn: (@Sendable () -> Void)?
  /// The block that `yield` queues; one object for all, because there may be a yield for every few
  /// requests. It holds the loop until that has closed.
  private var nextTurn: DispatchWorkItem?
  /// Whether it is queued.
  private var isTurnQueued = false
  /// Whether the source is suspended, as it is while turns follow each other or wait in the ring,
  /// so that completions do not wake Dispatch's manager thread, and a worker, for nothing.
  private var isSourceSuspended = false
  private var isRetryScheduled = false
  private var retryDelay = TurnScheduler.retryDelays.first
  /// Prepares the engine for a retry.
  private var prepareRetry: (@Sendable () -> Void)?
  /// The number of times that the eventfd has woken the queue.
  private(set) var wakeups = 0

  init(queue: MarkedQueue, event: EventDescriptor, kernel: SystemKernel) {
    marked = queue
    self.event = event
    self.kernel = kernel
    source = DispatchSource.makeReadSource(fileDescriptor: event.rawValue, queue: queue.queue)
  }

  /// Starts.
  ///
  /// - Parameters:
  ///   - turn: Runs a turn. All three closures are held until `closed` has been called.
  ///   - prepareRetry: Called on the queue before a turn that `retryLater` asked for.
  ///   - closed: Called last, on the queue, after `close`.
  func activate(
    turn: @escaping @Sendable () -> Void, prepareRetry: @escaping @Sendable () -> Void,
    closed: @escaping @Sendable () -> Void
  ) {
    self.turn = turn
    self.prepareRetry = prepareRetry
    source.setEventHandler { [self] in
      wakeups += 1
      if isTurnScheduled.load(ordering: .relaxed) {
        // A turn is queued already; one more each time would leave less and less of the queue to
        // its other blocks.
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

  private var queue: DispatchQueue { marked.queue }

  /// Schedules a turn unless one is scheduled, and ends its wait in the ring.
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

  /// Records that completions were reaped, which the eventfd may have counted.
  func completionsWereSeen() { mayHaveCounted = true }

  /// Queues another turn behind the queue's other blocks.
  func yield() {
    suspendSource()
    guard !isTurnQueued, let nextTurn else { return }
    isTurnQueued = true
    queue.async(execute: nextTurn)
  }

  /// Runs `wait`, which sleeps in the ring, unless there are arrivals. A `scheduleTurn` of another
  /// thread ends it.
  func waitInRing(unless hasArrivals: () -> Bool, _ wait: () -> Void) {
    suspendSource()
    isWaiting.store(true, ordering: .sequentiallyConsistent)
    if !hasArrivals() { wait() }
    isWaiting.store(false, ordering: .sequentiallyConsistent)
  }

  /// Prepares to sleep.
  ///
  /// - Parameter hasArrivals: Whether other threads have left work for the loop.
  /// - Returns: `false` if work arrived in the meantime, in which case the turn must run another
  ///   iteration.
  func prepareToSleep(_ hasArrivals: () -> Bool) -> Bool {
    if mayHaveCounted {
      // Completions counted until here have been reaped, or will be in the next iteration; left on
      // the eventfd, they would wake the loop for nothing.
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

  /// Schedules a turn after a delay, because the kernel refuses and no event will report when it no
  /// longer does. The delay doubles from 1 to 16 ms until `retrySucceeded`.
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

  /// Prepares `close`, after which no turn is scheduled, and the source's cancel handler runs last.
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
