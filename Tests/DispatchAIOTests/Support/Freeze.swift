// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// A frozen file system, as LVM and backup programs make it for a snapshot: whatever changes it
/// sleeps until it is thawed, which happens after a time.
///
/// A process of its own freezes and thaws it, because what waits for the thaw cannot be killed: it
/// is thawed also when this process ends before.
final class Freeze {
  private let process = Process()

  /// Returns when the file system is frozen.
  ///
  /// - Parameter milliseconds: how long it lasts, whatever happens meanwhile.
  init(_ disk: SmallDisk, milliseconds: Int) throws {
    let program = try ChildProcess.installed("fsfreeze", package: "util-linux")
    let script = """
      "$0" --freeze "$1" && echo frozen && { sleep "$2"; "$0" --unfreeze "$1"; }
      """
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    process.arguments = [
      "-c", script, program, disk.path.string, "\(Double(milliseconds) / 1000)",
    ]
    process.standardOutput = output
    try process.run()
    let answer = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
    guard answer == "frozen\n" else { throw XCTSkip("no frozen file system: \(answer)") }
  }

  deinit { process.waitUntilExit() }

  /// Waits until it is over.
  func wait() {
    process.waitUntilExit()
    XCTAssertEqual(process.terminationStatus, 0, "the file system was not thawed")
  }
}
