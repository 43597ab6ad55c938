// SPDX-License-Identifier: Apache-2.0

import CKernel
import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// A source's events, taken by `for try await`.
final class SourceEventsTests: XCTestCase {
  /// Two ends of a stream, non-blocking, closed with the test.
  private func pair() -> (Int32, Int32) {
    var ends: [Int32] = [0, 0]
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    XCTAssertEqual(socketpair(AF_UNIX, type, 0, &ends), 0)
    addTeardownBlock { [ends] in for end in ends { close(end) } }
    return (ends[0], ends[1])
  }

  /// Contexts with the kernel's AIO poll and without.
  private func contexts() throws -> [AIOContext] {
    let other = try AIOContext(queueDepth: 4)
    other.queue.sync { other.loop.pollsByDispatch = true }
    return [try AIOContext(queueDepth: 4), other]
  }

  /// What is written is read, and the sequence ends when the source is cancelled at the end of the
  /// stream; on the loop and off it.
  func testAStream() async throws {
    for context in try contexts() {
      for isOnLoop in [false, true] {
        let (near, far) = pair()
        let source = try context.makeReadSource(fileDescriptor: near)
        let cancelled = Promise<Void>()
        source.setCancelHandler { cancelled.fulfil(()) }
        let reading = Task(executorPreference: isOnLoop ? context.taskExecutor : nil) {
          () throws -> [UInt8] in
          var all: [UInt8] = []
          for try await count in source.events {
            var bytes = [UInt8](repeating: 0, count: 100)
            let got = read(near, &bytes, 100)
            XCTAssertGreaterThanOrEqual(got, 0, "an event without a level")
            if got == 0 {
              XCTAssertEqual(count, 0)
              source.cancel()
            }
            all += bytes[..<max(0, got)]
          }
          return all
        }
        var sent: [UInt8] = []
        for round in 0..<200 {
          let part = [UInt8](repeating: UInt8(round), count: 1 + round % 150)
          XCTAssertTrue(eventually { write(far, part, part.count) == part.count })
          sent += part
          if round % 10 == 0 { await Task.yield() }
        }
        shutdown(far, Int32(SHUT_WR))
        let received = try await reading.value
        XCTAssertEqual(received, sent)
        try cancelled.wait()
      }
    }
  }

  /// Goal: while the consumer is busy, a descriptor that stays ready costs nothing, and is one
  /// event afterwards.
  func testBackPressure() async throws {
    for context in try contexts() {
      let (near, far) = pair()
      let source = try context.makeReadSource(fileDescriptor: near)
      var events = source.events.makeAsyncIterator()
      XCTAssertEqual(write(far, "a", 1), 1)
      let first = try await events.next()
      XCTAssertEqual(first, 1)
      // It is ready all the time, and nobody asks: the loop comes to rest.
      var turns = -1
      XCTAssertTrue(
        eventually {
          XCTAssertEqual(write(far, "b", 1), 1)
          usleep(20_000)
          let now = context.statistics.turns
          defer { turns = now }
          return now == turns
        }, "the loop is woken for events that nobody takes")
      let bytes = source.data
      let second = try await events.next()
      XCTAssertEqual(second, bytes)
      source.cancel()
      let end = try await events.next()
      XCTAssertNil(end)
    }
  }

  /// A cancelled task ends its wait with an error; the source goes on with another task.
  func testCancellingTheTask() async throws {
    for context in try contexts() {
      let (near, far) = pair()
      let source = try context.makeReadSource(fileDescriptor: near)
      for round in 0..<50 {
        let waiting = Task {
          for try await _ in source.events { return true }
          return false
        }
        if round % 2 == 0 { await Task.yield() }
        waiting.cancel()
        let result = await waiting.result
        XCTAssertEqual((result.failure as? AIOError)?.code, .cancelled)
      }
      XCTAssertFalse(source.isCancelled)
      XCTAssertEqual(write(far, "abc", 3), 3)
      var events = source.events.makeAsyncIterator()
      let count = try await events.next()
      XCTAssertEqual(count, 3)
      source.cancel()
    }
  }

