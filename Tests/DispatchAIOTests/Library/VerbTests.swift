// SPDX-License-Identifier: Apache-2.0

import Dispatch
import SystemPackage
import XCTest

@testable import DispatchAIO

/// The verbs on the real kernel: the right bytes at the right places.
final class VerbTests: XCTestCase {
  private static func pattern(_ offset: Int) -> UInt8 {
    UInt8(truncatingIfNeeded: offset &* 31 &+ offset >> 9)
  }

  func testReadsWhatIsThere() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 64 * 1024, byte: Self.pattern)
    for caching in [AIOFile.Caching.direct, .buffered] {
      let context = try AIOContext(queueDepth: 8)
      let file = try AIOFile.open(path, .readOnly, caching: caching)
      for block in [0, 7, 15] {
        let buffer = AIOBuffer(count: 4096)
        let offset = block * 4096
        XCTAssertEqual(
          try context.readAndWait(file, at: Int64(offset), into: buffer), .success(4096))
        XCTAssertEqual(buffer.array, (offset..<offset + 4096).map(Self.pattern))
      }
      try context.closeAndWait()
    }
  }

  func testWritesWhatIsAsked() throws {
    let directory = try temporaryDirectory()
    for caching in [AIOFile.Caching.direct, .buffered] {
      let context = try AIOContext(queueDepth: 8)
      let file = try directory.open(options: [.create, .truncate], caching: caching)
      let blocks = (0..<4).map { block in
        (0..<4096).map { Self.pattern(block * 4096 + $0) }
      }
      for block in [2, 0, 3, 1] {
        XCTAssertEqual(
          try context.writeAndWait(
            file, at: Int64(block * 4096), from: AIOBuffer(blocks[block])), .success(4096))
      }
      XCTAssertEqual(try directory.contents(), blocks.flatMap { $0 })
      XCTAssertEqual(try file.size(), 16384)
      try context.closeAndWait()
    }
  }

  func testVectoredReadAndWriteKeepTheOrderOfTheBuffers() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try directory.open()
    // Of different sizes, two of them slices of one buffer, one of them empty.
    let whole = AIOBuffer((0..<8192).map { Self.pattern($0 + 1000) })
    let parts = [
      AIOBuffer((0..<4096).map(Self.pattern)), whole[4096...], whole[..<4096],
      AIOBuffer(count: 0), AIOBuffer([UInt8](repeating: 9, count: 12288)),
    ]
    let expected = parts.flatMap(\.array)
    XCTAssertEqual(
      try context.outcome { try context.write(file, at: 4096, from: parts, completion: $0) },
      .success(expected.count))
    XCTAssertEqual(Array(try directory.contents()[4096...]), expected)

    let into = [AIOBuffer(count: 8192), AIOBuffer(count: 4096), AIOBuffer(count: 12288)]
    XCTAssertEqual(
      try context.outcome { try context.read(file, at: 4096, into: into, completion: $0) },
      .success(expected.count))
    XCTAssertEqual(into.flatMap(\.array), expected)
    try context.closeAndWait()
  }

  func testAsManyBuffersAsAllowed() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let file = try directory.open(caching: .buffered)
    let buffers = (0..<AIOContext.maximumBuffers).map { AIOBuffer([UInt8(truncatingIfNeeded: $0)]) }
    // Two at once, so that the vectors of a batch do not fit into one call.
    let done = (0..<2).map { _ in Promise<Outcome>() }
    for (index, promise) in done.enumerated() {
      try context.write(file, at: Int64(index * 1024), from: buffers) { promise.fulfil($0) }
    }
    for promise in done { XCTAssertEqual(try promise.wait(), .success(1024)) }
    let expected = (0..<1024).map { UInt8(truncatingIfNeeded: $0) }
    XCTAssertEqual(try directory.contents(), expected + expected)
    try context.closeAndWait()
  }

  func testMemoryOfTheCallers() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let file = try directory.open()
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 4096)
    defer { memory.deallocate() }
    for index in 0..<8192 { memory[index] = Self.pattern(index) }
    let bytes = [UInt8](memory)
    let halves = [
      UnsafeRawBufferPointer(rebasing: memory[..<4096]),
      UnsafeRawBufferPointer(rebasing: memory[4096...]),
    ]
    XCTAssertEqual(
      try context.outcome {
        try context.write(file, at: 0, from: UnsafeRawBufferPointer(memory), completion: $0)
      }, .success(8192))
    XCTAssertEqual(
      try context.outcome {
        try context.write(file, at: 8192, from: halves, completion: $0)
      }, .success(8192))
    XCTAssertEqual(try directory.contents(), bytes + bytes)

    memory.initializeMemory(as: UInt8.self, repeating: 0)
    XCTAssertEqual(
      try context.outcome { try context.read(file, at: 0, into: memory, completion: $0) },
      .success(8192))
    XCTAssertEqual([UInt8](memory), bytes)
    memory.initializeMemory(as: UInt8.self, repeating: 0)
    XCTAssertEqual(
      try context.outcome {
        try context.read(
          file, at: 8192, into: halves.map { UnsafeMutableRawBufferPointer(mutating: $0) },
          completion: $0)
      }, .success(8192))
    XCTAssertEqual([UInt8](memory), bytes)
    try context.closeAndWait()
  }

  func testSyncs() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let file = try directory.open()
    _ = try context.writeAndWait(file, at: 0, from: AIOBuffer(count: 4096))
    XCTAssertEqual(try context.outcome { try context.fsync(file, completion: $0) }, .success(0))
    XCTAssertEqual(try context.outcome { try context.fdatasync(file, completion: $0) }, .success(0))
    // A descriptor that cannot write can sync.
    let readOnly = try directory.open("file", .readOnly)
    XCTAssertEqual(try context.outcome { try context.fsync(readOnly, completion: $0) }, .success(0))
    try context.closeAndWait()
  }

  /// The request keeps its memory: here nobody else does.
  func testARequestKeepsItsBufferAndItsFile() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 1 << 20, byte: Self.pattern)
    let context = try AIOContext(queueDepth: 4, pendingLimit: 400)
    let done = DispatchGroup()
    for round in 0..<400 {
      done.enter()
      let file = try AIOFile.open(path, .readOnly)
      // The completion handler does not capture it, and neither does this loop.
      try context.read(file, at: Int64(round % 256 * 4096), into: AIOBuffer(count: 4096)) {
        XCTAssertEqual($0, .success(4096))
        done.leave()
      }
    }
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    try context.closeAndWait()
  }

  func testEndOfFile() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 10_000, byte: Self.pattern)
    for caching in [AIOFile.Caching.direct, .buffered] {
      let context = try AIOContext(queueDepth: 4)
      let file = try AIOFile.open(path, .readOnly, caching: caching)
      let buffer = AIOBuffer(count: 8192)
      // Across the end, a read is short, and need not be a multiple of the alignment.
      XCTAssertEqual(try context.readAndWait(file, at: 8192, into: buffer), .success(10_000 - 8192))
      XCTAssertEqual(buffer[..<1808].array, (8192..<10_000).map(Self.pattern))
      XCTAssertEqual(try context.readAndWait(file, at: 12288, into: buffer), .success(0))
      XCTAssertEqual(try context.readAndWait(file, at: 1 << 40, into: buffer), .success(0))
      try context.closeAndWait()
    }
  }

  func testNothingToMove() throws {
    let directory = try temporaryDirectory()
    for caching in [AIOFile.Caching.direct, .buffered] {
      let context = try AIOContext(queueDepth: 4)
      let file = try directory.open(options: [.create, .truncate], caching: caching)
      let empty = AIOBuffer(count: 0)
      XCTAssertEqual(try context.readAndWait(file, at: 0, into: empty), .success(0))
      XCTAssertEqual(try context.writeAndWait(file, at: 4096, from: empty), .success(0))
      for none in [[], [empty], [empty, empty]] {
        XCTAssertEqual(
          try context.outcome { try context.read(file, at: 0, into: none, completion: $0) },
          .success(0))
        XCTAssertEqual(
          try context.outcome { try context.write(file, at: 4096, from: none, completion: $0) },
          .success(0))
      }
      XCTAssertEqual(try file.size(), 0)
      try context.closeAndWait()
    }
  }
}
