// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What the library finds out about a file that it opens.
final class FileTraitsTests: XCTestCase {
  private func status(_ file: AIOFile) -> stat {
    var status = stat()
    fstat(file.fileDescriptor.rawValue, &status)
    return status
  }

  /// A block device is no memory, although its node lies on devtmpfs, which says what tmpfs says.
  func testABlockDevice() throws {
    let directory = try temporaryDirectory()
    let device = try LoopDevice(in: directory, megabytes: 1)
    for caching in [AIOFile.Caching.direct, .buffered] {
      let file = try AIOFile.open(FilePath(device.path), .readOnly, caching: caching)
      let traits = file.file.traits
      XCTAssertFalse(traits.isMemory)
      XCTAssertTrue(traits.isBlockDevice)
      XCTAssertEqual(traits.fileSystem, .local)
      XCTAssertEqual(traits.device, UInt64(status(file).st_rdev))
      XCTAssertEqual(traits.alignment.offset, caching == .direct ? 512 : 1)
      let closed = Promise<Void>()
      file.close { closed.fulfil(()) }
      try closed.wait()
    }
  }

  /// The same device where the kernel does not tell the alignment (before Linux 6.1).
  func testABlockDevicesAlignmentOnAnOldKernel() throws {
    let directory = try temporaryDirectory()
    let device = try LoopDevice(in: directory, megabytes: 1, sectorSize: 4096)
    let log = try SystemCallLog(
      tracing: "statx", options: ["-e", "inject=statx:error=EINVAL"],
      ChildProcess.built("dispatch-aio-probe"), ["alignment", device.path], in: directory)
    XCTAssertEqual(log.run.output, "4096 4096\n", log.run.errors)
  }

  func testAFileOnADisk() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 4096)
    let file = try directory.open()
    XCTAssertFalse(file.file.traits.isMemory)
    XCTAssertEqual(file.file.traits.device, UInt64(status(file).st_dev))
    XCTAssertFalse(file.file.traits.syncsWrites)
    for flag in [O_DSYNC, O_SYNC] {
      let options = FileDescriptor.OpenOptions(rawValue: flag)
      for caching in [AIOFile.Caching.direct, .buffered] {
        XCTAssertTrue(
          try directory.open(options: options, caching: caching).file.traits.syncsWrites)
      }
    }
  }

  /// A file system that is mounted to sync every write.
  func testASynchronousMount() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 16)
    let file = try AIOFile.open(disk.path.appending("file"), .readWrite, options: .create)
    XCTAssertFalse(file.file.traits.syncsWrites)
    guard
      mount(nil, disk.path.string, nil, UInt(MS_REMOUNT | MS_SYNCHRONOUS), nil)
        == 0
    else { throw XCTSkip("cannot remount: \(Errno(rawValue: errno))") }
    let synchronous = try AIOFile.open(disk.path.appending("file"), .readWrite)
    XCTAssertTrue(synchronous.file.traits.syncsWrites)
    XCTAssertEqual(synchronous.file.traits.fileSystem, .local)
    for file in [file, synchronous] {
      let closed = Promise<Void>()
      file.close { closed.fulfil(()) }
      try closed.wait()
    }
  }

  func testFileSystems() throws {
    let directory = try temporaryDirectory()
    XCTAssertEqual(
      try AIOFile.open("/proc/self/status", .readOnly, caching: .buffered).file.traits.fileSystem,
      .pseudo)
    if let shared = try? TemporaryDirectory(in: "/dev/shm"), let file = try? shared.open() {
      XCTAssertTrue(file.file.traits.isMemory)
      XCTAssertEqual(file.file.traits.fileSystem, .memory)
    }
    for (magic, kind) in [
      (0xef53, FileSystemKind.local), (0x5846_5342, .local), (0x0102_1994, .memory),
      (0x8584_58f6, .memory), (0x9584_58f6, .memory), (0x6573_5546, .fuse), (0x6969, .network),
      (0xff53_4d42, .network), (0x9fa0, .pseudo), (0x794c_7630, .other), (0, .other),
    ] {
      XCTAssertEqual(FileSystemKind(magic: UInt32(magic)), kind, String(magic, radix: 16))
    }
    guard getuid() == 0 else { throw XCTSkip("only root can mount ramfs and hugetlbfs") }
    for type in ["ramfs", "hugetlbfs"] {
      guard mount("none", directory.path.string, type, 0, nil) == 0 else {
        throw XCTSkip("cannot mount \(type): \(Errno(rawValue: errno))")
      }
      defer { XCTAssertTrue(eventually { umount(directory.path.string) == 0 }, type) }
      let file = try directory.open("file", caching: .buffered)
      XCTAssertTrue(file.file.traits.isMemory, type)
      XCTAssertEqual(file.file.traits.fileSystem, .memory, type)
      let closed = Promise<Void>()
      file.close { closed.fulfil(()) }
      try closed.wait()
    }
  }
}
