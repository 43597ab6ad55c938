// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// Makes a disk slow, while it lives: by the block controller of cgroups (version 1), which root
/// may set. Skips the test elsewhere.
final class Throttle {
  private static let file = "/sys/fs/cgroup/blkio/blkio.throttle.read_iops_device"
  private let device: String

  convenience init(_ disk: SmallDisk, readsPerSecond: Int) throws {
    try self.init(disk.device, readsPerSecond: readsPerSecond)
  }

  init(_ device: String, readsPerSecond: Int) throws {
    self.device = device
    guard Self.set(device, readsPerSecond) else {
      throw XCTSkip("\(Self.file) cannot be set: no slow disk to be had")
    }
  }

  deinit { lift() }

  /// Makes the disk fast again.
  func lift() { Self.lift(device) }

  /// Makes a device fast again, which a run that was killed may have left slow.
  static func lift(_ device: String) { _ = set(device, 0) }

  private static func set(_ device: String, _ readsPerSecond: Int) -> Bool {
    var status = stat()
    guard stat(device, &status) == 0,
      let descriptor = try? FileDescriptor.open(FilePath(file), .writeOnly)
    else { return false }
    defer { try? descriptor.close() }
    let line = "\(status.st_rdev >> 8):\(status.st_rdev & 0xff) \(readsPerSecond)\n"
    return (try? descriptor.writeAll(line.utf8)) != nil
  }
}
