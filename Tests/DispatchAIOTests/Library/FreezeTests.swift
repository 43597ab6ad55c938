// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import XCTest

/// The loop beside a frozen file system.
///
/// The kernel waits for a thaw inside `io_submit`, before it looks at NOWAIT, so that the first
/// write in a freeze holds the loop up. Once that has been seen, the file system's writes are
/// offloaded: these tests freeze it twice, and look at the second time.
final class FreezeTests: XCTestCase {
  private let milliseconds = 400

  /// - Parameter open: makes the file that is written in the second freeze.
  private func assertSecondFreezeIsNotNoticed(
    type: String, megabytes: Int, line: UInt = #line,
    second open: (TemporaryDirectory, AIOFile) throws -> AIOFile
  ) throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: megabytes, type: type)
    let first = try AIOFile.open(disk.path.appending("first"), .readWrite, options: .create)
    let context = try AIOContext(queueDepth: 64)
    // Written once, so that nothing has to be allocated later: NOWAIT suffices on other days.
    let all = AIOBuffer(count: 1 << 20)
    XCTAssertEqual(try context.writeAndWait(first, at: 0, from: all), .success(1 << 20), line: line)
    let second = try open(directory, first)
    XCTAssertEqual(
      try context.writeAndWait(second, at: 0, from: all), .success(1 << 20), line: line)
    _ = try context.outcome { try context.fsync(second, completion: $0) }
    let block = AIOBuffer(count: 4096)
    XCTAssertEqual(try context.writeAndWait(first, at: 0, from: block), .success(4096), line: line)

    let freeze = try Freeze(disk, milliseconds: milliseconds)
    XCTAssertEqual(try context.writeAndWait(first, at: 0, from: block), .success(4096), line: line)
    freeze.wait()

    let again = try Freeze(disk, milliseconds: milliseconds)
    let lateness = try Lateness(on: context.queue)
    let done = DispatchGroup()
    for index in 0..<32 {
      done.enter()
      try context.write(second, at: Int64(index * 4096), from: block) {
        XCTAssertEqual($0, .success(4096), line: line)
        done.leave()
      }
    }
    again.wait()
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success, line: line)
    assertLate(
      lateness.stop(), lessThan: 50, "32 overwrites in a second freeze of \(milliseconds) ms",
      line: line)
    try context.closeAndWait()
  }

  func testTheSameFileOnExt4() throws {
    try assertSecondFreezeIsNotNoticed(type: "ext4", megabytes: 64) { $1 }
  }

  func testAnotherFileOnExt4() throws {
    try assertSecondFreezeIsNotNoticed(type: "ext4", megabytes: 64) { directory, _ in
      try directory.open("disk/second")
    }
  }

  func testAnotherFileOnXFS() throws {
    try assertSecondFreezeIsNotNoticed(type: "xfs", megabytes: 320) { directory, _ in
      try directory.open("disk/second")
    }
  }

  /// Once the file system does not freeze any more, its overwrites are submitted on the loop.
  func testTheSuspicionEnds() throws {
    try requireKernelAIO("every write is offloaded")
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 64)
    let file = try AIOFile.open(disk.path.appending("file"), .readWrite, options: .create)
    let context = try AIOContext(queueDepth: 8)
    let block = AIOBuffer(count: 4096)
    for _ in 0..<2 {
      XCTAssertEqual(try context.writeAndWait(file, at: 0, from: block), .success(4096))
    }
    let freeze = try Freeze(disk, milliseconds: milliseconds)
    XCTAssertEqual(try context.writeAndWait(file, at: 0, from: block), .success(4096))
    freeze.wait()
    let goesOnLoop = eventually(within: 20 * Sanitizer.slowness) {
      let before = context.offloads
      guard (try? context.writeAndWait(file, at: 0, from: block)) == .success(4096) else {
        return false
      }
      return context.offloads == before
    }
    XCTAssertTrue(goesOnLoop, "overwrites are offloaded 20 s after a freeze of 0.4 s")
    try context.closeAndWait()
  }
}
