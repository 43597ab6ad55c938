// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Numbers near the largest there are, from callers and from files: each is an error, or works;
/// none traps.
final class OverflowTests: XCTestCase {
  private func assertThrows<Value>(
    _ code: AIOError.Code, line: UInt = #line, _ body: () async throws(AIOError) -> Value
  ) async {
    do throws(AIOError) {
      _ = try await body()
      XCTFail("not refused", line: line)
    } catch {
      XCTAssertEqual(error.code, code, "\(error)", line: line)
    }
  }

  func testPreallocation() throws {
    let directory = try temporaryDirectory()
    let file = try directory.open()
    for range in [-10..<Int64.max, Int64.min..<Int64.max, Int64.min..<0, -1 ..< -1] {
      assertRefused(.invalidOffset) { try file.preallocate(range) }
    }
    // An empty range is nothing to take room for, wherever it is.
    try file.preallocate(Int64.max..<Int64.max)
    XCTAssertEqual(try file.size(), 0)
  }

  func testChunks() async throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 8192)
    let context = try AIOContext(queueDepth: 2)
    for caching in [AIOFile.Caching.direct, .buffered] {
      let file = try directory.open(caching: caching)
      for range in [-4096..<Int64.max, Int64.min..<Int64.max, Int64.min..<0, -4096..<4096] {
        var chunks = context.chunks(of: file, range: range).makeAsyncIterator()
        await assertThrows(.invalidOffset) { () throws(AIOError) in try await chunks.next() }
        let end = try await chunks.next()
        XCTAssertNil(end?.count)
      }
      // An end past every file's is the file's end.
      var count = 0
      for try await chunk in context.chunks(of: file, readAhead: 2, range: 4096..<Int64.max) {
        count += chunk.count
      }
      XCTAssertEqual(count, 4096)
      await file.close()
    }
    await context.close()
  }

  /// A file as long as a file can be, which tmpfs has.
  func testTheLargestFile() async throws {
    guard let directory = try? TemporaryDirectory(in: "/dev/shm"), let file = try? directory.open(),
      (try? await file.truncate(to: .max)) != nil
    else { throw XCTSkip("/dev/shm does not hold a file of 2^63 - 1 bytes") }
    let size = try await file.size()
    XCTAssertEqual(size, .max)
    let context = try AIOContext(queueDepth: 4)
    for start in [size - 1, size - 4095, size - 4096, size - 4097, size - 10_000] {
      var count: Int64 = 0
      for try await chunk in context.chunks(of: file, size: 4096, range: start..<Int64.max) {
        count += Int64(chunk.count)
      }
      XCTAssertEqual(count, size - start)
    }
    // Reads that reach past the largest offset, and writers that begin near it.
    var buffer = AIOUniqueBuffer(count: 4096)
    await assertThrows(.invalidOffset) { () throws(AIOError) in
      try await context.read(file, at: size - 4095, into: &buffer)
    }
    let last = try await context.read(file, at: size - 4096, into: &buffer)
    XCTAssertEqual(last, 4096)
    var writer = AIOFileWriter(file, on: context, blockSize: 4096)
    try await writer.skip(size - 100)
    XCTAssertEqual(writer.count, size - 100)
    try await writer.write([UInt8](repeating: 1, count: 99))
    do throws(AIOError) {
      try await writer.write([1, 2])
      XCTFail("a file of 2^63 bytes")
    } catch {
      XCTAssertEqual(error.code, .invalidOffset)
    }
    let end = await writer.finishCode()
    XCTAssertEqual(end, .invalidOffset)
    await context.close()
  }

  /// The same where offsets have to be multiples of 512: the last part of a block has no end.
  func testTheLargestFileOnADisk() async throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 320, type: "xfs")
    let file = try await AIOFile.open(disk.path.appending("file"), .readWrite, options: .create)
    try await file.truncate(to: .max)
    let context = try AIOContext(queueDepth: 4)
    let start = file.alignment.roundDown(Int.max) - 3 * 4096
    var chunks = context.chunks(of: file, size: 4096, range: Int64(start)..<Int64.max)
      .makeAsyncIterator()
    for _ in 0..<3 {
      let chunk = try await chunks.next()
      XCTAssertEqual(chunk?.count, 4096)
    }
    await assertThrows(.invalidOffset) { () throws(AIOError) in try await chunks.next() }
    await context.close()
    await file.close()
  }

  func testSkipping() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 2)
    for caching in [AIOFile.Caching.direct, .buffered] {
      for counts in [[Int64.max, .max], [.max, 1], [1, .max], [.max - 5, 6], [-1], [.min]] {
        let file = try directory.open(caching: caching)
        var writer = AIOFileWriter(file, on: context)
        for count in counts.dropLast() { try await writer.skip(count) }
        do throws(AIOError) {
          try await writer.skip(counts[counts.count - 1])
          XCTFail("\(counts)")
        } catch {
          XCTAssertEqual(error.code, .invalidOffset, "\(counts) \(error)")
        }
        XCTAssertEqual(writer.count, counts.dropLast().first ?? 0)
        let end = await writer.finishCode()
        XCTAssertEqual(end, .invalidOffset)
        await file.close()
      }
    }
    await context.close()
  }

  func testRounding() {
    for unit in [1, 512, 4096, 1 << 20, 1 << 62] {
      let alignment = BlockAlignment(memory: 1, offset: unit)
      let last = Int.max - (unit - 1)
      XCTAssertEqual(alignment.roundUp(last), last, "\(unit)")
      XCTAssertEqual(alignment.roundUp(last - 1), unit == 1 ? last - 1 : last, "\(unit)")
      XCTAssertEqual(alignment.roundUp(.max), .max, "\(unit)")
      XCTAssertEqual(alignment.roundDown(.max), last, "\(unit)")
      XCTAssertEqual(alignment.roundDown(.min), .min, "\(unit)")
      XCTAssertEqual(alignment.roundUp(-1), unit == 1 ? -1 : 0, "\(unit)")
    }
  }
}
