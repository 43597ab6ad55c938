// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// Programmer errors trap, with a sentence that says what is wrong; in release builds, too, whose
/// probe `AIO_PROBE` names.
final class MisuseTests: XCTestCase {
  func testTraps() throws {
    let probe =
      try ProcessInfo.processInfo.environment["AIO_PROBE"]
      ?? ChildProcess.built("dispatch-aio-probe")
    let directory = try temporaryDirectory()
    for (command, sentence) in [
      ("trap-process-off-queue", "was not called on the context's queue"),
      ("trap-process-in-completion", "called inside a completion handler"),
      ("trap-process-in-task", "called by a task or an actor that the loop runs"),
      ("trap-concurrent-queue", "the context's queue is not serial"),
      ("trap-negative-buffer", "a count of -7 bytes; it must be 0 or more"),
      ("trap-odd-alignment", "an alignment of 3; it must be a power of two"),
      ("trap-slice", "slice 256..<1024 of a buffer of 512 bytes"),
      ("trap-interval", "repeating: seconds(-1); it must be a nanosecond or more, or .never"),
      ("trap-interval-in-seconds", "repeating: nan; it must be more than 0, or .infinity"),
      ("trap-off-executor", "Expected same executor as"),
      ("trap-other-executor", "an actor of the type Resident gave a completion handler of its own"),
    ] {
      let run = try ChildProcess.run(probe, [command, directory.path.string])
      XCTAssertTrue(run.wasSignalled, "\(command) did not trap: status \(run.status)")
      XCTAssertTrue(run.errors.contains(sentence), "\(command): \(run.errors)")
    }
  }
}
