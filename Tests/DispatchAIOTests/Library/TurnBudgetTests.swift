// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// A turn of the loop is short, whatever there is to copy, to hand over, to run or to cancel: each
/// test gives it much at once, and looks at how late a block on the same queue is.
final class TurnBudgetTests: XCTestCase {
  private typealias Request = (AIOContext, AIOFile, Int, @escaping AIOCompletion) throws -> Void

  /// - Parameter isOnQueue: whether the requests are made in one block of the queue, or from
  ///   another thread while the queue is held.
  private func assertLate(
    lessThan milliseconds: Double, _ count: Int, _ what: String, _ file: AIOFile,
    depth: Int = 1024, isOnQueue: Bool = false, expecting expected: Int, line: UInt = #line,
    _ request: Request
  ) throws {
    let context = try AIOContext(queueDepth: depth, pendingLimit: max(0, count - depth))
    let lateness = try Lateness(on: context.queue)
    let done = DispatchGroup()
    let wrong = Locked<[Outcome]>([])
    func requestAll() throws {
      for index in 0..<count {
        done.enter()
        try request(context, file, index) { outcome in
          if outcome != .success(expected) { wrong.withLock { $0.append(outcome) } }
          done.leave()
        }
      }
    }
    if isOnQueue {
      try context.queue.sync {
        try requestAll()
        // The block itself is the caller's, and does not count.
        lateness.reset()
      }
    } else {
      let gate = DispatchSemaphore(value: 0)
      defer { gate.signal() }
      context.queue.async { gate.wait() }
      try requestAll()
      lateness.reset()
    }
    XCTAssertEqual(done.wait(timeout: .now() + 120), .success, line: line)
    DispatchAIOTests.assertLate(lateness.stop(), lessThan: milliseconds, what, line: line)
    XCTAssertEqual(wrong.withLock { $0 }, [], line: line)
    try context.closeAndWait()
  }

  // MARK: Bytes

  /// So many that no processor's cache holds them.
  private let large = (0..<64).map { _ in AIOBuffer(count: 256 << 10) }

  /// Reads that the page cache answers: the kernel copies in `io_submit`.
  private func assertCachedReads(isOnQueue: Bool, line: UInt = #line) throws {
    try requireKernelAIO("threads copy, and want all processors")
    let directory = try temporaryDirectory()
    let file = try directory.open(caching: .buffered)
    try file.truncate(to: 16 << 20)
    // A hole, which the page cache has once it was read.
    XCTAssertEqual(try directory.contents().count, 16 << 20)
    try assertLate(
      lessThan: 50, 4096, "4096 cached reads of 256 KiB", file, isOnQueue: isOnQueue,
      expecting: 256 << 10, line: line
    ) { [large] in
      // The same bytes for all who share a buffer, so that it does not matter who is first.
      try $0.read($1, at: Int64($2 % 64) << 18, into: large[$2 % 64], completion: $3)
    }
  }

  func testCachedReadsMadeOnTheQueue() throws { try assertCachedReads(isOnQueue: true) }

  func testCachedReadsMadeElsewhere() throws { try assertCachedReads(isOnQueue: false) }

  func testWritesToMemory() throws {
    guard let directory = try? TemporaryDirectory(in: "/dev/shm") else {
      throw XCTSkip("no tmpfs at /dev/shm, where writes complete at once")
    }
    let file = try directory.open("file", caching: .buffered)
    try assertLate(
      lessThan: 50, 4096, "4096 writes of 256 KiB to tmpfs", file, isOnQueue: true,
      expecting: 256 << 10
    ) { [large] in
      try $0.write($1, at: Int64($2 % 64) << 18, from: large[$2 % 64], completion: $3)
    }
  }

  // MARK: What is offloaded

  func testAppendsOfOneFile() throws {
    let directory = try temporaryDirectory()
    let block = AIOBuffer(count: 4096)
    try assertLate(
      lessThan: 60, 16384, "16,384 appends of one file", try directory.open(), depth: 32768,
      expecting: 4096
    ) {
      try $0.write($1, at: Int64($2 * 4096), from: block, completion: $3)
    }
  }

  func testBufferedWritesOfOneFile() throws {
    let directory = try temporaryDirectory()
    let block = AIOBuffer(count: 512)
    try assertLate(
      lessThan: 60, 16384, "16,384 buffered writes of one file",
      try directory.open(caching: .buffered), depth: 32768, expecting: 512
    ) {
      try $0.write($1, at: Int64($2 * 512), from: block, completion: $3)
    }
  }

  // MARK: Jobs

  /// An actor on a context's loop, which makes jobs of 5 us.
  private actor Resident {
    private let context: AIOContext
    private let done: DispatchGroup
    nonisolated var unownedExecutor: UnownedSerialExecutor {
      context.executor.asUnownedSerialExecutor()
    }

    init(_ context: AIOContext, _ done: DispatchGroup) {
      self.context = context
      self.done = done
    }

    /// Each task is a job of this actor, and enqueued when it is made.
    func makeJobs(_ count: Int) {
      for _ in 0..<count {
        done.enter()
        Task {
          self.work()
        }
      }
    }

    private func work() {
      spin()
      done.leave()
    }
  }

