// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Block devices are disks, although their nodes lie on a file system in memory.
final class BlockDeviceTests: XCTestCase {
  private let megabytes = 16

  /// A loop device whose file has been written, and is not in the page cache.
  private func device(in directory: TemporaryDirectory) throws -> LoopDevice {
    let device = try LoopDevice(in: directory, megabytes: megabytes)
    let image = try FileDescriptor.open(directory.path.appending("image"), .readWrite)
    try image.closeAfter {
      for megabyte in 0..<megabytes {
        _ = try image.writeAll(
          toAbsoluteOffset: Int64(megabyte) << 20,
          (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 >> 12 ^ megabyte) })
      }
      try evict(image.rawValue, size: megabytes << 20)
    }
    return device
  }

  /// A device's node lies on devtmpfs, which has the magic number of tmpfs: its file is no memory.
  func testOnlyRegularFilesAreMemory() throws {
    let directory = try temporaryDirectory()
    let device = try device(in: directory)
    for caching in [AIOFile.Caching.direct, .buffered] {
      let file = try AIOFile.open(FilePath(device.path), .readWrite, caching: caching)
      XCTAssertFalse(file.file.traits.isMemory, "\(device.path), \(caching)")
      XCTAssertTrue(file.file.traits.isBlockDevice)
    }
    XCTAssertFalse(try directory.open("file").file.traits.isMemory)
    guard let memory = try? TemporaryDirectory(in: "/dev/shm") else { return }
    XCTAssertTrue(try memory.open("file").file.traits.isMemory, "a file of tmpfs")
  }

  /// One read at a time takes on the device about as long as on the file beneath.
  private func assertAsFastAsTheFileBeneath(
    line: UInt = #line,
    _ request: (AIOContext, AIOFile, Int64, AIOBuffer, @escaping AIOCompletion) throws -> Void
  ) throws {
    let directory = try temporaryDirectory()
    let device = try device(in: directory)
    let files = try [FilePath(device.path), directory.path.appending("image")].map {
      try AIOFile.open($0, .readWrite)
    }
    let context = try AIOContext(queueDepth: 8)
    let buffer = AIOBuffer(count: 4096)
    var times: [[Double]] = [[], []]
    for round in 0..<301 {
      for (index, file) in files.enumerated() {
        let began = DispatchTime.now()
        let outcome = try context.outcome {
          try request(context, file, Int64(round * 12288), buffer, $0)
        }
        let time = DispatchTime.now().uptimeNanoseconds - began.uptimeNanoseconds
        XCTAssertEqual(outcome, .success(4096), line: line)
        times[index].append(Double(time) / 1e6)
      }
    }
    let medians = times.map { $0.sorted()[$0.count / 2] }
    let text = "medians: \(medians[0]) ms on the device, \(medians[1]) ms on the file beneath"
    if Measurements.arePrinted { print(text) }
    XCTAssertLessThan(medians[0], 5 * medians[1], text, line: line)
    try context.closeAndWait()
  }

  func testDirectReadsAreAsFastAsTheFileBeneath() throws {
    try assertAsFastAsTheFileBeneath { try $0.read($1, at: $2, into: $3, completion: $4) }
  }

  func testVectoredReadsAreAsFastAsTheFileBeneath() throws {
    try assertAsFastAsTheFileBeneath { context, file, offset, buffer, completion in
      try context.read(
        file, at: offset, into: [buffer[..<512], buffer[512...]], completion: completion)
    }
  }

  /// Cold buffered reads of a slow device sleep elsewhere than on the loop.
  private func assertColdReadsDoNotHoldTheLoop(
    _ count: Int, of size: Int, line: UInt = #line
  ) throws {
    let directory = try temporaryDirectory()
    let device = try device(in: directory)
    let file = try AIOFile.open(FilePath(device.path), .readOnly, caching: .buffered)
    posix_fadvise(file.fileDescriptor.rawValue, 0, 0, POSIX_FADV_RANDOM)
    try evict(file)
    let throttle = try Throttle(device.path, readsPerSecond: 20)
    let context = try AIOContext(queueDepth: 64)
    let lateness = try Lateness(on: context.queue)
    let done = DispatchGroup()
    let began = DispatchTime.now()
    for index in 0..<count {
      done.enter()
      try context.read(file, at: Int64(index * size), into: AIOBuffer(count: size)) {
        XCTAssertEqual($0, .success(size), line: line)
        done.leave()
      }
    }
    // Some of it is slow: enough to see what it does to the loop.
    _ = done.wait(timeout: .now() + 1)
    throttle.lift()
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success, line: line)
    XCTAssertGreaterThan(DispatchTime.now(), began + 0.3, "the device was not slow", line: line)
    assertLate(
      lateness.stop(), lessThan: 30, "\(count) cold buffered reads of \(size >> 10) KiB", line: line
    )
    try context.closeAndWait()
  }

  func testColdBufferedReadsDoNotHoldTheLoop() throws {
    try assertColdReadsDoNotHoldTheLoop(32, of: 256 << 10)
  }

  func testColdSmallBufferedReadsDoNotHoldTheLoop() throws {
    try assertColdReadsDoNotHoldTheLoop(64, of: 4096)
  }
}
