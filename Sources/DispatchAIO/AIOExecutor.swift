// SPDX-License-Identifier: Apache-2.0
//
// Jobs, the pieces that tasks run in, on a Dispatch queue. A job that comes from another thread goes
// to a list under a lock, and one block of the queue takes all that pile up. A job that comes from
// within a turn of the loop, as when a completion resumes a task, is put on a list that the same
// turn runs: no lock, no block, and what the job asks for goes down with the turn's next submission.

internal import CLinux
public import Dispatch
internal import Glibc
internal import Synchronization

/// Runs actors on a context's queue, beside its completions: from ``AIOContext/executor``.
///
/// An actor that names it as its executor lives on the loop:
///
/// ```swift
/// actor Server {
///   let context: AIOContext
///   nonisolated var unownedExecutor: UnownedSerialExecutor {
///     context.executor.asUnownedSerialExecutor()
///   }
/// }
/// ```
///
/// What such an actor awaits of its context changes no thread: the completion, and what the actor
/// does next, run in one turn of the loop. Outside of tasks, on the queue (in a timer's handler, for
/// one), `assumeIsolated` lets in, and it traps elsewhere.
///
/// Swift resumes a task through its preferred executor, and only then goes to its actor. So tasks
/// that call such an actor are fastest with ``AIOContext/taskExecutor`` as their preference; for
/// others, each call prefers it for as long as it takes, which costs some 0.3 us.
///
/// - Important: An actor refers to its executor without holding it: let it hold the context, or the
///   executor. Jobs run also after the context has closed.
///
/// - Safety: `@unchecked Sendable` because `jobs`, `running`, `isRunning` and `isPreferred` are touched on
///   the queue only, which is serial; the rest is constant, atomic or locked.
public final class AIOExecutor: SerialExecutor, @unchecked Sendable {
  /// How many jobs run before the queue's other blocks get their turn.
  static let jobsPerPass = 256
  /// How long they may take before it does so, in nanoseconds; looked at between jobs.
  static let longestPass: UInt64 = 100_000

  /// The serial queue that the jobs run on.
  public let queue: DispatchQueue

  private let onQueue = DispatchSpecificKey<Void>()
  /// The thread that runs a turn of the loop, or a pass of this, which looks for jobs before it
  /// ends; 0 when there is none.
  private let passing = Atomic<UInt>(0)
  /// What came from elsewhere; a pass is on its way while there is something.
  private let arrived = Lock<[Job]>([])
  /// What came from within a pass.
  private var jobs: [Job] = []
  /// What is being run, from `nextRunning` on; what jobs make in turn is in `jobs`.
  private var running: [Job] = []
  private var nextRunning = 0
  private var isRunning = false
  /// Whether the job that runs is of a task that prefers this queue.
  private var isPreferred = false

  /// - Safety: `@safe` because a job is run once, by `run`, and the executor it names is held by the
  ///   task that prefers it.
  @safe
  fileprivate struct Job {
    let job: UnownedJob
    /// The task executor that it was given to; `nil` when it came for an actor.
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

  public func enqueue(_ job: consuming ExecutorJob) {
    unsafe enqueue(Job(job: UnownedJob(job), preference: nil))
  }

  fileprivate func enqueue(_ job: Job) {
    // Only this thread can have stored its own number, and only a pass on the queue does.
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
  public func isIsolatingCurrentContext() -> Bool? {
    DispatchQueue.getSpecific(key: onQueue) != nil
  }

  /// Traps when the caller is not on the queue.
  public func checkIsolated() {
    guard DispatchQueue.getSpecific(key: onQueue) != nil else {
      fatalError("AIOExecutor: not on the queue of the executor, '\(queue.label)'")
    }
  }

  // MARK: On the queue

  /// Says that this thread will call `run` before it calls `leave` with what this returns.
  @inline(__always)
  func enter() -> UInt { passing.exchange(Self.thread, ordering: .relaxed) }

  /// - Parameter outer: what `enter` returned.
  @inline(__always)
  func leave(_ outer: UInt) { passing.store(outer, ordering: .relaxed) }

  /// Whether `run` has something to do.
  var hasJobs: Bool {
    @inline(__always) get { nextRunning < running.count || !jobs.isEmpty }
  }

  /// Runs the jobs that are there, but for those that they make in turn, until so many have run or
  /// so much time has passed. What is left stays in its order.
  ///
  /// - Parameter end: when to stop, by the monotonic clock; looked at between jobs.
  /// - Returns: how many.
  func run(until end: UInt64) -> Int {
    // Within a job, when it drives the loop by hand: a second job of the same actor must not run
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
    // Somebody holds the executors that a job is on its way to: the actor this one, the task the
    // one it prefers. A job that came without a preference must run without, or else it would be
    // sent on at every step.
    if let preference = unsafe job.preference {
      isPreferred = true
      unsafe job.job.runSynchronously(
        isolatedTo: asUnownedSerialExecutor(), taskExecutor: preference)
      isPreferred = false
    } else {
      unsafe job.job.runSynchronously(on: asUnownedSerialExecutor())
    }
  }

  /// Whether a job is being run. On the queue.
  var isRunningJob: Bool { isRunning }

  /// Whether the caller is a job on this queue of a task that does not prefer the queue, and that
  /// Swift would therefore resume elsewhere.
  var needsPreference: Bool {
    @inline(__always) get {
      // The rest is this thread's while the number is.
      passing.load(ordering: .relaxed) == Self.thread && isRunning && !isPreferred
    }
  }

  /// Makes a block of the queue run what is left.
  func runLater() {
    queue.async { [self] in pass() }
  }

  /// A block of the queue: runs jobs outside of a turn.
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

/// Runs on a context's queue what tasks do that no actor claims: from ``AIOContext/taskExecutor``.
///
/// `Task(executorPreference: context.taskExecutor) { … }`
public final class AIOTaskExecutor: TaskExecutor {
  /// What runs the jobs.
  private let executor: AIOExecutor

  init(_ executor: AIOExecutor) { self.executor = executor }

  public func enqueue(_ job: consuming ExecutorJob) {
    // The task that prefers this executor holds it.
    unsafe executor.enqueue(
      AIOExecutor.Job(job: UnownedJob(job), preference: asUnownedTaskExecutor()))
  }
}

extension AIOContext {
  /// Runs actors on the context's ``queue``.
  public var executor: AIOExecutor { loop.executor }

  /// Runs tasks on the context's ``queue``, for `Task(executorPreference:)` and its like.
  public var taskExecutor: AIOTaskExecutor { loop.taskExecutor }
}
