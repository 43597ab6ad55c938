// SPDX-License-Identifier: Apache-2.0

import CKernel
import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What is in the page cache is read in place, all of it or nothing, and nothing is waited for.
final class ReadNowTests: XCTestCase {
  private static let size = 1 << 20

  private func makeFile(
    _ directory: FilePath, size: Int = size, caching: AIOFile.Caching = .buffered
  ) throws -> AIOFile {
    let path = directory.appending("file")
    let file = try FileDescriptor.open(
      path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
    try file.closeAfter {
      _ = try file.writeAll(blockContents[..<size])
      fsync(file.rawValue)
    }
    return try AIOFile.open(path, .readWrite, caching: caching)
  }

  /// Which pages of a file are in the page cache: what mincore says.
  private func cachedPages(_ file: AIOFile, size: Int = size) throws -> [Bool] {
    let mapping = mmap(nil, size, PROT_READ, MAP_SHARED, file.fileDescriptor.rawValue, 0)
    guard let mapping, mapping != MAP_FAILED else { throw Errno(rawValue: errno) }
    defer { munmap(mapping, size) }
    var pages = [UInt8](repeating: 0, count: (size + 4095) / 4096)
    mincore(mapping, size, &pages)
    return pages.map { $0 & 1 != 0 }
  }

  /// Reads, and checks that what was read is right.
  private func read(
    _ file: AIOFile, at offset: Int, _ count: Int, line: UInt = #line
  ) throws -> Int? {
    let buffer = AIOBuffer(count: count, alignment: 8)
    guard let answer = try file.readNow(at: Int64(offset), into: buffer) else { return nil }
    let isEqual = buffer.withUnsafeBytes { bytes in
      answer == 0
        || blockContents.withUnsafeBytes {
          memcmp(bytes.baseAddress!, $0.baseAddress! + offset, answer) == 0
        }
    }
    XCTAssertTrue(isEqual, "\(answer) bytes at \(offset)", line: line)
    return answer
  }

  // MARK: What is cached

  /// Goal: of a file that is cached in part, exactly the reads of what is cached are answered, each
  /// with all of its bytes up to the end of the file. Method: any ranges, against mincore.
  func testAnyRange() throws {
    let directory = try temporaryDirectory()
    let size = Self.size - 1234
    for caching in [AIOFile.Caching.buffered, .automatic] {
      let file = try makeFile(directory.path, size: size, caching: caching)
      // Written in one piece it is cached in large ones, which are not evicted in part.
      try evict(file)
      let descriptor = file.fileDescriptor.rawValue
      posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM)
      var bytes = [UInt8](repeating: 0, count: 150_000)
      for offset in [65536, 300_000, 600_000, size - 100_000] {
        pread(descriptor, &bytes, bytes.count, offset)
      }
      let pages = try cachedPages(file, size: size)
      XCTAssertTrue(pages.contains(true) && pages.contains(false) && pages.last == true)
      var generator = SeededGenerator(seed: Seeds.one)
      var (answered, refused) = (0, 0)
      for _ in 0..<2000 {
        let offset = Int.random(in: 0..<size + 10_000, using: &generator)
        let count = Int.random(in: 0..<40_000, using: &generator)
        let end = min(offset + count, size)
        func isCached(_ pages: [Bool]) -> Bool {
          offset >= end || pages[offset / 4096...(end - 1) / 4096].allSatisfy { $0 }
        }
        let answer = try read(file, at: offset, count)
        let expected: Int? = isCached(pages) || count == 0 ? max(0, end - offset) : nil
        // The kernel may have needed the memory of a page since.
        if answer != expected, try answer != nil || isCached(cachedPages(file, size: size)) {
          XCTFail(
            "\(answer ?? -1), not \(expected ?? -1): \(count) at \(offset), "
              + Seeds.replay(Seeds.one))
        }
        if answer == nil { refused += 1 } else { answered += 1 }
      }
      XCTAssertGreaterThan(answered, 100)
      XCTAssertGreaterThan(refused, 100)
      let read = try zip(cachedPages(file, size: size), pages).contains { $0 && !$1 }
      XCTAssertFalse(read, "it began to read")
    }
  }

