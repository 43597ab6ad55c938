// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Glibc
import XCTest

/// How late a timer of 1 ms on a queue is: how long the queue was held, as its other users see it.
/// That the queue's thread was ready to run, and got no processor, does not count.
final class Lateness: Sendable {
  private struct State {
    var last = DispatchTime.now().uptimeNanoseconds
    var worst: UInt64 = 0
    var ticks = 0
    var waits = ProcessorWaits()

    mutating func tick() {
      let waited = waits.takeOwn()
      let now = DispatchTime.now().uptimeNanoseconds
      worst = max(worst, now - last - min(waited, now - last))
      last = now
      ticks += 1
    }
  }

  private static let interval = DispatchTimeInterval.milliseconds(1)
  private let queue: DispatchQueue
  private let timer: DispatchSource
  private let state = Locked(State())

  /// Returns when the timer has fired twice. Not on the queue.
  init(on queue: DispatchQueue) throws {
    self.queue = queue
    // Every source of Dispatch's is of this class.
    timer = DispatchSource.makeTimerSource(queue: queue) as! DispatchSource
    timer.schedule(deadline: .now(), repeating: Self.interval, leeway: .nanoseconds(0))
    timer.setEventHandler { @Sendable [state] in state.withLock { $0.tick() } }
    timer.activate()
    guard eventually(within: 10, { state.withLock { $0.ticks >= 2 } }) else {
      timer.cancel()
      XCTFail("a timer of 1 ms does not fire")
      throw Promise<Void>.TimedOut()
    }
    reset()
  }

  /// Forgets what was, as if the timer had just fired. From any thread, the queue's also: what held
  /// the queue up to now does not count.
  func reset() {
    state.withLock {
      $0.waits = ProcessorWaits()
      $0.last = DispatchTime.now().uptimeNanoseconds
      $0.worst = 0
    }
  }

  deinit { timer.cancel() }

  /// Stops the timer, and returns the longest that it was late, in milliseconds. Waits for the
  /// queue.
  func stop() -> Double {
    queue.sync { state.withLock { $0.tick() } }
    timer.cancel()
    return max(0, Double(state.withLock { $0.worst }) / 1e6 - 1)
  }
}

/// Fails when a queue was held for too long, and says for how long it was.
func assertLate(
  _ lateness: Double, lessThan milliseconds: Double, _ what: String,
  file: StaticString = #filePath, line: UInt = #line
) {
  let bound = milliseconds * Sanitizer.slowness
  let text = "\(what): a timer of 1 ms was late by \(lateness) ms; the bound is \(bound) ms"
  if Measurements.arePrinted { print(text) }
  XCTAssertLessThan(lateness, bound, text, file: file, line: line)
}

enum Measurements {
  /// `AIO_MEASURE=1` prints what the bounds are compared with also where they are kept.
  static let arePrinted = getenv("AIO_MEASURE") != nil
}

/// Whether the tests were built with a sanitizer, and what that does to bounds of time.
enum Sanitizer {
  static let isBuiltIn = dlsym(nil, "__asan_init") != nil || dlsym(nil, "__tsan_init") != nil
  static let slowness: Double = isBuiltIn ? 20 : 1
}

extension AIOContext {
  /// How many requests went to threads that may sleep.
  ///
  /// What a turn did is published at its end: this is read after one.
  var offloads: Int {
    queue.sync { _ = process() }
    return statistics.offloadSubmits
  }
}
