// SPDX-License-Identifier: Apache-2.0
//
// Jobs, the pieces in which tasks run, on a Dispatch queue. A job from another thread is added to a
// list under a lock, and one block of the queue takes all that pile up. A job from within a turn of
// the loop, as when a completion resumes a task, is added to a list that the same turn runs:
// without a lock or a block, and its requests go to the kernel with the turn's next submission.
//
// `AIOExecutor` and `AIOTaskExecutor` are the face of this for Swift's runtime.

internal import CKernel
internal import Dispatch
internal import PlatformLibc
internal import Synchronization

/// The jobs of a context's queue.
///
/// - Safety: `@unchecked Sendable` because `state` is touched on the queue only, which is serial,
///   and `executors` is set before there are jobs; the rest is constant, atomic or locked.
@safe
final class JobQueue: @unchecked Sendable {
  /// The number of jobs after which the queue's other blocks run.
  static let jobsPerPass = 256
  /// The time after which they do so, in nanoseconds; the clock is read after each eight jobs.
  static let longestPass: UInt64 = 100_000

  var queue: DispatchQueue { marked.queue }

  private let marked: MarkedQueue
  /// The thread that runs a turn of the loop, or a pass of this queue, either of which looks for
  /// jobs before it ends; 0 if there is none.
  private let passing = Atomic<UInt>(0)
  /// Jobs from other threads. A pass is queued while there are any.
  private let arrived = Lock<[Job]>([])
  private var executors: Executors?

  /// - Safety: `@safe` because an executor is used while it runs a job, and is held by then: the
  ///   first by the actor or by the second, the second by the task that prefers it.
  @safe
  private struct Executors {
    let actors: UnownedSerialExecutor
    let tasks: UnownedTaskExecutor
  }

  /// - Safety: `@safe` because a job is run once, by `run`.
  @safe
  struct Job {
    let job: UnownedJob
    let isolation: Isolation
  }

  /// The executor that Swift is told a job runs on, beside the queue. Where it differs from the one
  /// that the job's code wants, Swift enqueues the task once more, at each step of that code.
  enum Isolation {
    /// An actor's, for a task that does not prefer the queue. (With the preference, such a task
    /// would change executors at each step.)
    case actor
    /// None, for a task that prefers the queue: what is nonisolated stays where it is.
    case task
    /// An actor's, for a task that prefers the queue.
    case actorOfTask
  }

  /// What is touched on the queue only.
  private struct State {
    /// Jobs from within a turn or a pass.
    var jobs: [Job] = []
    /// The jobs that are being run, from `nextRunning` on. Jobs that these make are in `jobs`.
    var running: [Job] = []
    var nextRunning = 0
    var isRunning = false
    /// Whether the job that runs belongs to a task that prefers this queue.
    var isPreferred = false
    /// Whether a task that is being resumed, and prefers this queue, is isolated to no actor.
    var resumesNonisolated = false
  }

  /// Behind a pointer, because the runtime would check each access of a class's property for
  /// exclusivity. No access lasts while a job runs. Allocated by `init`, freed by `deinit`.
  private let state: UnsafeMutablePointer<State>

