// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Reads and writes of any offset and length, also where the file needs both aligned.
final class RangeTests: XCTestCase {
  private typealias Bytes = Result<AIOBuffer, AIOError>
  private static let size = (1 << 20) - 1234

  private func makeFile(
    _ directory: TemporaryDirectory, size: Int = size, _ caching: AIOFile.Caching = .direct,
    _ mode: FileDescriptor.AccessMode = .readWrite, options: FileDescriptor.OpenOptions = []
  ) throws -> AIOFile {
    let path = directory.path.appending("file")
    let file = try FileDescriptor.open(
      path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
    try file.closeAfter {
      _ = try file.writeAll(blockContents[..<size])
      fsync(file.rawValue)
    }
    return try AIOFile.open(path, mode, options: options, caching: caching)
  }

  private func read(
    _ context: AIOContext, _ file: AIOFile, from offset: Int64, count: Int
  ) throws -> Bytes {
    let promise = Promise<Bytes>()
    try context.read(file, from: offset, count: count) { promise.fulfil($0) }
    return try promise.wait()
  }

  private func write(
    _ context: AIOContext, _ file: AIOFile, _ buffers: [AIOBuffer], at offset: Int64
  ) throws -> Outcome {
    try context.outcome {
      if buffers.count == 1 {
        try context.write(file, contentsOf: buffers[0], at: offset, completion: $0)
      } else {
        try context.write(file, contentsOf: buffers, at: offset, completion: $0)
      }
    }
  }

  // MARK: Reads

  /// Goal: any range is answered with its bytes, up to the end of the file. Method: a hundred at a
  /// time, of each kind of file.
  func testReads() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 16)
    for caching in [AIOFile.Caching.direct, .buffered, .automatic] {
      let file = try makeFile(directory, caching)
      var generator = SeededGenerator(seed: Seeds.one)
      let group = DispatchGroup()
      for number in 0..<1000 {
        let offset = Int.random(in: 0..<Self.size + 10_000, using: &generator)
        let count = Int.random(in: 0..<(number % 10 == 0 ? 300_000 : 9000), using: &generator)
        group.enter()
        try context.read(file, from: Int64(offset), count: count) { result in
          let end = min(offset + count, Self.size)
          let expected = offset < end ? blockContents[offset..<end] : []
          do {
            let buffer = try result.get()
            let isEqual = buffer.withUnsafeBytes { bytes in
              expected.withUnsafeBytes {
                bytes.count == $0.count
                  && (bytes.isEmpty
                    || memcmp(bytes.baseAddress!, $0.baseAddress!, bytes.count) == 0)
              }
            }
            XCTAssertTrue(isEqual, "\(count) at \(offset), \(Seeds.replay(Seeds.one))")
          } catch {
            XCTFail("\(error)")
          }
          group.leave()
        }
      }
      XCTAssertEqual(group.wait(timeout: .now() + 120), .success)
    }
  }

  /// Goal: what is handed out is where the disk has put it, and one request was made.
  func testNothingIsCopied() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let file = try makeFile(directory)
    let unit = file.alignment.offset
    for (offset, count) in [(1, 1), (100, 5000), (4095, 2), (70_001, 33_333)] {
      let before = context.statistics.accepted
      let buffer = try read(context, file, from: Int64(offset), count: count).get()
      let address = unsafe buffer.withUnsafeBytes { Int(bitPattern: $0.baseAddress) }
      XCTAssertEqual((address - offset % unit) % 4096, 0)
      context.queue.sync { _ = context.process() }
      XCTAssertEqual(context.statistics.accepted - before, 1)
    }
  }

  func testAsync() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let file = try makeFile(directory)
    let buffer = try await context.read(file, from: 12_345, count: 6789)
    XCTAssertEqual(buffer.array, Array(blockContents[12_345..<12_345 + 6789]))
    let end = try await context.read(file, from: Int64(Self.size - 10), count: 100)
    XCTAssertEqual(end.array, Array(blockContents[Self.size - 10..<Self.size]))
    let none = try await context.read(file, from: 1 << 40, count: 100)
    XCTAssertEqual(none.count, 0)
    try await context.write(file, contentsOf: buffer, at: 77)
    try await context.write(file, contentsOf: [buffer[..<5], buffer[100..<103]], at: 200_001)
    let both = try await context.read(file, from: 77, count: 6789)
    XCTAssertEqual(both.array, buffer.array)
    let pieces = try await context.read(file, from: 200_001, count: 8)
    XCTAssertEqual(pieces.array, buffer[..<5].array + buffer[100..<103].array)
    do {
      _ = try await context.read(file, from: -5, count: 100)
      XCTFail("not refused")
    } catch {
      XCTAssertEqual(error.code, .invalidOffset)
    }
    await context.close()
    do {
      _ = try await context.read(file, from: 5, count: 100)
      XCTFail("not refused")
    } catch {
      XCTAssertEqual(
        [error.code == .contextClosed, error.offset == 5, error.length == 100], [true, true, true])
    }
  }

  // MARK: The pool

  /// Goal: memory is reused once its last reference is gone, a slice of a slice included.
  func testMemoryIsReused() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let file = try makeFile(directory)
    func address(_ buffer: AIOBuffer) -> Int {
      unsafe buffer.withUnsafeBytes { Int(bitPattern: $0.baseAddress) } & ~4095
    }
    var first: AIOBuffer? = try read(context, file, from: 1, count: 100).get()
    var slice = first.map { $0[10..<20][2..<4] }
    let reused = address(first!)
    first = nil
    XCTAssertNotEqual(try address(read(context, file, from: 1, count: 100).get()), reused)
    XCTAssertEqual(slice!.array, Array(blockContents[13..<15]))
    slice = nil
    XCTAssertTrue(eventually { context.memoryPool.freeBytes == 2 * 4096 })
    let two = try [
      read(context, file, from: 5, count: 100).get(), read(context, file, from: 6, count: 9).get(),
    ]
    XCTAssertTrue(two.map(address).contains(reused))
    XCTAssertEqual(context.memoryPool.freeBytes, 0)
  }

  /// Goal: any number may be in use, a bounded number of bytes is kept, and what is not kept, or
  /// outlives the context, is freed.
  func testTheBoundOfThePool() throws {
    let pool = MemoryPool(limit: 64 << 10)
    var held: [BufferStorage] = []
    for count in [0, 1, 4096, 4097, 60_000, 65_536, 65_537, 4 << 20, (4 << 20) + 1] {
      let piece = try XCTUnwrap(pool.take(count))
      XCTAssertGreaterThanOrEqual(piece.count, max(count, 1))
      XCTAssertLessThanOrEqual(piece.count, max(4096, 2 * count))
      held.append(BufferStorage(piece, of: pool))
    }
    XCTAssertEqual(pool.freeBytes, 0)
    held = []
    XCTAssertGreaterThan(pool.freeBytes, 0)
    XCTAssertLessThanOrEqual(pool.freeBytes, 64 << 10)
    // A sanitizer ends a process that asks for too much memory.
    if !Sanitizer.isBuiltIn { XCTAssertNil(pool.take(.max)) }
    let directory = try temporaryDirectory()
    var context: AIOContext? = try AIOContext(queueDepth: 4)
    let buffer = try read(context!, makeFile(directory), from: 3, count: 10).get()
    context = nil
    XCTAssertEqual(buffer.array, Array(blockContents[3..<13]))
  }

  // MARK: Writes

  /// Goal: writes and reads of any range, and aligned ones between, leave exactly the bytes, and
  /// the size, that a model has. Method: one after the other, of each kind of file.
  func testWritesAgainstAModel() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    for caching in [AIOFile.Caching.direct, .buffered, .automatic] {
      let file = try makeFile(directory, size: 30_000, caching)
      var model = Array(blockContents[..<30_000])
      var generator = SeededGenerator(seed: Seeds.one)
      func put(_ bytes: [UInt8], at offset: Int) {
        model += Array(repeating: 0, count: max(0, offset + bytes.count - model.count))
        model.replaceSubrange(offset..<offset + bytes.count, with: bytes)
      }
      for step in 0..<300 {
        let offset = Int.random(in: 0..<model.count + 600, using: &generator)
        let count = Int.random(in: 0..<3000, using: &generator)
        let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
        switch step % 4 {
        case 0:
          let result = try read(context, file, from: Int64(offset), count: count)
          let end = min(offset + count, model.count)
          XCTAssertEqual(
            try result.get().array, offset < end ? Array(model[offset..<end]) : [],
            "step \(step), \(Seeds.replay(Seeds.one))")
        case 1:
          let block = Array(blockContents[offset..<offset + 4096])
          let start = offset / 4096 * 4096
          XCTAssertEqual(
            try context.writeAndWait(file, at: Int64(start), from: AIOBuffer(block)),
            .success(4096))
          put(block, at: start)
        default:
          let cut = count / 3
          let buffers = [
            AIOBuffer(Array(bytes[..<cut]), alignment: 8),
            AIOBuffer(Array(bytes[cut...]), alignment: 8),
          ]
          XCTAssertEqual(
            try write(context, file, buffers, at: Int64(offset)), .success(count))
          if count > 0 { put(bytes, at: offset) }
        }
        XCTAssertEqual(try file.size(), Int64(model.count), "step \(step)")
      }
      XCTAssertEqual(try directory.contents(), model)
    }
  }

  /// Goal: writes under way together, within one block and over the end of the file, change no byte
  /// but their own, from two contexts, and the size is right. Method: each byte of the file belongs
  /// to one write; all are made at once, in any order, over and over.
  func testWritesOfOneBlockAtOnce() throws {
    let directory = try temporaryDirectory()
    let contexts = try [AIOContext(queueDepth: 16), AIOContext(queueDepth: 16)]
    var generator = SeededGenerator(seed: Seeds.one)
    for round in 0..<10 {
      let file = try makeFile(directory, size: 5000)
      var ranges: [Range<Int>] = []
      var offset = 0
      while offset < 20_000 {
        let end = offset + Int.random(in: 1..<700, using: &generator)
        ranges.append(offset..<end)
        offset = end
      }
      let group = DispatchGroup()
      for (number, range) in ranges.shuffled(using: &generator).enumerated() {
        group.enter()
        let bytes = blockContents[(range.lowerBound + 1_000_000)..<(range.upperBound + 1_000_000)]
        try contexts[number % 2].write(
          file, contentsOf: AIOBuffer(Array(bytes)), at: Int64(range.lowerBound)
        ) {
          XCTAssertEqual($0, .success(range.count))
          group.leave()
        }
      }
      XCTAssertEqual(group.wait(timeout: .now() + 120), .success)
      XCTAssertEqual(try file.size(), Int64(offset))
      XCTAssertEqual(
        try directory.contents(), Array(blockContents[1_000_000..<1_000_000 + offset]),
        "round \(round), \(Seeds.replay(Seeds.one))")
    }
  }

  /// Goal: whole blocks go past the page cache, and one after the other with what does not.
  func testTheWayOfWrites() throws {
    let directory = try temporaryDirectory()
    let file = try makeFile(directory).file
    let unit = file.traits.alignment.offset
    func way(_ file: OpenFile, _ offset: Int, _ buffers: [AIOBuffer]) -> AnyRangeWrite? {
      Operation.write(from: .buffers(buffers)).anyRangeWrite(file, Int64(offset))
    }
    let (whole, part) = (AIOBuffer(count: 4 * unit), AIOBuffer(count: unit + 1))
    XCTAssertEqual(way(file, 0, [whole, whole]), .wholeBlocks)
    XCTAssertEqual(way(file, 7 * unit, [whole[..<unit]]), .wholeBlocks)
    XCTAssertEqual(way(file, 1, [whole]), .buffered)
    XCTAssertEqual(way(file, 0, [whole, part]), .buffered)
    XCTAssertEqual(way(file, 0, [whole[1...][..<unit]]), .buffered)
    XCTAssertEqual(way(try makeFile(directory, options: .append).file, 0, [whole]), .buffered)
    XCTAssertNil(way(try makeFile(directory, .automatic).file, 1, [part]))
    XCTAssertNil(way(try makeFile(directory, .buffered).file, 1, [part]))
  }

  /// Goal: whole blocks and parts of the same blocks, written at once, leave each byte as one of
  /// the two has it, and never as it was before.
  func testWholeBlocksAndPartsAtOnce() throws {
    let directory = try temporaryDirectory()
    let contexts = try [AIOContext(queueDepth: 16), AIOContext(queueDepth: 16)]
    var generator = SeededGenerator(seed: Seeds.one)
    for round in 0..<20 {
      let file = try makeFile(directory, size: 64 << 10)
      let whole = AIOBuffer(count: 64 << 10)
      whole.fill(0xaa)
      let part = AIOBuffer(count: 300)
      part.fill(0xbb)
      let group = DispatchGroup()
      for number in 0..<32 {
        group.enter()
        let isWhole = Bool.random(using: &generator)
        let offset = isWhole ? number / 2 * 4096 : Int.random(in: 0..<65_000, using: &generator)
        try contexts[number % 2].write(
          file, contentsOf: isWhole ? whole[..<4096] : part, at: Int64(offset)
        ) { _ in group.leave() }
      }
      group.enter()
      try contexts[0].write(file, contentsOf: whole, at: 0) { _ in group.leave() }
      XCTAssertEqual(group.wait(timeout: .now() + 120), .success)
      XCTAssertTrue(
        try directory.contents().allSatisfy { $0 == 0xaa || $0 == 0xbb },
        "round \(round), \(Seeds.replay(Seeds.one))")
    }
  }

  func testModes() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let bytes = AIOBuffer([1, 2, 3])
    // The blocks at the edges need not be readable.
    let writeOnly = try makeFile(directory, size: 1000, .direct, .writeOnly)
    XCTAssertEqual(try write(context, writeOnly, [bytes], at: 998), .success(3))
    XCTAssertEqual(try directory.contents(), blockContents[..<998] + [1, 2, 3])
    let appended = try makeFile(directory, size: 1000, .direct, options: .append)
    for _ in 0..<3 { XCTAssertEqual(try write(context, appended, [bytes], at: 5), .success(3)) }
    XCTAssertEqual(try directory.contents(), blockContents[..<1000] + [1, 2, 3, 1, 2, 3, 1, 2, 3])
    XCTAssertEqual(
      try context.outcome { try context.fdatasync(appended, completion: $0) }, .success(0))
    // Closed: both descriptors are.
    let before = directory.openDescriptors()
    let closed = Promise<Void>()
    appended.close { closed.fulfil(()) }
    try closed.wait()
    XCTAssertEqual(directory.openDescriptors(), before - 2)
  }

  func testABlockDevice() throws {
    let directory = try temporaryDirectory()
    let device = try LoopDevice(in: directory, megabytes: 4, sectorSize: 4096)
    let context = try AIOContext(queueDepth: 4)
    let file = try AIOFile.open(FilePath(device.path), .readWrite)
    XCTAssertEqual(file.alignment.offset, 4096)
    let bytes = Array(blockContents[..<9000])
    XCTAssertEqual(try write(context, file, [AIOBuffer(bytes)], at: 4000), .success(9000))
    XCTAssertEqual(try read(context, file, from: 4000, count: 9000).get().array, bytes)
    XCTAssertEqual(try read(context, file, from: 3998, count: 4).get().array, [0, 0] + bytes[..<2])
    let end = try read(context, file, from: (4 << 20) - 10, count: 100).get()
    XCTAssertEqual(end.array, Array(repeating: 0, count: 10))
  }

  // MARK: Misuse and errors

  func testMisuse() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let file = try makeFile(directory)
    let bytes = AIOBuffer(count: 100)
    func refused(_ code: AIOError.Code, _ offset: Int64, _ count: Int, line: UInt = #line) {
      let error = assertRefused(code, line: line) {
        try context.read(file, from: offset, count: count) { _ in XCTFail("accepted") }
      }
      XCTAssertEqual([error?.offset, error?.length.map(Int64.init)], [offset, Int64(count)])
    }
    refused(.invalidOffset, -1, 100)
    refused(.invalidOffset, 0, -1)
    refused(.invalidOffset, .max - 99, 100)
    // A sanitizer ends a process that asks for too much memory.
    if !Sanitizer.isBuiltIn { refused(.system, 0, .max) }
    XCTAssertEqual(try read(context, file, from: .max - 100, count: 100).get().count, 0)
    XCTAssertEqual(try read(context, file, from: .max, count: 0).get().count, 0)
    XCTAssertEqual(try read(context, file, from: 5, count: 0).get().count, 0)
    assertRefused(.invalidOffset) {
      try context.write(file, contentsOf: bytes, at: -1) { _ in XCTFail("accepted") }
    }
    assertRefused(.invalidOffset) {
      try context.write(file, contentsOf: bytes, at: .max - 99) { _ in XCTFail("accepted") }
    }
    assertRefused(.tooManyBuffers) {
      try context.write(file, contentsOf: Array(repeating: bytes, count: 1025), at: 0) { _ in
        XCTFail("accepted")
      }
    }
    assertRefused(.misaligned) { try context.write(file, at: 0, from: bytes) { _ in } }
    let path = directory.path.appending("file")
    let writeOnly = try AIOFile.open(path, .writeOnly)
    assertRefused(.wrongAccessMode) { try context.read(writeOnly, from: 0, count: 1) { _ in } }
    let readOnly = try AIOFile.open(path, .readOnly)
    assertRefused(.wrongAccessMode) {
      try context.write(readOnly, contentsOf: bytes, at: 0) { _ in }
    }
    file.close()
    refused(.fileClosed, 7, 100)
    assertRefused(.fileClosed) { try context.write(file, contentsOf: bytes, at: 1) { _ in } }
  }

  /// Goal: an error is about the range that was asked for, whatever blocks were read.
  func testErrorsNameTheRange() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(
      queueDepth: 1, queue: DispatchQueue(label: "test"), pendingLimit: 4)
    let file = try makeFile(directory)
    let cancelled = Promise<Bytes>()
    try context.queue.sync {
      let request = try context.read(file, from: 777, count: 33) { cancelled.fulfil($0) }
      XCTAssertEqual(context.cancel(request), .cancelled)
    }
    guard case .failure(let error) = try cancelled.wait() else { return XCTFail("not cancelled") }
    XCTAssertEqual(error.code, .cancelled)
    XCTAssertEqual([error.offset, error.length.map(Int64.init)], [777, 33])
    XCTAssertEqual(error.transferred, 0)
    XCTAssertEqual(error.file, directory.path.appending("file"))
    // What was transferred counts from the range's own offset, and within it.
    let pool = context.memoryPool
    let read = try RangeRead(file.file, 777, 33, pool: pool)
    let head = 777 - Int(read.start)
    for (transferred, expected) in [(0, 0), (head, 0), (head + 5, 5), (head + 500, 33)] {
      let error = AIOError(
        errno: EIO, .init(operation: .read, offset: read.start, length: 4096),
        transferred: transferred)
      XCTAssertEqual(read.rebased(error).transferred, expected)
      XCTAssertEqual(read.rebased(error).code, .device)
    }
  }
}
