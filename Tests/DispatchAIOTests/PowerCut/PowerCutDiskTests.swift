// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// The disk of the power cuts itself.
final class PowerCutDiskTests: XCTestCase {
  /// Goal: what was flushed is always there; what was not, in whole, in part, or not at all.
  func testAFlushMakesDurableWhatWasWrittenBefore() throws {
    let directory = try temporaryDirectory()
    let disk = try PowerCutDisk(in: directory, type: nil, megabytes: 1)
    let descriptor = try FileDescriptor.open(disk.path, .readWrite)
    defer { try? descriptor.close() }
    let acknowledged = Acknowledgements<Int>(disk)
    /// Sixteen sectors at `offset` in 16 KiB.
    func write(_ byte: UInt8, at offset: Int) throws {
      let bytes = [UInt8](repeating: byte, count: 16 * 512)
      XCTAssertEqual(try descriptor.writeAll(toAbsoluteOffset: Int64(offset), bytes), bytes.count)
    }
    try write(1, at: 0)
    XCTAssertEqual(disk.position, 1)
    XCTAssertEqual(fsync(descriptor.rawValue), 0)
    acknowledged.record(1)
    try write(2, at: 8192)
    try write(3, at: 0)
    XCTAssertEqual(fsync(descriptor.rawValue), 0)
    acknowledged.record(2)
    XCTAssertEqual(try disk.flushes(), [false, true, false, false, true])
    XCTAssertEqual((0...5).map { acknowledged.promised(at: $0).count }, [0, 0, 1, 1, 1, 2])

    /// The first byte of each sector.
    func sectors(_ position: Int, _ seed: UInt64) throws -> [UInt8] {
      let bytes = try firstBytes(disk.image(.init(position: position, seed: seed)), count: 16384)
      return stride(from: 0, to: 16384, by: 512).map { bytes[$0] }
    }
    func all(_ first: UInt8, _ second: UInt8) -> [UInt8] {
      [UInt8](repeating: first, count: 16) + [UInt8](repeating: second, count: 16)
    }
    var seen = [Set<[UInt8]>](repeating: [], count: 6)
    for seed in 0..<100 as Range<UInt64> {
      for position in 0...5 { seen[position].insert(try sectors(position, seed)) }
    }
    // Nothing is left to chance just after a flush.
    XCTAssertEqual(seen[0], [all(0, 0)])
    XCTAssertEqual(seen[2], [all(1, 0)])
    XCTAssertEqual(seen[5], [all(3, 2)])
    // Before it everything is, and the later write may be there without the earlier one.
    XCTAssertTrue(seen[1].isSuperset(of: [all(0, 0), all(1, 0)]))
    XCTAssertTrue(seen[4].isSuperset(of: [all(1, 0), all(1, 2), all(3, 0), all(3, 2)]))
    XCTAssertGreaterThan(seen[4].count, 30)
    XCTAssertTrue(seen[4].allSatisfy { Set($0[..<16]).isSubset(of: [1, 3]) })
    // The same seed, the same image; and one may be written to, which changes no other.
    XCTAssertEqual(try sectors(4, 7), try sectors(4, 7))
    let image = disk.image(.init(position: 2, seed: 0))
    let changed = try FileDescriptor.open(image, .readWrite)
    _ = try changed.closeAfter { try changed.writeAll([UInt8](repeating: 9, count: 512)) }
    XCTAssertEqual(try firstBytes(image, count: 1), [9])
    XCTAssertEqual(try sectors(4, 7).count, 32)
    XCTAssertEqual(try sectors(2, 0), all(1, 0))

    // The disk continues with what is there, which is durable then, and with what was promised.
    try disk.restart(after: .init(position: 2, seed: 0))
    XCTAssertEqual(try disk.flushes(), [])
    XCTAssertEqual(acknowledged.promised(at: 0), [1])
    let again = try FileDescriptor.open(disk.path, .readWrite)
    defer { try? again.close() }
    let bytes = [UInt8](repeating: 4, count: 512)
    XCTAssertEqual(try again.writeAll(toAbsoluteOffset: 0, bytes), bytes.count)
    XCTAssertEqual(fsync(again.rawValue), 0)
    acknowledged.record(3)
    XCTAssertEqual((0...2).map { acknowledged.promised(at: $0) }, [[1], [1], [1, 3]])
    XCTAssertEqual(try sectors(0, 1), all(1, 0))
    XCTAssertEqual(try sectors(2, 1), [4] + all(1, 0).dropFirst())
    withExtendedLifetime(directory) {}
  }

