// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// The file system that other tests rely on misbehaves as it says, and leaves nothing behind.
final class FaultFileSystemTests: XCTestCase {
  private static func read(_ path: FilePath, count: Int) throws -> (count: Int, bytes: [UInt8]) {
    let descriptor = try FileDescriptor.open(path, .readOnly)
    defer { try? descriptor.close() }
    var bytes = [UInt8](repeating: 0, count: count)
    let count = try bytes.withUnsafeMutableBytes {
      try descriptor.read(fromAbsoluteOffset: 1000, into: $0)
    }
    return (count, bytes)
  }

  func testItMisbehaves() throws {
    let faults = try FaultFileSystem(in: try temporaryDirectory())
    for (name, count) in [
      ("sound", 8192), ("oddread-direct", 1000), ("shortread-direct", 4096),
      ("zerosize-direct", 8192), ("empty", 0),
    ] {
      let answer = try Self.read(faults[name], count: 8192)
      XCTAssertEqual(answer.count, count, name)
      XCTAssertEqual(
        answer.bytes.prefix(count), FaultFileSystem.contents(1000..<1000 + count)[...], name)
    }
    XCTAssertThrowsError(try Self.read(faults["eioread"], count: 1)) {
      XCTAssertEqual($0 as? Errno, .ioError)
    }
    let synced = try FileDescriptor.open(faults["eiofsync"], .readWrite)
    XCTAssertEqual(fsync(synced.rawValue), 0)
    XCTAssertEqual(try synced.writeAll(toAbsoluteOffset: 0, [1]), 1)
    XCTAssertEqual(fsync(synced.rawValue), -1)
    XCTAssertEqual(fsync(synced.rawValue), 0)
    try synced.close()
  }

  /// What hangs is answered after the release.
  func testItReleases() throws {
    let faults = try FaultFileSystem(in: try temporaryDirectory())
    let answers = (0..<3).map { _ in Promise<Int>() }
    for (index, promise) in answers.enumerated() {
      let path = faults["hangread-\(index)"]
      DispatchQueue(label: "test.hung").async {
        promise.fulfil((try? Self.read(path, count: 512).count) ?? -1)
      }
    }
    XCTAssertTrue(eventually { faults.hanging == 3 })
    // Others do not wait for them.
    XCTAssertEqual(try Self.read(faults["sound"], count: 512).count, 512)
    faults.release()
    for answer in answers { XCTAssertEqual(try answer.wait(), 512) }
    XCTAssertEqual(faults.hanging, 0)
  }

  /// Also when something hangs at its end.
  func testItIsUnmounted() throws {
    let directory = try temporaryDirectory()
    var faults: FaultFileSystem? = try FaultFileSystem(in: directory)
    let path = try XCTUnwrap(faults).path
    let hung = Promise<Int>()
    DispatchQueue(label: "test.hung").async {
      hung.fulfil((try? Self.read(path.appending("hangread"), count: 512).count) ?? -1)
    }
    XCTAssertTrue(eventually { faults?.hanging == 1 })
    faults = nil
    XCTAssertEqual(try hung.wait(), -1, "it ends with an error")
    XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: path.string), [])
    let mounts = try String(contentsOfFile: "/proc/self/mounts", encoding: .utf8)
    XCTAssertFalse(mounts.contains(path.string))
  }
}
