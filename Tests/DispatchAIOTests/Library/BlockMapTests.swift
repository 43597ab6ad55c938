// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// The map of a file's blocks, which ext4 reads in `io_submit`, RWF_NOWAIT or not.
final class BlockMapTests: XCTestCase {
  /// Reads of a fragmented file whose map is not in memory, on a disk that takes 20 ms for a read:
  /// none of the submissions waits for one.
  func testTheLoopDoesNotReadTheMap() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 128)
    let path = disk.path.appending("file")
    let extents = 4000
    do {
      let file = try FileDescriptor.open(
        path, .writeOnly, options: .create, permissions: .ownerReadWrite)
      let block = [UInt8](repeating: 7, count: 4096)
      for index in 0..<extents {
        _ = try file.writeAll(toAbsoluteOffset: Int64(index) * 8192, block)
      }
      XCTAssertEqual(fsync(file.rawValue), 0)
      try file.close()
    }
    // Mounted once more, nothing of it is in memory.
    XCTAssertEqual(umount(disk.path.string), 0)
    XCTAssertEqual(mount(disk.device, disk.path.string, "ext4", 0, nil), 0)

    let context = try AIOContext(queueDepth: 4)
    let file = try AIOFile.open(path, .readOnly)
    let throttle = try Throttle(disk, readsPerSecond: 50)
    let buffer = AIOBuffer(count: 4096)
    let waits = ProcessorWaits()
    for index in stride(from: 0, to: extents, by: extents / 10) {
      XCTAssertEqual(
        try context.readAndWait(file, at: Int64(index) * 8192, into: buffer), .success(4096))
    }
    throttle.lift()
    context.queue.sync { _ = context.process() }
    let longest = context.statistics.longestSubmit
    let waited = Duration.nanoseconds(Int64(ProcessorWaits().longest(since: waits)))
    print("longest submission: \(longest); a thread waited \(waited) for a processor")
    XCTAssertLessThan(longest - waited, .milliseconds(10) * Int(Sanitizer.slowness))
    try context.closeAndWait()
    file.close()
  }
}
