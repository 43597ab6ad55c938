// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// A filesystem of its own on a loop device, for the life of the value. Skips the test where it
/// cannot have one.
final class SmallDisk {
  let path: FilePath
  /// Detached after the filesystem has been unmounted.
  private let loopDevice: LoopDevice
  var device: String { loopDevice.path }

  init(
    in directory: TemporaryDirectory, megabytes: Int, type: String = "ext4", sectorSize: Int = 512
  ) throws {
    loopDevice = try LoopDevice(in: directory, megabytes: megabytes, sectorSize: sectorSize)
    path = directory.path.appending("disk")
    let package = ["ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"][type] ?? type
    let make = try ChildProcess.run(
      ChildProcess.installed("mkfs.\(type)", package: package),
      [type == "ext4" ? "-q" : "-fq", loopDevice.path])
    guard make.status == 0 else { throw XCTSkip("mkfs.\(type): \(make.errors)") }
    try FileManager.default.createDirectory(
      atPath: path.string, withIntermediateDirectories: false)
    guard mount(loopDevice.path, path.string, type, 0, nil) == 0 else {
      throw XCTSkip("cannot mount \(type): \(Errno(rawValue: errno))")
    }
  }

  deinit {
    XCTAssertTrue(
      eventually { umount(path.string) == 0 || [EINVAL, ENOENT].contains(errno) },
      "\(path) cannot be unmounted: \(Errno(rawValue: errno))")
  }
}
