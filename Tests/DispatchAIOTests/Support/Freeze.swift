// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// A frozen file system, as LVM and backup programs make it for a snapshot: whatever changes it
/// sleeps until it is thawed, which happens after a time, or when the value is gone.
final class Freeze {
  private let path: String
  private let program: String
  private let thawed = DispatchGroup()

  /// - Parameter milliseconds: how long it lasts, whatever happens meanwhile: a test that waits for
  ///   what only a thaw ends would else never end.
  init(_ disk: SmallDisk, milliseconds: Int) throws {
    path = disk.path.string
    program = try ChildProcess.installed("fsfreeze", package: "util-linux")
    let run = try ChildProcess.run(program, ["--freeze", path])
    guard run.status == 0 else { throw XCTSkip("fsfreeze: \(run.errors)") }
    DispatchQueue(label: "test.thaw").asyncAfter(
      deadline: .now() + .milliseconds(milliseconds)
    ) { [program, path, thawed = enter()] in
      _ = try? ChildProcess.run(program, ["--unfreeze", path])
      thawed.leave()
    }
  }

  deinit { thawed.wait() }

  private func enter() -> DispatchGroup {
    thawed.enter()
    return thawed
  }

  /// Waits until it is over.
  func wait() { thawed.wait() }
}
