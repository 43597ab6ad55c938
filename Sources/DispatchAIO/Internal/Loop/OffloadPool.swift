// SPDX-License-Identifier: Apache-2.0
//
// The threads of an offload queue. A thread exists while it has work; the queue decides which
// thread takes which item, and when.

internal import CKernel
internal import Dispatch
internal import Synchronization

/// The threads that make the system calls in which the loop must not block.
final class OffloadPool: Sendable {
  /// Carries out an item, and those that are done in one call with it. Made for each thread with
  /// its first item, and used by that thread only.
  typealias Worker = (_ item: UInt32, _ more: [UInt32]) -> Void

  /// A serial queue, which has a thread while it has work.
  ///
  /// - Safety: `@unchecked Sendable` because `worker` and `more` are touched on the queue only.
  private final class Thread: @unchecked Sendable {
    let queue: DispatchQueue
    lazy var worker = makeWorker()
    /// The items that are done in one call with the current one.
    var more: [UInt32] = []
    private let makeWorker: @Sendable () -> Worker

    init(_ label: String, _ makeWorker: @escaping @Sendable () -> Worker) {
      queue = DispatchQueue(label: label)
      self.makeWorker = makeWorker
    }
  }

  private let queue: OffloadQueue
  private let threads: [Thread]
  private let watchdog = DispatchQueue(label: "DispatchAIO.offload.watchdog")
  private let isWatching = Atomic<Bool>(false)

  /// - Parameters:
  ///   - limit: The most threads; the same as the queue's.
  ///   - makeWorker: Makes the worker of one thread.
  init(queue: OffloadQueue, limit: Int, makeWorker: @escaping @Sendable () -> Worker) {
    self.queue = queue
    threads = (0..<limit).map { Thread("DispatchAIO.offload.\($0)", makeWorker) }
  }

  /// Starts the threads that the queue needs for its items. From any thread; never blocks.
  ///
  /// - Parameter owner: Is held until the threads that are started have no more work.
  func start(for owner: (any AnyObject & Sendable)?) {
    while let thread = queue.threadToStart(now: ckernel_monotonic_nanoseconds()) {
      run(thread, for: owner)
    }
    if queue.isBacklogged { watch(for: owner) }
  }

  private func run(_ number: Int, for owner: (any AnyObject & Sendable)?) {
    threads[number].queue.async { [self] in
      defer { withExtendedLifetime(owner) {} }
      let thread = threads[number]
      var finished: OffloadQueue.Work?
      while true {
        let step = queue.next(
          for: number, finished: finished, now: ckernel_monotonic_nanoseconds(), more: &thread.more)
        if let another = step.threadToStart { run(another, for: owner) }
        if step.isBacklogged { watch(for: owner) }
        guard let work = step.work else { break }
        thread.worker(work.item, thread.more)
        finished = work
      }
    }
  }

  /// Repeats `start` after a delay, when threads may count as stuck, while items wait that none may
  /// begin.
  private func watch(for owner: (any AnyObject & Sendable)?) {
    guard !isWatching.exchange(true, ordering: .acquiringAndReleasing) else { return }
    let delay = DispatchTimeInterval.nanoseconds(Int(OffloadQueue.stuckAfter))
    watchdog.asyncAfter(deadline: .now() + delay) { [self] in
      isWatching.store(false, ordering: .releasing)
      start(for: owner)
    }
  }
}
