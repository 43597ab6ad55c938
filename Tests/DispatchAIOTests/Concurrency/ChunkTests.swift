// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import XCTest

/// Files as sequences of chunks, and the writer.
final class ChunkTests: XCTestCase {
  private func byte(_ index: Int) -> UInt8 { UInt8(truncatingIfNeeded: index / 7 &+ index) }

  /// Every size, every way, comes out as it went in: the five lines of the README.
  func testCopies() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    for size in [0, 1, 511, 512, 513, 4096, 4097, 65536, 300_001] {
      for (from, to) in [(AIOFile.Caching.direct, AIOFile.Caching.direct), (.buffered, .direct)]
        + [(.direct, .buffered)]
      {
        _ = try directory.makeFile("source", size: size, byte: byte)
        let source = try directory.open("source", .readOnly, options: [], caching: from)
        // What was there before does not matter.
        _ = try directory.makeFile("copy", size: 100_000) { _ in 9 }
        let copy = try directory.open("copy", .readWrite, caching: to)
        if size > 5000 {
          try await self.copy(source, to: copy, on: context)
        } else {
          // In small pieces.
          var writer = AIOFileWriter(copy, on: context, blockSize: 8192, inFlight: 3)
          for try await chunk in context.chunks(of: source, size: 512, readAhead: 3) {
            try await writer.write(chunk)
          }
          try await writer.finish()
        }
        let written = try await copy.size()
        XCTAssertEqual(written, Int64(size), "\(size) \(from) \(to)")
        XCTAssertTrue(
          try directory.contents("copy") == (0..<size).map(byte), "\(size) \(from) \(to)")
        await source.close()
        await copy.close()
      }
    }
    await context.close()
  }

  private func copy(_ source: AIOFile, to copy: AIOFile, on context: AIOContext) async throws {
    // As in the README, which has these lines.
    var writer = AIOFileWriter(copy, on: context)
    for try await chunk in context.chunks(of: source) {
      try await writer.write(chunk)
    }
    try await writer.finish()
  }

  /// Pieces of any size, and holes.
  func testPiecesAndHoles() async throws {
    var generator = SeededGenerator(seed: Seeds.one)
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    for round in 0..<20 {
      var expected: [UInt8] = []
      let file = try directory.open("file\(round)")
      var writer = AIOFileWriter(file, on: context, blockSize: 4096, inFlight: 2)
      for _ in 0..<Int.random(in: 0...20, using: &generator) {
        let count = Int.random(in: 0...9000, using: &generator)
        if Bool.random(using: &generator) {
          let piece = (0..<count).map { byte(expected.count + $0) }
          try await writer.write(piece)
          expected += piece
        } else {
          try await writer.skip(Int64(count))
          expected += [UInt8](repeating: 0, count: count)
        }
      }
      XCTAssertEqual(writer.count, Int64(expected.count))
      try await writer.finish()
      XCTAssertTrue(
        try directory.contents("file\(round)") == expected,
        "round \(round), \(Seeds.replay(Seeds.one))")
    }
    await context.close()
  }

  /// An iteration that is left releases its file and its requests.
  func testADroppedIteration() async throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 1 << 20, byte: byte)
    // Room for one request: the others of the read-ahead wait in line when it is left.
    let context = try AIOContext(queueDepth: 1, pendingLimit: 0)
    weak var released: AIOFile?
    do {
      let file = try directory.open("file", .readOnly, options: [])
      released = file
      for try await chunk in context.chunks(of: file, size: 4096, readAhead: 8) {
        XCTAssertEqual(chunk.array[0], byte(0))
        break
      }
      await file.close()
    }
    XCTAssertNil(released)
    await context.close()
    let statistics = context.statistics
    XCTAssertEqual(
      statistics.accepted, statistics.succeeded + statistics.cancelled + statistics.failed)
  }

  /// The chunks of a file that shrinks meanwhile end where it does; what came before is whole.
  func testAFileThatShrinks() async throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 1 << 20, byte: byte)
    let context = try AIOContext(queueDepth: 2)
    let file = try directory.open()
    var count = 0
    for try await chunk in context.chunks(of: file, size: 8192, readAhead: 2) {
      if count == 0 { try await file.truncate(to: 500_000) }
      XCTAssertTrue(chunk.array == (count..<count + chunk.count).map(byte))
      count += chunk.count
    }
    XCTAssertEqual(count, 500_000)
    await context.close()
  }

  func testErrorsComeInOrder() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 2)
    let appending = try directory.open("append", .readWrite, options: [.create, .append])
    var writer = AIOFileWriter(appending, on: context)
    do {
      try await writer.write([1, 2, 3])
      XCTFail("not refused")
    } catch {
      XCTAssertEqual(error.code, .wrongAccessMode)
    }
    let unreadable = try directory.open("append", .writeOnly, options: [])
    do {
      for try await _ in context.chunks(of: unreadable) { XCTFail("a chunk") }
      XCTFail("not refused")
    } catch {
      XCTAssertEqual(error.code, .wrongAccessMode)
    }
    await context.close()
  }

  /// Goal: what is wrong with the arguments, or with the file of a writer, is told by the first
  /// call, and before anything is read or written.
  func testBadArgumentsAreToldAtOnce() async throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 8192, byte: byte)
    let context = try AIOContext(queueDepth: 2)
    let direct = try directory.open("file", .readOnly, options: [])
    if direct.alignment.offset > 1 {
      do {
        for try await _ in context.chunks(of: direct, size: 1000) { XCTFail("a chunk") }
        XCTFail("not refused")
      } catch {
        XCTAssertEqual(error.code, .misaligned)
        XCTAssertTrue("\(error)".contains("a chunk of 1000 bytes is no multiple of"), "\(error)")
      }
    }
    let buffered = try directory.open("file", .readOnly, options: [], caching: .buffered)
    for file in [direct, buffered] {
      var writer = AIOFileWriter(file, on: context)
      do {
        try await writer.write([1])
        XCTFail("not refused")
      } catch {
        XCTAssertEqual(error.code, .wrongAccessMode)
      }
    }
    // More memory than there is: an error, after nothing. (A sanitizer ends the process.)
    if !Sanitizer.isBuiltIn {
      do {
        for try await _ in context.chunks(of: buffered, size: .max) { XCTFail("a chunk") }
        XCTFail("not refused")
      } catch {
        XCTAssertEqual(error.errno, .noMemory)
        XCTAssertTrue("\(error)".contains("ask for less at a time"), "\(error)")
      }
    }
    await context.close()
    XCTAssertEqual(context.statistics.accepted, 0)
  }

  /// Goal: a small file costs one read, and a read-ahead no more than the file has, or the context
  /// works on; and what the file gets meanwhile is read all the same.
  func testReadAheadEndsWithTheFile() async throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 4096, byte: byte)
    let file = try directory.open("file", caching: .buffered)
    // The second finds a whole chunk, and then the end.
    for (size, readAhead, requests) in [(1 << 20, 4, 1), (4096, .max, 2)] {
      let context = try AIOContext(queueDepth: 4)
      var count = 0
      for try await chunk in context.chunks(of: file, size: size, readAhead: readAhead) {
        count += chunk.count
      }
      XCTAssertEqual(count, 4096)
      await context.close()
      XCTAssertEqual(context.statistics.accepted, requests)
    }
    let context = try AIOContext(queueDepth: 4)
    for try await chunk in context.chunks(of: file, size: .max, range: 5..<15) {
      XCTAssertEqual(chunk.array, (5..<15).map(byte))
    }
    // The file grows behind the end that it had at first.
    var chunks = 0
    for try await chunk in context.chunks(of: file, size: 512, readAhead: 3) {
      if chunks == 0 {
        _ = try await context.write(file, contentsOf: AIOBuffer(count: 4096), at: 4096)
      }
      XCTAssertEqual(chunk.count, 512)
      chunks += 1
    }
    XCTAssertEqual(chunks, 16)
    await context.close()
  }

  /// Once `finish` has thrown, nothing is written any more.
  func testAFailedFinishHasWaited() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try directory.open("file", .readWrite, caching: .direct)
    let held = try await Task {
      var buffers = (0..<6).map { _ in AIOBuffer(count: 4 << 20) }
      var writer = AIOFileWriter(file, on: context, inFlight: 8)
      for buffer in buffers { try await writer.write(buffer) }
      withUnsafeCurrentTask { $0?.cancel() }
      try await writer.write([1, 2, 3])
      do throws(AIOError) {
        try await writer.finish()
        XCTFail("finished, although cancelled")
      } catch {
        XCTAssertEqual(error.code, .cancelled)
      }
      var held = 0
      while let buffer = buffers.popLast() {
        let taken = AIOUniqueBuffer(consume buffer)
        if taken == nil { held += 1 }
      }
      return held
    }.value
    XCTAssertEqual(held, 0, "written still")
    await context.close()
  }

  /// Goal: once its task has been cancelled, a stream makes no further request, and those that wait
  /// behind the one in the kernel are taken back. Method: while the queue is held, the kernel has
  /// the first read, and the task is cancelled; then what went to the kernel is counted.
  func testACancelledStreamSubmitsNoMore() async throws {
    try requireKernelAIO("no read is in the kernel")
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 64 * 4096, byte: byte)
    for readAhead in [1, 2, 8] {
      var isCaught = false
      for _ in 0..<50 where !isCaught {
        let context = try AIOContext(queueDepth: 1)
        let file = try directory.open("file", .readOnly, options: [])
        let chunks = context.chunks(of: file, size: 4096, readAhead: readAhead)
        let (held, begin) = (Promise<Void>(), DispatchSemaphore(value: 0))
        let submitted = Promise<Int?>()
        let task = Locked<Task<Int, any Error>?>(nil)
        context.queue.async {
          held.fulfil(())
          begin.wait()
          XCTAssertTrue(
            eventually {
              context.process()
              return context.statistics.accepted >= readAhead
            })
          let statistics = context.statistics
          task.withLock { $0?.cancel() }
          // Else the disk was faster than the loop.
          let isFirst = statistics.inKernel == 1 && statistics.succeeded == 0
          submitted.fulfil(isFirst ? statistics.submittedRequests : nil)
        }
        try held.wait()
        let reader = Task {
          var count = 0
          do {
            for try await _ in chunks { count += 1 }
            XCTFail("not cancelled")
          } catch let error as AIOError {
            XCTAssertEqual(error.code, .cancelled)
          }
          return count
        }
        task.withLock { $0 = reader }
        begin.signal()
        let before = try submitted.wait()
        let count = try await reader.value
        await context.close()
        guard let before else { continue }
        isCaught = true
        XCTAssertEqual(count, 1, "the chunk that the kernel was reading")
        XCTAssertEqual(
          context.statistics.submittedRequests, before,
          "more reads, of a read-ahead of \(readAhead)"
        )
      }
      XCTAssertTrue(isCaught, "no read was ever in the kernel while the queue was held")
    }
  }
}