  /// Goal: to cancel a task whose event has been delivered does not end the wait of the next one.
  /// Method: the first task's executor runs nothing until the second one waits.
  func testCancellingATaskThatHasItsEvent() async throws {
    for context in try contexts() {
      let (near, far) = pair()
      let source = try context.makeReadSource(fileDescriptor: near)
      @Sendable func isAwaited() -> Bool {
        context.loop.readiness.withLock { _ in source.iteration.waiter != nil }
      }
      @Sendable func next() async throws -> UInt? {
        var events = source.events.makeAsyncIterator()
        return try await events.next()
      }
      let held = HeldExecutor()
      let first = Task(executorPreference: held) { try await next() }
      XCTAssertTrue(eventually { isAwaited() })
      held.hold()
      XCTAssertEqual(write(far, "abc", 3), 3)
      XCTAssertTrue(eventually { !isAwaited() })
      var bytes = [UInt8](repeating: 0, count: 3)
      XCTAssertEqual(read(near, &bytes, 3), 3)
      let second = Task { try await next() }
      XCTAssertTrue(eventually { isAwaited() })
      first.cancel()
      XCTAssertTrue(isAwaited())
      held.release()
      let count = try await first.value
      XCTAssertEqual(count, 3)
      XCTAssertEqual(write(far, "d", 1), 1)
      let other = try await second.value
      XCTAssertEqual(other, 1)
      source.cancel()
    }
  }

  /// Goal: an event of a single timer that is due when its task is cancelled is the next one's.
  /// Method: the handler of a timer that is due before cancels the task.
  func testATimerOfACancelledTask() async throws {
    for context in try contexts() {
      let (first, second) = (try context.makeTimerSource(), try context.makeTimerSource())
      let cancelled = Task {
        var events = second.events.makeAsyncIterator()
        return try await events.next()
      }
      XCTAssertTrue(eventually { context.loop.readiness.withLock { _ in second.isRunning } })
      first.setEventHandler { cancelled.cancel() }
      context.queue.sync {
        let now = DispatchTime.now()
        first.schedule(deadline: now)
        first.activate()
        second.schedule(deadline: now)
      }
      let result = await cancelled.result
      XCTAssertEqual((result.failure as? AIOError)?.code, .cancelled)
      var events = second.events.makeAsyncIterator()
      let count = try await events.next()
      XCTAssertEqual(count, 1)
      for timer in [first, second] { timer.cancel() }
    }
  }

  /// A source that is cancelled, and a context that closes, end the sequence of a task that waits.
  func testTheEnd() async throws {
    for context in try contexts() {
      let (near, _) = pair()
      for ending in 0..<3 {
        let source = try context.makeReadSource(fileDescriptor: near)
        let waiting = Task {
          for try await _ in source.events { return true }
          return false
        }
        XCTAssertTrue(eventually { context.loop.readiness.withLock { _ in source.isRunning } })
        switch ending {
        case 0: source.cancel()
        case 1:
          source.setEventHandler {}
          source.cancel()
        default: try context.closeAndWait()
        }
        let delivered = try await waiting.value
        XCTAssertFalse(delivered)
      }
      do {
        _ = try context.makeReadSource(fileDescriptor: near)
        XCTFail("not refused")
      } catch {
        XCTAssertEqual(error.code, .contextClosed)
      }
    }
  }

  /// Goal: where the kernel cannot watch the descriptor any more, the iteration says so.
  func testAFailedRegistration() async throws {
    let context = try AIOContext(queueDepth: 4)
    var ends: [Int32] = [0, 0]
    XCTAssertEqual(pipe(&ends), 0)
    let source = try context.makeReadSource(fileDescriptor: ends[0])
    // Against the rules: the descriptor is closed before the source has been cancelled.
    close(ends[0])
    close(ends[1])
    var events = source.events.makeAsyncIterator()
    do {
      _ = try await events.next()
      XCTFail("no error")
    } catch {
      XCTAssertTrue([.badFileDescriptor, .noSuchFileOrDirectory].contains(error.errno), "\(error)")
      XCTAssertEqual(error.operation, .poll)
    }
    source.cancel()
  }