  /// Goal: a flush does not cover a write that had no answer when the flush was asked for. Method:
  /// both wait, beneath a loop device, for the disk to go on.
  func testAFlushDoesNotCoverWhatIsUnderWay() throws {
    let directory = try temporaryDirectory()
    let disk = try PowerCutDisk(in: directory, type: nil, megabytes: 1)
    let device = try PowerCutDisk.device(disk.path)
    let waiting = try WaitingRequests(disk.path, in: directory)
    let file = try AIOFile.open(FilePath(device.path), .readWrite)
    let context = try AIOContext(queueDepth: 4)
    let ended = DispatchGroup()
    let first = disk.position
    try disk.paused {
      ended.enter()
      try context.write(file, at: 0, from: AIOBuffer([UInt8](repeating: 1, count: 4096))) {
        XCTAssertEqual($0, .success(4096))
        ended.leave()
      }
      XCTAssertTrue(eventually { waiting.count == 1 })
      ended.enter()
      try context.fsync(file) {
        XCTAssertEqual($0.code, nil)
        ended.leave()
      }
      XCTAssertTrue(eventually { waiting.count == 2 })
    }
    XCTAssertEqual(ended.wait(timeout: .now() + 60), .success)
    XCTAssertEqual(Array(try disk.flushes()[first...].prefix(2)), [false, true])
    func seen(_ position: Int) throws -> Set<[UInt8]> {
      Set(
        try (0..<100 as Range<UInt64>).map {
          try firstBytes(disk.image(.init(position: position, seed: $0)), count: 1)
        })
    }
    XCTAssertEqual(try seen(first + 2), [[0], [1]])
    XCTAssertEqual(try context.outcome { try context.fsync(file, completion: $0) }.code, nil)
    XCTAssertEqual(try seen(disk.position), [[1]])
    try context.closeAndWait()
  }
}

private func firstBytes(_ path: FilePath, count: Int) throws -> [UInt8] {
  let descriptor = try FileDescriptor.open(path, .readOnly)
  defer { try? descriptor.close() }
  return try [UInt8](unsafeUninitializedCapacity: count) { bytes, initialized in
    initialized = try descriptor.read(into: UnsafeMutableRawBufferPointer(bytes))
  }
}

/// How many requests of a FUSE file system have no answer, by the kernel's count.
private final class WaitingRequests {
  private let path: FilePath
  private let file: String

  /// - Parameter place: a file of the file system.
  init(_ place: FilePath, in directory: TemporaryDirectory) throws {
    path = directory.path.appending("connections")
    var status = stat()
    guard stat(place.string, &status) == 0, mkdir(path.string, 0o700) == 0,
      mount("fusectl", path.string, "fusectl", 0, nil) == 0
    else { throw XCTSkip("no fusectl: \(Errno(rawValue: errno))") }
    let minor = status.st_dev & 0xff | status.st_dev >> 12 & 0xfff00
    file = path.appending("\(minor)").appending("waiting").string
  }

  deinit { umount2(path.string, Int32(MNT_DETACH)) }

  var count: Int? {
    let text = try? String(contentsOfFile: file, encoding: .utf8)
    return text.flatMap { Int($0.trimmingCharacters(in: .whitespacesAndNewlines)) }
  }
}
