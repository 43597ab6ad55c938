// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// What the kernel does inside `io_submit` although it was told not to wait: syncing what an
/// O_DSYNC file was written, and reading memory in that is not resident.
final class SynchronousTransferTests: XCTestCase {
  // MARK: O_DSYNC

  private func assertOffloaded(_ flag: Int32, _ name: String, line: UInt = #line) throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 320, type: "xfs")
    let file = try AIOFile.open(
      disk.path.appending("file"), .readWrite, options: [.create, .init(rawValue: flag)],
      caching: .buffered)
    let context = try AIOContext(queueDepth: 8)
    // Allocated, and in the page cache: a write of a file without the flag is done on the loop.
    let all = AIOBuffer(count: 1 << 20)
    XCTAssertEqual(try context.writeAndWait(file, at: 0, from: all), .success(1 << 20), line: line)
    let before = context.offloads
    let block = AIOBuffer(count: 4096)
    for index in 0..<20 {
      XCTAssertEqual(
        try context.writeAndWait(file, at: Int64(index * 4096), from: block), .success(4096),
        line: line)
    }
    XCTAssertEqual(
      context.offloads - before, 20,
      "of 20 \(name) writes, these were offloaded; longest submit of the loop: "
        + "\(context.statistics.longestSubmit)", line: line)
    try context.closeAndWait()
  }

  func testBufferedDataSyncWritesOnXFSAreOffloaded() throws {
    try assertOffloaded(O_DSYNC, "O_DSYNC")
  }

  func testBufferedSyncWritesOnXFSAreOffloaded() throws { try assertOffloaded(O_SYNC, "O_SYNC") }

  // MARK: Cut short

  /// A buffered write of whose pages the last has to be read first: the kernel does the others, and
  /// with NOWAIT stops there (8092 of 8192 bytes, seen with `pwritev2`).
  private func assertFinished(
    line: UInt = #line,
    _ write: (AIOContext, AIOFile, AIOBuffer, @escaping AIOCompletion) throws -> Void
  ) throws {
    try requireKernelAIO("a thread makes the write, which the kernel does not cut short")
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 320, type: "xfs")
    let path = disk.path.appending("file")
    try Data(repeating: 1, count: 65536).write(to: URL(fileURLWithPath: path.string))
    let context = try AIOContext(queueDepth: 8)
    let buffer = AIOBuffer([UInt8](repeating: 2, count: 8192))
    let expected =
      [UInt8](repeating: 1, count: 100) + [UInt8](repeating: 2, count: 8192)
      + [UInt8](repeating: 1, count: 65536 - 8292)
    // It is refused whole if the time of the last write has to be set: it follows another write
    // within a tick of the clock, at one of the attempts.
    let isCutShort = try eventually {
      // Nothing is known of what it refuses.
      let file = try AIOFile.open(path, .readWrite, caching: .buffered)
      let descriptor = file.fileDescriptor.rawValue
      posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM)
      try evict(file)
      // The first page is there.
      var page = [UInt8](repeating: 0, count: 4096)
      XCTAssertEqual(pread(descriptor, &page, 4096, 0), 4096, line: line)
      XCTAssertEqual(pwrite(descriptor, &page, 1, 0), 1, line: line)
      let outcome = try context.outcome { try write(context, file, buffer, $0) }
      XCTAssertEqual(outcome, .success(8192), line: line)
      XCTAssertEqual(try directory.contents("disk/file"), expected, line: line)
      context.queue.sync { _ = context.process() }
      return context.statistics.continuations > 0
    }
    XCTAssertTrue(isCutShort, "it is not cut short: \(context.statistics)", line: line)
    try context.closeAndWait()
  }

  func testABufferedWriteThatIsCutShortIsFinished() throws {
    try assertFinished { try $0.write($1, at: 100, from: $2, completion: $3) }
  }

  func testAVectoredBufferedWriteThatIsCutShortIsFinished() throws {
    try assertFinished { context, file, buffer, completion in
      try context.write(
        file, at: 100, from: [buffer[..<5], buffer[5..<8100], buffer[8100...]],
        completion: completion)
    }
  }

  // MARK: Memory that is not resident

  /// 64 pages of a file on a slow disk, mapped, none of them read yet.
  private final class ColdMapping {
    static let size = 64 * 4096
    let bytes: UnsafeMutableRawBufferPointer
    private let disk: SmallDisk
    private let throttle: Throttle

    init(in directory: TemporaryDirectory) throws {
      disk = try SmallDisk(in: directory, megabytes: 16)
      let descriptor = try FileDescriptor.open(
        disk.path.appending("mapped"), .readWrite, options: .create, permissions: .ownerReadWrite)
      defer { try? descriptor.close() }
      _ = try descriptor.writeAll([UInt8](repeating: 7, count: Self.size))
      try evict(descriptor.rawValue, size: Self.size)
      let address = mmap(
        nil, Self.size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.rawValue, 0)
      guard let address, address != MAP_FAILED else { throw Errno(rawValue: errno) }
      bytes = UnsafeMutableRawBufferPointer(start: address, count: Self.size)
      madvise(address, Self.size, MADV_RANDOM)
      throttle = try Throttle(disk, readsPerSecond: 100)
    }

    deinit {
      throttle.lift()
      munmap(bytes.baseAddress, Self.size)
    }
  }

  /// A request with memory that is read in page by page: 64 pages at 100 a second.
  private func assertColdMemoryDoesNotHoldTheLoop(
    _ caching: AIOFile.Caching, line: UInt = #line,
    _ request: (AIOContext, AIOFile, UnsafeMutableRawBufferPointer, @escaping AIOCompletion) throws
      -> Void
  ) throws {
    let directory = try temporaryDirectory()
    let mapping = try ColdMapping(in: directory)
    let path = try directory.makeFile(size: ColdMapping.size) { _ in 9 }
    let file = try AIOFile.open(path, .readWrite, caching: caching)
    let context = try AIOContext(queueDepth: 8)
    // Its blocks are written, and in the page cache exactly where they are read from there: the
    // kernel could do the request at once, if the memory were not cold.
    if caching == .direct { try evict(file) }
    let lateness = try Lateness(on: context.queue)
    let outcome = try context.outcome { try request(context, file, mapping.bytes, $0) }
    XCTAssertEqual(outcome, .success(ColdMapping.size), line: line)
    assertLate(lateness.stop(), lessThan: 50, "64 cold pages of the caller's memory", line: line)
    try context.closeAndWait()
  }

  func testDirectWritesFromColdMemory() throws {
    try assertColdMemoryDoesNotHoldTheLoop(.direct) {
      try $0.write($1, at: 0, from: UnsafeRawBufferPointer($2), completion: $3)
    }
  }

  func testBufferedReadsIntoColdMemory() throws {
    try assertColdMemoryDoesNotHoldTheLoop(.buffered) {
      try $0.read($1, at: 0, into: $2, completion: $3)
    }
  }

  func testVectoredDirectReadsIntoColdMemory() throws {
    try assertColdMemoryDoesNotHoldTheLoop(.direct) { context, file, bytes, completion in
      let halves = [0..<bytes.count / 2, bytes.count / 2..<bytes.count].map {
        UnsafeMutableRawBufferPointer(rebasing: bytes[$0])
      }
      try context.read(file, at: 0, into: halves, completion: completion)
    }
  }
}
