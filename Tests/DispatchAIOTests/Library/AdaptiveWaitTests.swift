// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import DispatchAIO

/// Whether the loop waits in the ring where that pays, and only there.
final class AdaptiveWaitTests: XCTestCase {
  private let bound: UInt64 = 500_000

  /// Waits `count` times, and returns how often it was decided to.
  private func run(_ wait: inout AdaptiveWait, _ count: Int, nanoseconds: UInt64) -> Int {
    var waits = 0
    for _ in 0..<count {
      guard let mode = wait.mode(inKernel: 1, offloaded: 0, isPolling: true) else { continue }
      waits += 1
      wait.waited(nanoseconds, successfully: nanoseconds < bound, mode: mode)
    }
    return waits
  }

  func testItWaitsWhereCompletionsAreSoon() {
    var wait = AdaptiveWait(.init(sleepBound: bound))
    XCTAssertEqual(run(&wait, 1000, nanoseconds: 30_000), 1000)
  }

  /// Where completions take longer than the bound, one wait in sixteen finds out whether they still
  /// do.
  func testItSeldomWaitsWhereCompletionsAreLate() {
    var wait = AdaptiveWait(.init(sleepBound: bound))
    _ = run(&wait, 100, nanoseconds: bound)
    XCTAssertEqual(run(&wait, 1600, nanoseconds: bound), 100)
    // Once they are soon, it waits again after a few of those.
    _ = run(&wait, 200, nanoseconds: 30_000)
    XCTAssertEqual(run(&wait, 100, nanoseconds: 30_000), 100)
  }

  /// A thread that is not run for a while, as under a processor quota, says nothing of the disk.
  func testAPauseOfTheProcessDoesNotEndTheWaits() {
    var wait = AdaptiveWait(.init(sleepBound: bound))
    _ = run(&wait, 100, nanoseconds: 30_000)
    for _ in 0..<100 {
      guard let mode = wait.mode(inKernel: 1, offloaded: 0, isPolling: true) else {
        return XCTFail("a pause ended the waits")
      }
      wait.waited(50_000_000, successfully: true, mode: mode)
      XCTAssertEqual(run(&wait, 20, nanoseconds: 30_000), 20)
    }
  }
}
