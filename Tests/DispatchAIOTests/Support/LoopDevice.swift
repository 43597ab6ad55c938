// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// A loop device over a file, for the life of the value. Needs root and loop devices; skips the
/// test where it cannot have them.
final class LoopDevice {
  let path: String

  /// Over a new file of zeroes.
  ///
  /// - Parameter directory: where its file is, named `image`.
  convenience init(in directory: TemporaryDirectory, megabytes: Int, sectorSize: Int = 512) throws {
    let image = directory.path.appending("image").string
    guard FileManager.default.createFile(atPath: image, contents: nil),
      truncate(image, megabytes << 20) == 0
    else { throw Errno(rawValue: errno) }
    try self.init(over: image, options: ["--sector-size", "\(sectorSize)"])
  }

  /// - Parameter options: of `losetup`.
  init(over file: String, options: [String]) throws {
    guard getuid() == 0 else { throw XCTSkip("only root can have a loop device") }
    let losetup = try ChildProcess.run(
      ChildProcess.installed("losetup", package: "mount"),
      ["--find", "--show"] + options + [file])
    guard losetup.status == 0 else { throw XCTSkip("no loop device: \(losetup.errors)") }
    path = losetup.output.trimmingCharacters(in: .whitespacesAndNewlines)
    Throttle.lift(path)
  }

  deinit {
    if !isLeftToTheKernel { detachWhenUnused() }
  }

  /// Leaves it to the kernel to detach the device, at once or when nothing of it is mounted or open
  /// any more, whatever happens to this process.
  func detachWhenUnused() {
    _ = try? ChildProcess.run("/sbin/losetup", ["--detach", path])
    isLeftToTheKernel = true
  }
  private var isLeftToTheKernel = false
}
