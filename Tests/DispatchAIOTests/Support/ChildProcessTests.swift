// SPDX-License-Identifier: Apache-2.0

import XCTest

/// The watchdog of the programs that tests run.
final class ChildProcessTests: XCTestCase {
  /// Goal: what a program has started holds its pipes open, and is killed with it.
  func testWhatAProgramHasStartedIsKilled() throws {
    let began = ContinuousClock.now
    let run = try ChildProcess.run("/bin/sh", ["-c", "sleep 60 & wait"], seconds: 0.5)
    XCTAssertTrue(run.wasSignalled)
    XCTAssertLessThan(ContinuousClock.now - began, .seconds(30))
  }
}