  /// Goal: what is refused is not read ahead either: to begin that is what may wait.
  func testARefusalReadsNothing() throws {
    let directory = try temporaryDirectory()
    let file = try makeFile(directory.path)
    try evict(file)
    for offset in stride(from: 0, to: Self.size, by: 4096) {
      XCTAssertNil(try read(file, at: offset, 8192))
    }
    XCTAssertNil(try read(file, at: 0, Self.size))
    XCTAssertFalse(try cachedPages(file).contains(true))
    // Read by the asynchronous way, it is there.
    let context = try AIOContext(queueDepth: 4)
    let buffer = AIOBuffer(count: 8192)
    XCTAssertEqual(try context.readAndWait(file, at: 0, into: buffer), .success(8192))
    XCTAssertEqual(try read(file, at: 0, 8192), 8192)
  }

  /// The end of the file is where it is now, not where it was when the file was opened.
  func testAFileThatGrowsAndShrinks() throws {
    let directory = try temporaryDirectory()
    let file = try makeFile(directory.path, size: 10_000)
    XCTAssertEqual(try read(file, at: 8000, 4000), 2000)
    XCTAssertEqual(
      pwrite(file.fileDescriptor.rawValue, Array(blockContents[10_000..<20_000]), 10_000, 10_000),
      10_000)
    XCTAssertEqual(try read(file, at: 8000, 4000), 4000)
    XCTAssertEqual(try read(file, at: 18_000, 4000), 2000)
    try file.truncate(to: 9000)
    XCTAssertEqual(try read(file, at: 8000, 4000), 1000)
    XCTAssertEqual(try read(file, at: 9000, 4000), 0)
  }

  func testMemoryFiles() throws {
    let directory = try TemporaryDirectory(in: "/dev/shm")
    for caching in [AIOFile.Caching.buffered, .direct, .automatic] {
      let file = try makeFile(directory.path, size: 10_000, caching: caching)
      guard file.file.traits.isMemory else { throw XCTSkip("/dev/shm is on no memory file system") }
      XCTAssertEqual(try read(file, at: 0, 10_000), 10_000)
      XCTAssertEqual(try read(file, at: 8000, 4000), 2000)
      XCTAssertEqual(try read(file, at: 10_000, 4000), 0)
      // A hole has no page.
      try file.truncate(to: 100_000)
      XCTAssertNil(try file.readNow(at: 50_000, into: AIOBuffer(count: 4096)))
    }
  }

  func testEveryKindOfMemory() throws {
    let directory = try temporaryDirectory()
    let file = try makeFile(directory.path)
    var unique = AIOUniqueBuffer(count: 4096)
    XCTAssertEqual(try file.readNow(at: 77, into: &unique, range: 1000..<2000), 1000)
    XCTAssertEqual(
      unique.withUnsafeBytes { Array($0[1000..<2000]) }, Array(blockContents[77..<1077]))
    XCTAssertEqual(unique.withUnsafeBytes { Array($0[..<1000]) }, Array(repeating: 0, count: 1000))
    XCTAssertEqual(try file.readNow(at: 0, into: &unique), 4096)
    var bytes = [UInt8](repeating: 0, count: 333)
    let count = try bytes.withUnsafeMutableBytes { try unsafe file.readNow(at: 5, into: $0) }
    XCTAssertEqual(count, 333)
    XCTAssertEqual(bytes, Array(blockContents[5..<338]))
  }

  // MARK: What is not

  /// A direct file does not look into the page cache.
  func testADirectFile() throws {
    let directory = try temporaryDirectory()
    let file = try makeFile(directory.path, caching: .direct)
    XCTAssertNil(try read(file, at: 0, 4096))
    XCTAssertNil(try read(file, at: 1, 1))
    XCTAssertEqual(try read(file, at: 1, 0), 0)
  }

  /// Goal: a file of FUSE is never asked, cached or not: its server may hang.
  func testAFileServedByAProcess() throws {
    let directory = try temporaryDirectory()
    let fault = try FaultFileSystem(in: directory)
    for name in ["plain", "hangread"] {
      let file = try AIOFile.open(fault[name], .readOnly, caching: .buffered)
      XCTAssertNil(try file.readNow(at: 0, into: AIOBuffer(count: 4096)))
      XCTAssertNil(try file.readNow(at: 1 << 30, into: AIOBuffer(count: 4096)))
    }
    XCTAssertEqual(fault.hanging, 0)
  }

