// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// `.ci/replicas`, in short: three aio-nbd on machines of their own under QEMU's quorum driver, one
/// killed under load and resilvered.
final class ReplicaTests: XCTestCase {
  func testThreeHaveTheSameBytesAgain() throws {
    let run = try replicas("--seconds", "4")
    XCTAssertEqual(run.status, 0, run.output + run.errors)
    XCTAssertTrue(run.output.contains("shown: "), run.output)
  }

  /// The comparison sees what was not resilvered.
  func testWithoutResilveringTheyDiffer() throws {
    let run = try replicas("--seconds", "1", "--no-resilver")
    XCTAssertEqual(run.status, 1, run.output + run.errors)
    XCTAssertTrue(run.errors.contains("FAILED: the three differ"), run.output + run.errors)
  }

  /// One cycle; skips where the script does, and says why.
  private func replicas(_ options: String...) throws -> ChildProcess {
    let server = try URL(fileURLWithPath: ChildProcess.built("aio-nbd"))
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      Compiler.package.appendingPathComponent(".ci/replicas").path,
      ["quorum", "--cycles", "1", "--size", "32", "--programs"]
        + [server.deletingLastPathComponent().path, "--directory", directory.path.string] + options,
      seconds: 300)
    if run.status == 77 { throw XCTSkip(run.output) }
    return run
  }
}
