// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Foundation
import XCTest

/// An actor that lives on a context's loop.
actor Resident {
  let context: AIOContext
  private(set) var count = 0
  nonisolated var unownedExecutor: UnownedSerialExecutor {
    context.executor.asUnownedSerialExecutor()
  }

  init(_ context: AIOContext) { self.context = context }

  func increment() { count += 1 }

  /// The threads that it ran on, and how often it was off the queue, while it awaited reads.
  func read(_ file: AIOFile, times: Int) async throws -> (threads: Set<UInt>, offQueue: Int) {
    var buffer = AIOUniqueBuffer(count: 4096)
    var threads: Set<UInt> = []
    var offQueue = 0
    for time in 0..<times {
      threads.insert(UInt(pthread_self()))
      _ = try await context.read(file, at: Int64(time % 16) * 4096, into: &buffer)
      threads.insert(UInt(pthread_self()))
      if context.executor.isIsolatingCurrentContext() != true { offQueue += 1 }
      count += 1
    }
    return (threads, offQueue)
  }
}

final class ExecutorTests: XCTestCase {
  /// On the main queue, whose thread is always the same, so that one can tell; a child process,
  /// because XCTest's main thread is taken.
  func testAwaitingChangesNoThread() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      try ChildProcess.built("dispatch-aio-probe"), ["actor-threads", directory.path.string])
    XCTAssertEqual(run.output, "threads 1, of the pool 0\n", run.errors)
    XCTAssertEqual(run.status, 0)
  }

  /// On a queue that has whichever thread Dispatch gives it, it is never off the queue.
  func testAnActorOnTheLoopIsOnItsQueue() async throws {
    let directory = try temporaryDirectory()
    let file = try await AIOFile.open(
      try directory.makeFile(size: 16 * 4096), .readOnly)
    let context = try AIOContext(queueDepth: 4)
    let resident = Resident(context)
    try await withThrowingTaskGroup(of: Int.self) { group in
      for _ in 0..<8 { group.addTask { try await resident.read(file, times: 100).offQueue } }
      for try await offQueue in group { XCTAssertEqual(offQueue, 0) }
    }
    let count = await resident.count
    XCTAssertEqual(count, 800)
    await context.close()
    // The executor outlives what the context has in the kernel.
    await resident.increment()
    let last = await resident.count
    XCTAssertEqual(last, 801)
  }

  /// In a handler on the queue, the actor's state is at hand without `await`.
  func testAssumeIsolated() throws {
    let context = try AIOContext(queueDepth: 4)
    let resident = Resident(context)
    let count = context.queue.sync {
      resident.assumeIsolated { resident in
        resident.increment()
        return resident.count
      }
    }
    XCTAssertEqual(count, 1)
    XCTAssertEqual(context.executor.isIsolatingCurrentContext(), false)
    try context.closeAndWait()
  }

  /// A task without an actor can have the loop as its executor.
  func testTaskExecutor() async throws {
    let context = try AIOContext(queueDepth: 4)
    let executor = context.executor
    let isOnQueue = await Task(executorPreference: context.taskExecutor) {
      var answers = [executor.isIsolatingCurrentContext()]
      await Task.yield()
      answers.append(executor.isIsolatingCurrentContext())
      return answers
    }.value
    XCTAssertEqual(isOnQueue, [true, true])
    await context.close()
  }

  /// Tasks that never let go do not keep the queue's other blocks from running.
  func testJobsLeaveTheQueueToOthers() throws {
    let context = try AIOContext(queueDepth: 4)
    let resident = Resident(context)
    let stop = Locked(false)
    for _ in 0..<4 {
      Task {
        while !stop.withLock({ $0 }) {
          await resident.increment()
          await Task.yield()
        }
      }
    }
    for _ in 0..<100 {
      let ran = Promise<Void>()
      context.queue.async { ran.fulfil(()) }
      try ran.wait()
    }
    stop.withLock { $0 = true }
    try context.closeAndWait()
  }

  /// What an actor does is not interrupted by its own other parts, also when it drives the loop by
  /// hand.
  func testProcessRunsNoJobInsideAJob() throws {
    let directory = try temporaryDirectory()
    let file = try AIOFile.open(try directory.makeFile(size: 16 * 4096), .readOnly)
    let context = try AIOContext(queueDepth: 4)
    let resident = Resident(context)
    let done = Promise<Void>()
    Task {
      _ = try await resident.read(file, times: 200)
      done.fulfil(())
    }
    for _ in 0..<200 {
      context.queue.sync {
        resident.assumeIsolated { resident in
          let before = resident.count
          let deadline = DispatchTime.now() + 0.000_2
          while DispatchTime.now() < deadline { context.process() }
          XCTAssertEqual(resident.count, before)
        }
      }
    }
    try done.wait()
    try context.closeAndWait()
  }
}
