// SPDX-License-Identifier: Apache-2.0

import CKernel
import CLibAIO
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// On the filesystems that people have, and with what happens to files there.
final class RealDiskTests: XCTestCase {
  // MARK: Filesystems

  /// A random load with data checking, direct and buffered.
  private func load(_ directory: FilePath, _ what: String) throws {
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["workload", directory.string])
    XCTAssertEqual(run.status, 0, "\(what): \(run.output)\(run.errors)")
    XCTAssertTrue(run.output.contains(" failed 0 wrong 0"), "\(what): \(run.output)")
  }

  func testExt4() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 64)
    try load(disk.path, "ext4")
  }

  func testXFS() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 320, type: "xfs")
    try load(disk.path, "xfs")
  }

  func testBtrfs() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 160, type: "btrfs")
    try load(disk.path, "btrfs")
  }

  func testLargeSectors() throws {
    let directory = try temporaryDirectory()
    for type in ["ext4", "xfs"] {
      let disk = try SmallDisk(
        in: TemporaryDirectory(in: directory.path.string), megabytes: 320, type: type,
        sectorSize: 4096)
      try load(disk.path, "\(type), sectors of 4096")
    }
  }

  func testTmpfs() throws {
    guard let directory = try? TemporaryDirectory(in: "/dev/shm") else {
      throw XCTSkip("no tmpfs at /dev/shm")
    }
    try load(directory.path, "tmpfs")
  }

  func testWhereTheTestsRun() throws {
    let directory = try temporaryDirectory()
    try load(directory.path, "\(directory.path)")
  }

  // MARK: What happens to files

  func testADeletedFile() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4, pendingLimit: 32)
    let file = try directory.open()
    let done = try writeBlocks(context, file, 32)
    unlink(directory.path.appending("file").string)
    for promise in done { XCTAssertEqual(try promise.wait(), .success(65536)) }
    XCTAssertEqual(try file.size(), 32 << 16)
    try context.closeAndWait()
  }

  func testATruncatedFile() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4, pendingLimit: 64)
    let file = try directory.open()
    for promise in try writeBlocks(context, file, 32) {
      XCTAssertEqual(try promise.wait(), .success(65536))
    }
    // Behind the library's back: what it knew of the file's end is not so any more.
    let descriptor = file.fileDescriptor.rawValue
    let reads = try (0..<32).map { block in
      let promise = Promise<Outcome>()
      try context.read(file, at: Int64(block << 16), into: AIOBuffer(count: 65536)) {
        promise.fulfil($0)
      }
      if block == 16 { XCTAssertEqual(ftruncate(descriptor, 1000), 0) }
      return promise
    }
    for promise in reads {
      let count = try promise.wait().get()
      XCTAssertTrue([0, 1000, 65536].contains(count), "\(count)")
    }
    for promise in try writeBlocks(context, file, 32) {
      XCTAssertEqual(try promise.wait(), .success(65536))
    }
    XCTAssertEqual(try file.size(), 32 << 16)
    try context.closeAndWait()
  }

  func testAFileClosedInFlight() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4, pendingLimit: 32)
    let file = try directory.open()
    let done = try writeBlocks(context, file, 32)
    file.close()
    for promise in done { XCTAssertEqual(try promise.wait(), .success(65536)) }
    XCTAssertEqual(try directory.contents().count, 32 << 16)
    try context.closeAndWait()
  }

  private func writeBlocks(
    _ context: AIOContext, _ file: AIOFile, _ count: Int
  ) throws -> [Promise<Outcome>] {
    try (0..<count).map { block in
      let promise = Promise<Outcome>()
      try context.write(file, at: Int64(block << 16), from: AIOBuffer(count: 65536)) {
        promise.fulfil($0)
      }
      return promise
    }
  }

  func testPermissions() throws {
    guard getuid() == 0 else { throw XCTSkip("only root can become somebody else") }
    let directory = try temporaryDirectory()
    let secret = try directory.makeFile("secret", size: 10)
    chmod(secret.string, 0o600)
    chmod(directory.path.string, 0o755)
    let probe = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["no-permission", directory.path.string])
    XCTAssertTrue(
      probe.output.hasPrefix("permissionDenied open of \(secret): Permission denied"),
      probe.output + probe.errors)
  }

  // MARK: The ring

  /// As many requests as the kernel has room for, one fewer, one more, twice and four times as
  /// many.
  func testMoreRequestsThanRoom() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 65536) { UInt8($0 / 512) }
    let file = try directory.open("file", .readOnly)
    for depth in [1, 2, 7, 32] {
      for count in [depth - 1, depth, depth + 1, depth * 2, depth * 4] {
        let context = try AIOContext(queueDepth: depth, pendingLimit: 4 * depth)
        let done = DispatchGroup()
        let seen = Locked([Int](repeating: 0, count: count))
        try context.queue.sync {
          for number in 0..<count {
            let buffer = AIOBuffer(count: 512)
            done.enter()
            try context.read(file, at: Int64(number % 128 * 512), into: buffer) { result in
              XCTAssertEqual(result, .success(512))
              XCTAssertEqual(buffer.array[0], UInt8(number % 128))
              seen.withLock { $0[number] += 1 }
              done.leave()
            }
          }
        }
        XCTAssertEqual(done.wait(timeout: .now() + 30), .success, "\(count) at depth \(depth)")
        XCTAssertEqual(seen.withLock { $0 }, [Int](repeating: 1, count: count))
        try context.closeAndWait()
      }
    }
  }

  /// `io_destroy` waits for what is in flight: a context that is closed has let nothing go.
  func testClosingWaitsForWhatIsInFlight() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 16)
    let file = try AIOFile.open(disk.path.appending("file"), .readWrite, options: .create)
    let context = try AIOContext(queueDepth: 8)
    _ = try context.writeAndWait(file, at: 0, from: AIOBuffer(count: 65536))
    let throttle = try Throttle(disk, readsPerSecond: 20)
    let completed = Locked(0)
    for block in 0..<8 {
      try context.read(file, at: Int64(block * 4096), into: AIOBuffer(count: 4096)) { _ in
        completed.withLock { $0 += 1 }
      }
    }
    let atClose = Promise<Int>()
    context.close { atClose.fulfil(completed.withLock { $0 }) }
    XCTAssertEqual(try atClose.wait(), 8)
    throttle.lift()
    let closed = Promise<Void>()
    file.close { closed.fulfil(()) }
    try closed.wait()
  }

  /// The kernel's own call, with nothing of ours in between.
  func testDestroyWaits() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 16)
    let path = disk.path.appending("file")
    let descriptor = open(path.string, O_RDWR | O_CREAT | ckernel_o_direct, 0o600)
    defer { close(descriptor) }
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 65536, alignment: 4096)
    defer { memory.deallocate() }
    memory.initializeMemory(as: UInt8.self, repeating: 9)
    XCTAssertEqual(pwrite(descriptor, memory.baseAddress, 65536, 0), 65536)
    fsync(descriptor)
    memory.initializeMemory(as: UInt8.self, repeating: 0)
    let throttle = try Throttle(disk, readsPerSecond: 4)
    var context: io_context_t?
    XCTAssertEqual(io_setup(4, &context), 0)
    let began = Date()
    for block in 0..<4 {
      var request = iocb()
      io_prep_pread(
        &request, descriptor, memory.baseAddress! + block * 4096, 4096, Int64(block * 4096))
      withUnsafeMutablePointer(to: &request) {
        var pointer: UnsafeMutablePointer<iocb>? = $0
        XCTAssertEqual(io_submit(context, 1, &pointer), 1)
      }
    }
    XCTAssertEqual(io_destroy(context), 0)
    XCTAssertTrue(memory[..<16384].allSatisfy { $0 == 9 }, "destroyed before the data was there")
    XCTAssertGreaterThan(Date().timeIntervalSince(began), 0.3)
    throttle.lift()
  }
}
