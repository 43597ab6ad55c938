// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Foundation
import XCTest

/// How late a block is that is put on a queue each millisecond: how long the queue was held, as its
/// other users see it. That the queue's thread was ready to run, and got no processor, does not
/// count; with a timer, Dispatch's own thread would be another one that waits.
final class Lateness: Sendable {
  private struct State {
    /// When the block that has not run was put on the queue.
    var began: UInt64?
    var worst: UInt64 = 0
    var ticks = 0
    var isStopped = false
    var waits = ProcessorWaits()

    mutating func tick() {
      guard let began else { return }
      let waited = waits.takeOwn()
      let time = DispatchTime.now().uptimeNanoseconds - began
      worst = max(worst, time - min(waited, time))
      self.began = nil
      ticks += 1
    }
  }

  private let queue: DispatchQueue
  private let state = Locked(State())

  /// Returns when two blocks have run. Not on the queue.
  init(on queue: DispatchQueue) throws {
    self.queue = queue
    Thread.detachNewThread { [state] in
      while !state.withLock({ $0.isStopped }) {
        usleep(1000)
        let isNext = state.withLock { state in
          guard state.began == nil else { return false }
          state.began = DispatchTime.now().uptimeNanoseconds
          return true
        }
        if isNext { queue.async { state.withLock { $0.tick() } } }
      }
    }
    guard eventually(within: 10, { state.withLock { $0.ticks >= 2 } }) else {
      XCTFail("a block does not run")
      throw Promise<Void>.TimedOut()
    }
    reset()
  }

  /// Forgets what was. From any thread, the queue's also: what held the queue up to now does not
  /// count.
  func reset() {
    state.withLock {
      $0.waits = ProcessorWaits()
      if $0.began != nil { $0.began = DispatchTime.now().uptimeNanoseconds }
      $0.worst = 0
    }
  }

  deinit { state.withLock { $0.isStopped = true } }

  /// Ends it, and returns the longest that a block was late, in milliseconds. Waits for the queue.
  func stop() -> Double {
    state.withLock { $0.isStopped = true }
    queue.sync {}
    return Double(state.withLock { $0.worst }) / 1e6
  }
}

/// Fails when a queue was held for too long, and says for how long it was.
func assertLate(
  _ lateness: Double, lessThan milliseconds: Double, _ what: String,
  file: StaticString = #filePath, line: UInt = #line
) {
  let bound = milliseconds * Sanitizer.slowness
  let text = "\(what): a block was late by \(lateness) ms; the bound is \(bound) ms"
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
