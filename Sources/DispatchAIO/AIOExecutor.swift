// SPDX-License-Identifier: Apache-2.0

public import Dispatch

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
/// Requests that such an actor awaits change no thread: the completion, and what the actor does
/// next, run in one turn of the loop. Code on the queue outside of tasks, for example in a timer's
/// handler, enters the actor with `assumeIsolated`, which traps elsewhere.
///
/// Swift resumes a task through its preferred executor first, and then moves it to its actor. Tasks
/// that call such an actor are therefore fastest with ``AIOContext/taskExecutor`` as their
/// preference; for other tasks each call prefers it for its duration, which costs some 0.3 us.
///
/// - Important: An actor refers to its executor without holding it, so that it has to hold the
///   context or the executor itself. Jobs run also after the context has closed.
public final class AIOExecutor: SerialExecutor {
  private let jobs: JobQueue

  init(_ jobs: JobQueue) { self.jobs = jobs }

  /// The serial queue that the jobs run on.
  public var queue: DispatchQueue { jobs.queue }

  /// Enqueues a job of an actor; called by Swift's runtime, from any thread.
  public func enqueue(_ job: consuming ExecutorJob) {
    jobs.enqueueForActor(UnownedJob(job))
  }

  /// Whether the caller is on the queue.
  public func isIsolatingCurrentContext() -> Bool? { jobs.isCurrent }

  /// Traps if the caller is not on the queue.
  public func checkIsolated() {
    guard jobs.isCurrent else {
      fatalError("AIOExecutor: not on the queue of the executor, '\(queue.label)'")
    }
  }
}

/// Runs the nonisolated code of tasks on a context's queue: from ``AIOContext/taskExecutor``.
///
/// ```swift
/// Task(executorPreference: context.taskExecutor) { … }
/// ```
public final class AIOTaskExecutor: TaskExecutor {
  /// Runs actors in the tasks that prefer this executor.
  private let executor: AIOExecutor
  private let jobs: JobQueue

  init(_ executor: AIOExecutor, _ jobs: JobQueue) {
    self.executor = executor
    self.jobs = jobs
    // Whoever runs a job holds them by then: see `JobQueue.Executors`.
    unsafe jobs.setExecutors(
      actors: executor.asUnownedSerialExecutor(), tasks: asUnownedTaskExecutor())
  }

  /// Enqueues a job of a task; called by Swift's runtime, from any thread.
  public func enqueue(_ job: consuming ExecutorJob) {
    jobs.enqueueForTask(UnownedJob(job))
  }
}
