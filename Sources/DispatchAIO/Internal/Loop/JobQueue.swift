// SPDX-License-Identifier: Apache-2.0
//
// Jobs, the pieces in which tasks run, on a Dispatch queue. A job from another thread is added to a
// list under a lock, and one block of the queue takes all that pile up. A job from within a turn of
// the loop, as when a completion resumes a task, is added to a list that the same turn runs:
// without a lock or a block, and its requests go to the kernel with the turn's next submission.
//
// `AIOExecutor` and `AIOTaskExecutor` are the face of this for Swift's runtime.

internal import CLinux
internal import Dispatch
internal import Glibc
internal import Synchronization

/// The jobs of a context's queue.
///
/// - Safety: `@unchecked Sendable` because `jobs`, `running`, `isRunning` and `isPreferred` are
///   touched on the queue only, which is serial; the rest is constant, atomic or locked.
final class JobQueue: @unchecked Sendable {
  /// The number of jobs after which the queue's other blocks run.
  static let jobsPerPass = 256
  /// The time after which they do so, in nanoseconds; the clock is read between jobs.
  static let longestPass: UInt64 = 100_000

  let queue: DispatchQueue

  private let onQueue = DispatchSpecificKey<Void>()
  /// The thread that runs a turn of the loop, or a pass of this queue, either of which looks for
  /// jobs before it ends; 0 if there is none.
  private let passing = Atomic<UInt>(0)
  /// Jobs from other threads. A pass is queued while there are any.
  private let arrived = Lock<[Job]>([])
  /// Jobs from within a turn or a pass.
  private var jobs: [Job] = []
  /// The jobs that are being run, from `nextRunning` on. Jobs that these make are in `jobs`.
  private var running: [Job] = []
  private var nextRunning = 0
  private var isRunning = false
  /// Whether the job that runs belongs to a task that prefers this queue.
  private var isPreferred = false

  /// - Safety: `@safe` because a job is run once, by `run`, and the executors it names are held:
  ///   the first by the actor or the second, the second by the task that prefers it.
  @safe
  struct Job {
    let job: UnownedJob
    /// The executor that runs actors on the queue.
    let executor: UnownedSerialExecutor
    /// The task executor that it was enqueued on; `nil` if it was enqueued for an actor.
    let preference: UnownedTaskExecutor?
  }

  init(queue: DispatchQueue) {
    self.queue = queue
    queue.setSpecific(key: onQueue, value: ())
  }

  deinit {
    queue.setSpecific(key: onQueue, value: nil)
  }

  // MARK: From any thread

  /// Adds a job.
  func enqueue(_ job: Job) {
    // Only this thread can have stored its own number, and it does so only in a turn or a pass.
    if passing.load(ordering: .relaxed) == Self.thread {
      jobs.append(job)
      return
    }
    let isFirst = arrived.withLock { arrived in
      arrived.append(job)
      return arrived.count == 1
    }
    if isFirst { queue.async { [self] in pass() } }
  }

  /// Whether the caller is on the queue.
  var isCurrent: Bool { DispatchQueue.getSpecific(key: onQueue) != nil }

  // MARK: On the queue

  /// Begins a turn or a pass on this thread, which then calls `run`, and `leave` with the result.
  @inline(__always)
  func enter() -> UInt { passing.exchange(Self.thread, ordering: .relaxed) }

  /// Ends the turn or pass.
  ///
  /// - Parameter outer: The result of `enter`.
  @inline(__always)
  func leave(_ outer: UInt) { passing.store(outer, ordering: .relaxed) }

  /// Whether there are jobs for `run`.
  var hasJobs: Bool {
    @inline(__always) get { nextRunning < running.count || !jobs.isEmpty }
  }

  /// Runs the jobs that are there, except those that they make themselves, up to `jobsPerPass` of
  /// them. The remaining ones keep their order.
  ///
  /// - Parameter end: The time to stop at, by the monotonic clock, which is read between jobs.
  /// - Returns: The number of jobs that were run.
  func run(until end: UInt64) -> Int {
    // A job that drives the loop by hand may get here: a second job of the same actor must not run
    // before the first has ended.
    guard !isRunning, hasJobs else { return 0 }
    isRunning = true
    if nextRunning == running.count {
      running.removeAll(keepingCapacity: true)
      nextRunning = 0
      swap(&jobs, &running)
    }
    let first = nextRunning
    let last = min(running.count, first + Self.jobsPerPass)
    while nextRunning < last {
      let job = running[nextRunning]
      nextRunning += 1
      run(job)
      if clinux_monotonic_nanoseconds() > end { break }
    }
    isRunning = false
    return nextRunning - first
  }

  private func run(_ job: Job) {
    // A job without a preference must run without one, or it would change executors at every
    // step.
    if let preference = unsafe job.preference {
      isPreferred = true
      unsafe job.job.runSynchronously(
        isolatedTo: job.executor, taskExecutor: preference)
      isPreferred = false
    } else {
      unsafe job.job.runSynchronously(on: job.executor)
    }
  }

  /// Whether a job is being run. Asked on the queue only.
  var isRunningJob: Bool { isRunning }

  /// Whether the caller is a job on this queue of a task that does not prefer the queue, so that
  /// Swift would resume the task elsewhere.
  var needsPreference: Bool {
    @inline(__always) get {
      // While `passing` is this thread, the other properties are this thread's, too.
      passing.load(ordering: .relaxed) == Self.thread && isRunning && !isPreferred
    }
  }

  /// Queues a block that runs the jobs that are left.
  func runLater() {
    queue.async { [self] in pass() }
  }

  /// Runs jobs outside of a turn, as a block of the queue.
  private func pass() {
    let outer = enter()
    arrived.withLock { arrived in
      jobs.append(contentsOf: arrived)
      arrived.removeAll(keepingCapacity: true)
    }
    let end = clinux_monotonic_nanoseconds() &+ Self.longestPass
    var count = 0
    while hasJobs && count < Self.jobsPerPass && clinux_monotonic_nanoseconds() < end {
      count += run(until: end)
    }
    leave(outer)
    if hasJobs { runLater() }
  }

  private static var thread: UInt {
    @inline(__always) get { UInt(pthread_self()) }
  }
}