  init(_ marked: MarkedQueue) {
    self.marked = marked
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: State())
  }

  deinit {
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
  }

  /// Sets the executors of the queue's jobs, before there are any.
  func setExecutors(actors: UnownedSerialExecutor, tasks: UnownedTaskExecutor) {
    executors = unsafe Executors(actors: actors, tasks: tasks)
  }

  // MARK: From any thread

  /// Adds a job of an actor.
  func enqueueForActor(_ job: UnownedJob) { enqueue(job, .actor) }

  /// Adds a job of a task that prefers the queue.
  ///
  /// Swift does not say what it is isolated to. A job that the task itself makes while it runs is a
  /// step to nonisolated code. One that is made otherwise resumes the task, which may be in either.
  func enqueueForTask(_ job: UnownedJob) {
    let isNonisolated =
      unsafe isPassing && (state.pointee.isRunning || state.pointee.resumesNonisolated)
    enqueue(job, isNonisolated ? .task : .actorOfTask)
  }

  private func enqueue(_ job: UnownedJob, _ isolation: Isolation) {
    let job = Job(job: job, isolation: isolation)
    if isPassing {
      unsafe state.pointee.jobs.append(job)
      return
    }
    let isFirst = arrived.withLock { arrived in
      arrived.append(job)
      return arrived.count == 1
    }
    if isFirst { queue.async { [self] in pass() } }
  }

  /// Whether the caller is within a turn or a pass. While it is, `state` is this thread's: only it
  /// can have stored its own number, and it does so only in a turn or a pass.
  private var isPassing: Bool {
    @inline(__always) get { passing.load(ordering: .relaxed) == Self.thread }
  }

  /// Whether the caller is on the queue.
  var isCurrent: Bool { marked.isCurrent }

  // MARK: On the queue

  /// Begins a turn or a pass on this thread, which then calls `run`, and `leave` with the result.
  @inline(__always)
  func enter() -> UInt { passing.exchange(Self.thread, ordering: .relaxed) }

  /// Ends the turn or pass.
  ///
  /// - Parameter outer: The result of `enter`.
  @inline(__always)
  func leave(_ outer: UInt) { passing.store(outer, ordering: .relaxed) }

  /// Resumes a task that was suspended in code that is isolated to no actor. Called on the queue.
  func resumeNonisolated(_ resume: () -> Void) {
    unsafe state.pointee.resumesNonisolated = true
    resume()
    unsafe state.pointee.resumesNonisolated = false
  }

  /// Whether there are jobs for `run`.
  var hasJobs: Bool {
    @inline(__always) get {
      unsafe state.pointee.nextRunning < state.pointee.running.count || !state.pointee.jobs.isEmpty
    }
  }

  /// Runs the jobs that are there, except those that they make themselves, up to `jobsPerPass` of
  /// them. The remaining ones keep their order.
  ///
  /// - Parameter end: The time to stop at, by the monotonic clock, which is read after each eight.
  /// - Returns: The number of jobs that were run.
  func run(until end: UInt64) -> Int {
    // A job that drives the loop by hand may get here: a second job of the same actor must not run
    // before the first has ended.
    guard unsafe !state.pointee.isRunning, hasJobs else { return 0 }
    unsafe state.pointee.isRunning = true
    if unsafe state.pointee.nextRunning == state.pointee.running.count {
      unsafe state.pointee.running.removeAll(keepingCapacity: true)
      unsafe state.pointee.nextRunning = 0
      unsafe swap(&state.pointee.jobs, &state.pointee.running)
    }
    let first = unsafe state.pointee.nextRunning
    let last = unsafe min(state.pointee.running.count, first + Self.jobsPerPass)
    var next = first
    while next < last {
      let job = unsafe state.pointee.running[next]
      next += 1
      unsafe state.pointee.nextRunning = next
      run(job)
      if (next - first) & 7 == 0, ckernel_monotonic_nanoseconds() > end { break }
    }
    unsafe state.pointee.isRunning = false
    return next - first
  }

  private func run(_ job: Job) {
    guard let executors else { preconditionFailure("job queue: a job before the executors") }
    unsafe state.pointee.isPreferred = job.isolation != .actor
    switch job.isolation {
    case .actor:
      unsafe job.job.runSynchronously(on: executors.actors)
    case .task:
      unsafe job.job.runSynchronously(on: executors.tasks)
    case .actorOfTask:
      unsafe job.job.runSynchronously(isolatedTo: executors.actors, taskExecutor: executors.tasks)
    }
  }

  /// Whether a job is being run. Asked on the queue only.
  var isRunningJob: Bool { unsafe state.pointee.isRunning }

  /// Whether the caller is a job on this queue of a task that does not prefer the queue, so that
  /// Swift would resume the task elsewhere.
  var needsPreference: Bool {
    @inline(__always) get {
      unsafe isPassing && state.pointee.isRunning && !state.pointee.isPreferred
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
      unsafe state.pointee.jobs.append(contentsOf: arrived)
      arrived.removeAll(keepingCapacity: true)
    }
    let end = ckernel_monotonic_nanoseconds() &+ Self.longestPass
    var count = 0
    while hasJobs && count < Self.jobsPerPass && ckernel_monotonic_nanoseconds() < end {
      count += run(until: end)
    }
    leave(outer)
    if hasJobs { runLater() }
  }

  private static var thread: UInt {
    @inline(__always) get { ckernel_thread() }
  }
}