  /// A timer's events are counted while nobody waits, and none is lost.
  func testATimer() async throws {
    for context in try contexts() {
      let timer = try context.makeTimerSource()
      timer.schedule(deadline: .now(), repeating: .milliseconds(2))
      var (events, count) = (timer.events.makeAsyncIterator(), UInt(0))
      let began = DispatchTime.now()
      while count < 20, let fired = try await events.next() {
        XCTAssertGreaterThan(fired, 0)
        count += fired
        if count % 3 == 0 { usleep(5_000) }
      }
      let milliseconds =
        (DispatchTime.now().uptimeNanoseconds - began.uptimeNanoseconds) / 1_000_000
      XCTAssertGreaterThanOrEqual(milliseconds + 1, UInt64(count - 1) * 2, "too many events")
      // A single one is not lost either.
      timer.schedule(deadline: .now())
      let last = try await events.next()
      XCTAssertNotNil(last)
      timer.cancel()
      let end = try await events.next()
      XCTAssertNil(end)
    }
  }

  /// Writers, for back-pressure the other way round.
  func testWritability() async throws {
    let context = try AIOContext(queueDepth: 4)
    let (near, far) = pair()
    let source = try context.makeWriteSource(fileDescriptor: near)
    let chunk = [UInt8](repeating: 7, count: 1 << 16)
    let total = 4 << 20
    let reading = Task.detached {
      var (got, bytes) = (0, [UInt8](repeating: 0, count: 1 << 16))
      while got < total {
        let count = read(far, &bytes, bytes.count)
        if count > 0 { got += count } else { await Task.yield() }
      }
      return got
    }
    var sent = 0
    for try await _ in source.events {
      let count = write(near, chunk, min(chunk.count, total - sent))
      if count > 0 { sent += count }
      if sent == total { source.cancel() }
    }
    let got = await reading.value
    XCTAssertEqual(got, total)
  }

  /// Goal: events, cancellations of tasks and of sources, and handlers race without a lost or a
  /// second resumption. Under the Thread Sanitizer.
  func testRaces() async throws {
    print(Seeds.replay(Seeds.one))
    for context in try contexts() {
      try await withThrowingTaskGroup(of: Void.self) { group in
        for number in 0..<8 {
          let (near, far) = pair()
          group.addTask {
            var random = SeededGenerator(seed: Seeds.one &+ UInt64(number))
            for _ in 0..<60 {
              let source = try context.makeReadSource(fileDescriptor: near)
              let waiting = Task {
                var count = 0
                for try await _ in source.events {
                  count += 1
                  var byte: UInt8 = 0
                  _ = read(near, &byte, 1)
                }
                return count
              }
              for _ in 0..<Int.random(in: 0..<4, using: &random) {
                _ = write(far, "x", 1)
                if Bool.random(using: &random) { await Task.yield() }
              }
              switch Int.random(in: 0..<3, using: &random) {
              case 0: waiting.cancel()
              case 1: source.cancel()
              default:
                source.cancel()
                waiting.cancel()
              }
              switch await waiting.result {
              case .success: break
              case .failure(let error): XCTAssertEqual((error as? AIOError)?.code, .cancelled)
              }
              source.cancel()
            }
          }
        }
        try await group.waitForAll()
      }
      try context.closeAndWait()
    }
  }
}

/// An executor that can be told to keep what it is to run.
private final class HeldExecutor: TaskExecutor {
  private let queue = DispatchQueue(label: "test.held")

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    queue.async { [self] in job.runSynchronously(on: asUnownedTaskExecutor()) }
  }

  func hold() { queue.suspend() }
  func release() { queue.resume() }
}

extension Result {
  fileprivate var failure: Failure? {
    if case .failure(let error) = self { error } else { nil }
  }
}
