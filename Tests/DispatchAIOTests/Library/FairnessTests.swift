// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Who gets the slots: nobody is refused while none is taken, and who waits is served first.
final class FairnessTests: XCTestCase {
  // MARK: Nothing in flight

  /// Ten thousand requests, one at a time through one slot, each made from another queue after the
  /// handler of the one before has run.
  private func assertNoneRefused(
    _ directory: TemporaryDirectory, isDeliveredElsewhere: Bool, line: UInt = #line
  ) throws {
    let count = Sanitizer.isBuiltIn ? 1000 : 10_000
    _ = try directory.makeFile(size: 4096)
    let file = try directory.open("file", .readOnly, caching: .buffered)
    let context = try AIOContext(queueDepth: 1, pendingLimit: 0)
    let other = DispatchQueue(label: "test.other")
    let buffer = AIOBuffer(count: 512)
    let (refused, done) = (Locked(0), Promise<Int>())
    @Sendable func next(_ number: Int) {
      guard number < count else { return done.fulfil(number) }
      do throws(AIOError) {
        try context.read(
          file, at: 0, into: buffer, queue: isDeliveredElsewhere ? other : nil
        ) { _ in other.async { next(number + 1) } }
      } catch {
        if error.code == .full { refused.withLock { $0 += 1 } }
        other.async { next(number + 1) }
      }
    }
    other.async { next(0) }
    XCTAssertEqual(try done.wait(seconds: 120), count, line: line)
    XCTAssertEqual(
      refused.withLock { $0 }, 0, "of \(count) sequential requests, these got .full", line: line)
    try context.closeAndWait()
  }

  func testSequentialRequestsAreNotRefused() throws {
    try assertNoneRefused(try temporaryDirectory(), isDeliveredElsewhere: false)
  }

  func testSequentialRequestsDeliveredElsewhereAreNotRefused() throws {
    try assertNoneRefused(try temporaryDirectory(), isDeliveredElsewhere: true)
  }

  func testSequentialRequestsToMemoryAreNotRefused() throws {
    guard let directory = try? TemporaryDirectory(in: "/dev/shm") else {
      throw XCTSkip("no tmpfs at /dev/shm")
    }
    try assertNoneRefused(directory, isDeliveredElsewhere: false)
  }

  // MARK: Tasks that wait

  /// Tasks wait for a slot; callback verbs get `.full` until the last of them has one.
  ///
  /// - Parameters:
  ///   - inCompletions: whether completion handlers try to overtake.
  ///   - threads: how many threads try to.
  private func assertNotOvertaken(
    slots: Int, inCompletions: Bool, threads: Int, line: UInt = #line
  ) throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 4096)
    let file = try directory.open("file", .readOnly, caching: .buffered)
    let context = try AIOContext(queueDepth: 1, pendingLimit: slots - 1)
    let gate = DispatchSemaphore(value: 0)
    context.queue.async { gate.wait() }
    let buffer = AIOBuffer(count: 512)
    let count = 500
    let overtaken = Locked(0)
    /// A callback request that gets a slot although tasks wait: all of them have come before, and
    /// so whoever waits after it was accepted waited before it was.
    @Sendable func overtake() {
      let accepted: Void? = try? {
        try context.read(file, at: 0, into: buffer) { _ in if inCompletions { overtake() } }
      }()
      if accepted != nil, context.loop.admission.hasWaiters { overtaken.withLock { $0 += 1 } }
    }
    // Take the slots while the queue is held.
    for _ in 0..<slots {
      try context.read(file, at: 0, into: buffer) { _ in if inCompletions { overtake() } }
    }
    let served = DispatchGroup()
    for _ in 0..<count {
      served.enter()
      // Waits for a slot when this returns.
      Task.immediate {
        var buffer = AIOUniqueBuffer(count: 512)
        let read = try? await context.read(file, at: 0, into: &buffer)
        XCTAssertEqual(read, 512, line: line)
        served.leave()
      }
    }
    XCTAssertTrue(context.loop.admission.hasWaiters, line: line)
    let end = Date(timeIntervalSinceNow: 30)
    if threads == 0 { gate.signal() }
    onThreads(threads) { thread in
      // The queue runs when all of them do.
      if thread == threads - 1 { gate.signal() }
      while context.loop.admission.hasWaiters, Date() < end { overtake() }
    }
    XCTAssertEqual(served.wait(timeout: .now() + 30), .success, line: line)
    XCTAssertEqual(
      overtaken.withLock { $0 }, 0, "callback requests overtook \(count) waiting tasks", line: line)
    try context.closeAndWait()
  }

  func testCompletionHandlersDoNotOvertakeTasks() throws {
    try assertNotOvertaken(slots: 1, inCompletions: true, threads: 0)
  }

  func testOtherThreadsDoNotOvertakeTasks() throws {
    for _ in 0..<10 { try assertNotOvertaken(slots: 1, inCompletions: false, threads: 2) }
  }

  func testOtherThreadsDoNotOvertakeTasksThatWaitForOneOfSeveralSlots() throws {
    for _ in 0..<10 { try assertNotOvertaken(slots: 4, inCompletions: true, threads: 2) }
  }
  // MARK: Tasks that need not wait

  /// Goal: what a chunk reader or a file writer asks for waits for no slot while there are free
  /// ones, nor does it make others wait; where there is none, it waits, and is served first.
  /// Method: no turn runs while this is a block of the queue.
  func testAFreeSlotIsNotWaitedFor() async throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 4096)
    let file = try directory.open("file", .readOnly, caching: .buffered)
    let context = try AIOContext(queueDepth: 1, pendingLimit: 3)
    let buffer = AIOBuffer(count: 512)
    let completed = Promise<Outcome>()
    @Sendable func transfer() -> PendingTransfer {
      PendingTransfer(.read(into: .buffer(buffer)), file, at: 0, on: context)
    }
    let (cancelled, others) = try context.queue.sync {
      let cancelled = transfer()
      var others = [transfer(), transfer()]
      XCTAssertFalse(context.loop.admission.hasWaiters)
      try context.read(file, at: 0, into: buffer) { completed.fulfil($0) }
      others.append(transfer())
      XCTAssertTrue(context.loop.admission.hasWaiters)
      cancelled.cancel()
      assertRefused(.full) { try context.read(file, at: 0, into: buffer) { _ in } }
      return (cancelled, others)
    }
    for other in others {
      let count = try await other.value(isolation: nil)
      XCTAssertEqual(count, 512)
    }
    do {
      _ = try await cancelled.value(isolation: nil)
      XCTFail("not cancelled")
    } catch {
      XCTAssertEqual(error.code, .cancelled)
    }
    XCTAssertEqual(try completed.wait().get(), 512)
    try context.closeAndWait()
  }
}
