// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// A filesystem of its own on a loop device, for the life of the value. Needs root and loop devices;
/// skips the test where it cannot have them.
final class SmallDisk {
  let path: FilePath
  let device: String

  init(
    in directory: TemporaryDirectory, megabytes: Int, type: String = "ext4", sectorSize: Int = 512
  ) throws {
    guard getuid() == 0 else { throw XCTSkip("only root can make a filesystem on a loop device") }
    let image = directory.path.appending("image").string
    guard FileManager.default.createFile(atPath: image, contents: nil),
      truncate(image, megabytes << 20) == 0
    else { throw Errno(rawValue: errno) }
    let losetup = try ChildProcess.run(
      ChildProcess.installed("losetup", package: "mount"),
      ["--find", "--show", "--sector-size", "\(sectorSize)", image])
    guard losetup.status == 0 else { throw XCTSkip("no loop device: \(losetup.errors)") }
    device = losetup.output.trimmingCharacters(in: .whitespacesAndNewlines)
    path = directory.path.appending("disk")
    var done = false
    defer { if !done { detach() } }
    let package = ["ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"][type] ?? type
    let make = try ChildProcess.run(
      ChildProcess.installed("mkfs.\(type)", package: package),
      [type == "ext4" ? "-q" : type == "xfs" ? "-fq" : "-fq", device])
    guard make.status == 0 else { throw XCTSkip("mkfs.\(type): \(make.errors)") }
    try FileManager.default.createDirectory(
      atPath: path.string, withIntermediateDirectories: false)
    guard mount(device, path.string, type, 0, nil) == 0 else {
      throw XCTSkip("cannot mount \(type): \(Errno(rawValue: errno))")
    }
    done = true
  }

  deinit {
    XCTAssertTrue(
      eventually { umount(path.string) == 0 || errno == EINVAL },
      "\(path) cannot be unmounted: \(Errno(rawValue: errno))")
    detach()
  }

  private func detach() {
    _ = try? ChildProcess.run("/sbin/losetup", ["--detach", device])
  }
}
