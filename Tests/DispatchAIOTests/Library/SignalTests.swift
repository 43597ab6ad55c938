// SPDX-License-Identifier: Apache-2.0

import XCTest

/// System calls that raise a signal in the thread that makes them: the program survives, and has an
/// error to show for it.
final class SignalTests: XCTestCase {
  /// Goal: a file that may not grow is an error on the main thread too, where SIGXFSZ is not
  /// masked.
  func testGrowingPastTheFileSizeLimit() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["grow-past-limit", directory.path.string])
    XCTAssertFalse(run.wasSignalled, "signal \(run.status) after: \(run.output)")
    XCTAssertEqual(
      run.output,
      """
      truncate fileSizeLimit
      preallocate fileSizeLimit
      within done
      masked 0 pending 0
      truncate fileSizeLimit
      pending 1

      """, run.errors)
  }

  /// The same for writes, where the context's queue is the main queue.
  func testWritingPastTheFileSizeLimitOnTheMainQueue() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["write-past-limit", directory.path.string])
    XCTAssertFalse(run.wasSignalled, "signal \(run.status)")
    XCTAssertEqual(run.output, "fileSizeLimit\n", run.errors)
  }
}