  func testMisuse() throws {
    let directory = try temporaryDirectory()
    let file = try makeFile(directory.path)
    let buffer = AIOBuffer(count: 100)
    assertRefused(.invalidOffset) { try file.readNow(at: -1, into: buffer) }
    let error = assertRefused(.invalidOffset) { try file.readNow(at: .max - 99, into: buffer) }
    XCTAssertEqual(error?.operation, .read)
    XCTAssertEqual(error?.offset, .max - 99)
    XCTAssertEqual(error?.length, 100)
    XCTAssertEqual(try file.readNow(at: .max - 100, into: buffer), 0)
    let writeOnly = try AIOFile.open(
      directory.path.appending("file"), .writeOnly, caching: .buffered)
    assertRefused(.wrongAccessMode) { try writeOnly.readNow(at: 0, into: buffer) }
    file.close()
    assertRefused(.fileClosed) { try file.readNow(at: 0, into: buffer) }
    assertRefused(.fileClosed) { try file.readNow(at: 0, into: AIOBuffer(count: 0)) }
  }

  /// Goal: a file may be closed while other threads read: each read is of that file, or refused.
  func testClosingMeanwhile() throws {
    let directory = try temporaryDirectory()
    for _ in 0..<50 {
      let file = try makeFile(directory.path, size: 65536)
      onThreads(4) { thread in
        if thread == 0 { return file.close() }
        do throws(AIOError) {
          let buffer = AIOBuffer(count: 4096)
          while true {
            buffer.fill(0)
            guard try file.readNow(at: 4096, into: buffer) == 4096 else { continue }
            XCTAssertTrue(
              buffer.withUnsafeBytes { $0.elementsEqual(blockContents[4096..<8192]) })
          }
        } catch {
          XCTAssertEqual(error.code, .fileClosed)
        }
      }
      let closed = Promise<Void>()
      file.close { closed.fulfil(()) }
      try closed.wait()
    }
  }

  // MARK: System calls

  private func log(_ command: String) throws -> SystemCallLog {
    let directory = try temporaryDirectory()
    let log = try SystemCallLog(
      tracing: "all", ChildProcess.built("dispatch-aio-probe"),
      [command, directory.path.string], in: directory)
    XCTAssertEqual(log.run.status, 0, log.run.errors)
    XCTAssertEqual(
      log.run.output, "cached: 8192\nat-end: 100\nbeyond-end: 0\ndirect: nil\nevicted: nil\n")
    return log
  }

  /// Goal: one system call says that nothing is cached, a second one reads what is, and only to
  /// know the end of the file more are needed.
  func testSystemCalls() throws {
    let steps = try log("read-now").steps
    // strace may not know the name of cachestat, number 451.
    let asks = steps["evicted"]?.last ?? "nothing"
    XCTAssertTrue(["cachestat", "syscall_0x1c3"].contains(asks), asks)
    XCTAssertEqual(steps["cached"], [asks, "preadv2"])
    XCTAssertEqual(steps["at-end"]?.filter { $0 != asks && $0 != "preadv2" }.count, 1)
    XCTAssertEqual(steps["at-end"]?.count, 4)
    XCTAssertEqual(steps["beyond-end"]?.last, "preadv2")
    XCTAssertNil(steps["direct"])
  }

  /// Goal: where the kernel does not tell what is cached, the read is tried.
  func testAFileOfAnotherUser() throws {
    guard getuid() == 0 else { throw XCTSkip("only root can become another user") }
    let log = try log("read-now-others")
    let steps = log.steps
    guard log.calls.contains(where: { $0.contains("0x1c3") && $0.contains("EPERM") }) else {
      throw XCTSkip("this kernel tells everybody what is cached")
    }
    XCTAssertEqual(steps["cached"]?.last, "preadv2")
    XCTAssertEqual(steps["evicted"]?.last, "preadv2")
    XCTAssertNil(steps["direct"])
  }
}
