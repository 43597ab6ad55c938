// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// Completion handlers on a queue that is slow: what waits for them is bounded.
final class SlowQueueTests: XCTestCase {
  private let depth = 8

  /// Makes requests as fast as they are accepted while `queues` do not run, and checks that no more
  /// are accepted than there are slots; then the queues run, and each handler does, once.
  private func assertBounded(
    _ directory: TemporaryDirectory, queues: Int, line: UInt = #line
  ) throws {
    _ = try directory.makeFile(size: 4096)
    let file = try directory.open("file", .readOnly, caching: .buffered)
    let context = try AIOContext(queueDepth: depth, pendingLimit: depth)
    let slow = (0..<queues).map { DispatchQueue(label: "test.slow.\($0)") }
    for queue in slow { queue.suspend() }
    let handled = Locked(0)
    var accepted = 0
    /// Makes requests until one is refused; 1000 are enough to see that there is no bound.
    func fill() throws {
      while accepted < 1000 {
        do throws(AIOError) {
          try context.read(
            file, at: 0, into: AIOBuffer(count: 512), queue: slow[accepted % queues]
          ) { _ in handled.withLock { $0 += 1 } }
          accepted += 1
        } catch {
          guard error.code == .full else { throw error }
          return
        }
      }
    }
    // When all that were accepted have completed, nothing happens any more that may make room.
    var before = -1
    while accepted > before {
      before = accepted
      try fill()
      XCTAssertTrue(
        eventually {
          context.queue.sync { _ = context.process() }
          return context.statistics.succeeded == accepted
        }, line: line)
    }
    XCTAssertEqual(handled.withLock { $0 }, 0, line: line)
    XCTAssertGreaterThanOrEqual(accepted, 2 * depth, line: line)
    XCTAssertLessThanOrEqual(
      accepted, 2 * depth, "accepted while no handler ran, with \(depth) + \(depth) slots",
      line: line)
    for queue in slow { queue.resume() }
    XCTAssertTrue(eventually { handled.withLock { $0 } == accepted }, line: line)
    // There is room again.
    XCTAssertTrue(
      eventually {
        (try? context.readAndWait(file, at: 0, into: AIOBuffer(count: 512))) == .success(512)
      }, line: line)
    try context.closeAndWait()
    XCTAssertEqual(handled.withLock { $0 }, accepted, line: line)
  }

  func testASlowQueue() throws { try assertBounded(try temporaryDirectory(), queues: 1) }

  func testTwoSlowQueues() throws { try assertBounded(try temporaryDirectory(), queues: 2) }

  /// Where requests complete inside the turn that submits them.
  func testASlowQueueBesideMemory() throws {
    guard let directory = try? TemporaryDirectory(in: "/dev/shm") else {
      throw XCTSkip("no tmpfs at /dev/shm")
    }
    try assertBounded(directory, queues: 1)
  }

  /// A slow queue takes no slots of those whose handlers run: there is room for the context's own
  /// queue once one handler of the slow one has run.
  func testASlowQueueGivesItsSlotsBackOneByOne() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 4096)
    let file = try directory.open("file", .readOnly, caching: .buffered)
    let context = try AIOContext(queueDepth: 1, pendingLimit: 1)
    let slow = DispatchQueue(label: "test.slow")
    let (gate, handled) = (DispatchSemaphore(value: 0), Locked(0))
    for _ in 0..<2 {
      try context.read(file, at: 0, into: AIOBuffer(count: 512), queue: slow) { _ in
        gate.wait()
        handled.withLock { $0 += 1 }
      }
    }
    // Both have completed, and the first handler, which has given its slot back, waits.
    XCTAssertTrue(
      eventually {
        context.queue.sync { _ = context.process() }
        return context.statistics.succeeded == 2
      })
    let third = Promise<Outcome>()
    XCTAssertTrue(
      eventually {
        (try? context.read(
          file, at: 0, into: AIOBuffer(count: 512), queue: slow, completion: { third.fulfil($0) }))
          != nil
      })
    let refused = assertRefused(.full) {
      try context.read(file, at: 0, into: AIOBuffer(count: 512)) { _ in }
    }
    XCTAssertEqual(refused?.isRetryable, true)
    gate.signal()
    XCTAssertTrue(eventually { handled.withLock { $0 } == 1 })
    XCTAssertTrue(
      eventually {
        (try? context.readAndWait(file, at: 0, into: AIOBuffer(count: 512))) == .success(512)
      })
    gate.signal()
    XCTAssertEqual(try third.wait(), .success(512))
    try context.closeAndWait()
  }
}
