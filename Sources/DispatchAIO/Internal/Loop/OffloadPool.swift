// SPDX-License-Identifier: Apache-2.0
//
// The threads of an offload queue. A thread exists while there is something for it; which thread
// takes what, and when, the queue decides.

internal import CLinux
internal import Dispatch
internal import Synchronization

/// Threads that make the system calls the loop must not block in.
final class OffloadPool: Sendable {
  /// Does an item, and those that are to be done in one call with it: made for each thread, when it
  /// has its first one, and then used by that thread only.
  typealias Worker = (_ item: UInt32, _ more: [UInt32]) -> Void

  /// A serial queue, which has a thread while it has something to do.
  ///
  /// - Safety: `@unchecked Sendable` because `worker` and `more` are touched on the queue only.
  private final class Thread: @unchecked Sendable {
    let queue: DispatchQueue
    lazy var worker = makeWorker()
    /// What is to be done in one call with the item at hand.
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
  ///   - limit: how many threads there are at the most: as many as the queue counts on.
  ///   - makeWorker: makes what does the work of one thread.
  init(queue: OffloadQueue, limit: Int, makeWorker: @escaping @Sendable () -> Worker) {
    self.queue = queue
    threads = (0..<limit).map { Thread("DispatchAIO.offload.\($0)", makeWorker) }
  }

  /// Sees to it that what was added to the queue is done. From any thread; never waits.
  ///
  /// - Parameter owner: kept alive until the threads that are started have nothing more to do.
  func start(for owner: (any AnyObject & Sendable)?) {
    while let thread = queue.threadToStart(now: clinux_monotonic_nanoseconds()) {
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
          for: number, finished: finished, now: clinux_monotonic_nanoseconds(), more: &thread.more)
        if let another = step.threadToStart { run(another, for: owner) }
        if step.isBacklogged { watch(for: owner) }
        guard let work = step.work else { break }
        thread.worker(work.item, thread.more)
        finished = work
      }
    }
  }

  /// Looks once more after a while, when threads may have turned out to be stuck, as long as
  /// something waits that none may begin.
  private func watch(for owner: (any AnyObject & Sendable)?) {
    guard !isWatching.exchange(true, ordering: .acquiringAndReleasing) else { return }
    let delay = DispatchTimeInterval.nanoseconds(Int(OffloadQueue.stuckAfter))
    watchdog.asyncAfter(deadline: .now() + delay) { [self] in
      isWatching.store(false, ordering: .releasing)
      start(for: owner)
    }
  }
}