  /// Works for 5 us.
  private static func spin() {
    let end = DispatchTime.now().uptimeNanoseconds + 5000
    while DispatchTime.now().uptimeNanoseconds < end {}
  }

  private func assertJobs(
    _ what: String, line: UInt = #line, _ makeJobs: (AIOContext, DispatchGroup) -> Void
  ) throws {
    let context = try AIOContext(queueDepth: 8)
    let lateness = try Lateness(on: context.queue)
    let done = DispatchGroup()
    context.queue.sync {
      makeJobs(context, done)
      lateness.reset()
    }
    XCTAssertEqual(done.wait(timeout: .now() + 120), .success, line: line)
    DispatchAIOTests.assertLate(lateness.stop(), lessThan: 80, what, line: line)
    try context.closeAndWait()
  }

  func testJobsOfAnActor() throws {
    try assertJobs("100,000 jobs of an actor, 5 us each") { context, done in
      let resident = Resident(context, done)
      resident.assumeIsolated { $0.makeJobs(100_000) }
    }
  }

  func testJobsOfTasks() throws {
    try assertJobs("100,000 tasks on the task executor, 5 us each") { context, done in
      for _ in 0..<100_000 {
        done.enter()
        Task(executorPreference: context.taskExecutor) {
          Self.spin()
          done.leave()
        }
      }
    }
  }

  // MARK: Cancelled waiters

  /// Tasks that wait for room, and are cancelled while the queue is held: what they leave behind
  /// does not hold the queue afterwards.
  private func assertCancelled(
    _ count: Int, _ what: String, line: UInt = #line,
    _ body: @escaping @Sendable (AIOContext, AIOFile) async throws(AIOError) -> Void
  ) throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 1 << 20)
    let file = try AIOFile.open(path, .readOnly, caching: .buffered)
    let context = try AIOContext(queueDepth: 1, pendingLimit: 0)
    let lateness = try Lateness(on: context.queue)
    let gate = DispatchSemaphore(value: 0)
    context.queue.async { gate.wait() }
    let first = Promise<Outcome>()
    try context.read(file, at: 0, into: AIOBuffer(count: 512)) { first.fulfil($0) }
    let ended = DispatchGroup()
    let wrong = Locked<[String]>([])
    let tasks = (0..<count).map { _ in
      ended.enter()
      // Waits for room when this returns.
      return Task.immediate {
        do throws(AIOError) {
          try await body(context, file)
          wrong.withLock { $0.append("it was not cancelled") }
        } catch {
          if error.code != .cancelled { wrong.withLock { $0.append("\(error)") } }
        }
        ended.leave()
      }
    }
    // Behind all of them one that goes on waiting, and for which they are searched.
    let last = Promise<Int?>()
    Task.immediate {
      var buffer = AIOUniqueBuffer(count: 512)
      last.fulfil(try? await context.read(file, at: 0, into: &buffer))
    }
    for task in tasks { task.cancel() }
    XCTAssertEqual(
      ended.wait(timeout: .now() + 120), .success, "cancelled while the queue is held", line: line)
    lateness.reset()
    gate.signal()
    XCTAssertEqual(try first.wait(), .success(512), line: line)
    XCTAssertEqual(try last.wait(), 512, line: line)
    DispatchAIOTests.assertLate(lateness.stop(), lessThan: 30, what, line: line)
    XCTAssertEqual(wrong.withLock { $0.prefix(3) }, [], line: line)
    try context.closeAndWait()
  }

  func testCancelledTasks() throws {
    let count = Sanitizer.isBuiltIn ? 20_000 : 400_000
    try assertCancelled(count, "\(count) cancelled tasks that waited") {
      context, file throws(AIOError) in
      var buffer = AIOUniqueBuffer(count: 8, alignment: 8)
      _ = try await context.read(file, at: 0, into: &buffer)
    }
  }

  /// Requests that have been accepted, and are cancelled while the queue is held: all their
  /// handlers are to be called.
  func testCancelledRequests() throws {
    let directory = try temporaryDirectory()
    let file = try directory.open(caching: .buffered)
    let count = Sanitizer.isBuiltIn ? 20_000 : 400_000
    let context = try AIOContext(queueDepth: 8, pendingLimit: count)
    let lateness = try Lateness(on: context.queue)
    let (gate, done) = (DispatchSemaphore(value: 0), DispatchGroup())
    let wrong = Locked(0)
    context.queue.async { gate.wait() }
    let buffer = AIOBuffer(count: 8)
    let requests = try (0..<count).map { _ in
      done.enter()
      return try context.read(file, at: 0, into: buffer) {
        if $0.code != .cancelled { wrong.withLock { $0 += 1 } }
        done.leave()
      }
    }
    let cancelled = requests.count { context.cancel($0) == .cancelled }
    XCTAssertEqual(cancelled, count)
    lateness.reset()
    gate.signal()
    XCTAssertEqual(done.wait(timeout: .now() + 60), .success)
    DispatchAIOTests.assertLate(
      lateness.stop(), lessThan: 80, "\(count) cancelled requests")
    XCTAssertEqual(wrong.withLock { $0 }, 0, "not cancelled")
    try context.closeAndWait()
  }
}
