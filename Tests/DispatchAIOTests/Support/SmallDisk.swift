// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// A filesystem of its own on a loop device, for the life of the value. Skips the test where it
/// cannot have one.
final class SmallDisk {
  private let mount: Mount
  var path: FilePath { mount.path }
  var device: String { mount.device.path }

  init(
    in directory: TemporaryDirectory, megabytes: Int, type: String = "ext4", sectorSize: Int = 512
  ) throws {
    let device = try LoopDevice(in: directory, megabytes: megabytes, sectorSize: sectorSize)
    try Self.format(device.path, type: type)
    do {
      mount = try Mount(device, at: directory.path.appending("disk"), type: type)
    } catch {
      throw XCTSkip("cannot mount \(type): \(error)")
    }
  }

  /// Makes an empty filesystem on a device, or in a file.
  static func format(_ path: String, type: String) throws {
    let package = ["ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"][type] ?? type
    let make = try ChildProcess.run(
      ChildProcess.installed("mkfs.\(type)", package: package),
      [type == "ext4" ? "-q" : "-fq", path])
    guard make.status == 0 else { throw XCTSkip("mkfs.\(type): \(make.errors)") }
  }
}

/// A filesystem that is mounted for the life of the value.
final class Mount {
  let path: FilePath
  /// Detached after the filesystem has been unmounted.
  let device: LoopDevice

  /// - Parameter path: a directory, which is made if it is not there.
  init(_ device: LoopDevice, at path: FilePath, type: String) throws {
    self.device = device
    self.path = path
    try FileManager.default.createDirectory(
      atPath: path.string, withIntermediateDirectories: true)
    // Another image of the same file system may be mounted yet in another mount namespace.
    let options = type == "xfs" ? "nouuid" : ""
    guard mount(device.path, path.string, type, 0, options) == 0 else {
      throw Errno(rawValue: errno)
    }
  }

  deinit {
    XCTAssertTrue(
      eventually { umount(path.string) == 0 || [EINVAL, ENOENT].contains(errno) },
      "\(path) cannot be unmounted: \(Errno(rawValue: errno))")
  }
}
