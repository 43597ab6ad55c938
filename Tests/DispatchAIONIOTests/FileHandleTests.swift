// SPDX-License-Identifier: Apache-2.0
//
// The handles beside NIO's own: the same calls, the same answers.

#if NIO
import NIOCore
import SystemPackage
import XCTest
import _NIOFileSystem

@testable import DispatchAIONIO

final class FileHandleTests: XCTestCase {
  /// What code that is written for NIO's handles reads.
  private func readings(_ handle: some ReadableFileHandleProtocol) async throws -> [[UInt8]] {
    var readings: [[UInt8]] = []
    func add(_ buffer: ByteBuffer) { readings.append(Array(buffer.readableBytesView)) }
    add(try await handle.readToEnd(maximumSizeAllowed: .mebibytes(10)))
    add(try await handle.readToEnd(fromAbsoluteOffset: 299_990, maximumSizeAllowed: .bytes(20)))
    add(try await handle.readToEnd(fromAbsoluteOffset: 400_000, maximumSizeAllowed: .bytes(20)))
    add(try await handle.readChunk(fromAbsoluteOffset: 1, length: .bytes(70_000)))
    add(try await handle.readChunk(fromAbsoluteOffset: 299_990, length: .bytes(1000)))
    add(try await handle.readChunk(fromAbsoluteOffset: 400_000, length: .bytes(1000)))
    for try await chunk in handle.readChunks() { add(chunk) }
    for try await chunk in handle.readChunks(in: 1...70_000, chunkLength: .bytes(12_345)) {
      add(chunk)
    }
    for try await chunk in handle.readChunks(in: 290_000..., chunkLength: .kibibytes(4)) {
      add(chunk)
    }
    for try await chunk in handle.readChunks(in: 5..<5, chunkLength: .kibibytes(4)) { add(chunk) }
    var reader = handle.bufferedReader(startingAtAbsoluteOffset: 100, capacity: .kibibytes(8))
    for count in [10, 9000, 1, 100_000] { add(try await reader.read(.bytes(Int64(count)))) }
    let info = try await handle.info()
    readings.append(Array("\(info.size) \(info.type) \(info.permissions)".utf8))
    return readings
  }

  func testReadingAsNIODoes() async throws {
    let directory = try TemporaryDirectory(self)
    let path = try directory.file("data", testBytes(300_001))
    let context = try AIOContext(queueDepth: 8)
    let expected = try await FileSystem.shared.withFileHandle(forReadingAt: path) {
      try await readings($0)
    }
    for isCached in [false, true] {
      if !isCached { try evict(path) }
      let got = try await AIOFileSystem(context).withFileHandle(forReadingAt: path) {
        try await readings($0)
      }
      XCTAssert(got == expected, "cached: \(isCached)")
    }
    await context.close()
  }

  /// What becomes of calls at the edges of what an offset and a length can be.
  private func edges(
    _ handle: some ReadableFileHandleProtocol & WritableFileHandleProtocol
  ) async -> [String] {
    var outcomes: [String] = []
    func add(_ name: String, _ body: () async throws -> String) async {
      do {
        outcomes.append("\(name): \(try await body())")
      } catch let error as FileSystemError {
        outcomes.append("\(name): \(error.code)")
      } catch {
        outcomes.append("\(name): \(error)")
      }
    }
    for offset: Int64 in [.min, -1, 0, 299_990, 400_000, .max - 10, .max] {
      for length: Int64 in [0, 1, 100_000] {
        await add("read of \(length) at \(offset)") {
          let buffer = try await handle.readChunk(
            fromAbsoluteOffset: offset, length: .bytes(length))
          return "\(buffer.readableBytes)"
        }
      }
      for length in [0, 1, 100] {
        await add("write of \(length) at \(offset)") {
          let count = try await handle.write(
            contentsOf: testBytes(length), toAbsoluteOffset: offset)
          return "\(count)"
        }
      }
      // NIO's own code, beneath which the handles are, traps behind that.
      guard 0...400_000 ~= offset else { continue }
      await add("to the end from \(offset)") {
        let buffer = try await handle.readToEnd(
          fromAbsoluteOffset: offset, maximumSizeAllowed: .mebibytes(1))
        return "\(buffer.readableBytes)"
      }
    }
    for size: Int64 in [-1, .max, 300_001] {
      await add("size \(size)") {
        try await handle.resize(to: .bytes(size))
        return "\(try await handle.info().size)"
      }
    }
    return outcomes
  }

  /// Goal: what succeeds with NIO's handle succeeds, and what fails fails; with a code where NIO
  /// knows none. Method: one table of both, and the three answers that differ, with the reason.
  func testEdgesAsNIODoes() async throws {
    let directory = try TemporaryDirectory(self)
    let context = try AIOContext(queueDepth: 8)
    let bytes = testBytes(300_001)
    let paths = try [directory.file("ours", bytes), directory.file("nios", bytes)]
    let options = OpenOptions.Write.modifyFile(createIfNecessary: false)
    let expected = try await FileSystem.shared.withFileHandle(
      forReadingAndWritingAt: paths[1], options: options
    ) { await edges($0) }
    let got = try await AIOFileSystem(context).withFileHandle(
      forReadingAndWritingAt: paths[0], options: options
    ) { await edges($0) }
    let others = [
      // A negative offset is a mistake, whatever is written there.
      "write of 0 at \(Int64.min): Invalid argument", "write of 0 at -1: Invalid argument",
      // It is a limit: of the file system, or of the process (`ulimit -f`).
      "size \(Int64.max): Resource exhausted",
    ]
    for (got, expected) in zip(got, expected) where !others.contains(got) {
      if expected.hasSuffix(": Unknown") {
        XCTAssertTrue(
          got.hasSuffix(": Invalid argument") || got.hasSuffix(": Resource exhausted"),
          "\(got) and \(expected)")
      } else {
        XCTAssertEqual(got, expected)
      }
    }
    XCTAssertEqual(got.count, expected.count)
    XCTAssertEqual(Set(got).intersection(others).count, others.count)
    XCTAssertEqual(
      FileManager.default.contents(atPath: paths[0].string),
      FileManager.default.contents(atPath: paths[1].string))
    await context.close()
  }

  /// A file that is written appears under its name when its handle is closed.
  func testWriting() async throws {
    let directory = try TemporaryDirectory(self)
    let context = try AIOContext(queueDepth: 8)
    let files = AIOFileSystem(context)
    let path = directory.path.appending("new")
    let bytes = testBytes(1_200_000)
    try await files.withFileHandle(forWritingAt: path) { handle in
      try await handle.withBufferedWriter { writer in
        for start in stride(from: 0, to: bytes.count, by: 100_000) {
          try await writer.write(contentsOf: bytes[start..<start + 100_000])
        }
      }
      XCTAssertFalse(FileManager.default.fileExists(atPath: path.string))
      try await handle.synchronize()
    }
    XCTAssertEqual(FileManager.default.contents(atPath: path.string), Data(bytes))
    try await files.withFileHandle(
      forReadingAndWritingAt: path, options: .modifyFile(createIfNecessary: false)
    ) { handle in
      try await handle.write(contentsOf: [1, 2, 3], toAbsoluteOffset: 10)
      try await handle.resize(to: .bytes(20))
      let all = try await handle.readToEnd(maximumSizeAllowed: .bytes(100))
      XCTAssertEqual(Array(all.readableBytesView), bytes[..<10] + [1, 2, 3] + bytes[13..<20])
      let size = try await handle.info().size
      XCTAssertEqual(size, 20)
    }
    struct Failure: Error {}
    let other = directory.path.appending("other")
    do {
      try await files.withFileHandle(forWritingAt: other) { handle in
        try await handle.write(contentsOf: bytes, toAbsoluteOffset: 0)
        throw Failure()
      }
      XCTFail("no error")
    } catch is Failure {}
    XCTAssertFalse(FileManager.default.fileExists(atPath: other.string))
    await context.close()
  }

  /// The error that a call throws, as NIO names it.
  private func code(_ body: () async throws -> Void) async -> FileSystemError.Code? {
    do {
      try await body()
    } catch let error as FileSystemError {
      return error.code
    } catch {
      XCTFail("\(error)")
    }
    return nil
  }

  func testErrorsAreNIOs() async throws {
    let directory = try TemporaryDirectory(self)
    let path = try directory.file("data", [1, 2, 3])
    let context = try AIOContext(queueDepth: 8)
    let files = AIOFileSystem(context)
    var codes: [FileSystemError.Code?] = []
    codes.append(
      await code { _ = try await files.openFile(forReadingAt: directory.path.appending("none")) })
    codes.append(await code { _ = try await files.openFile(forReadingAt: directory.path) })
    // As with NIO, a new file has no name before its handle is closed.
    codes.append(await code { try await files.openFile(forWritingAt: path).close() })
    let handle = try await files.openFile(forReadingAt: path)
    codes.append(
      await code { _ = try await handle.readChunk(fromAbsoluteOffset: -1, length: .bytes(1)) })
    try await handle.close()
    codes.append(
      await code { _ = try await handle.readChunk(fromAbsoluteOffset: 0, length: .bytes(1)) })
    codes.append(await code { _ = try await handle.info() })
    codes.append(await code { _ = try await handle.attributeNames() })
    codes.append(await code { _ = try handle.detachUnsafeFileDescriptor() })
    codes.append(await code { for try await _ in handle.readChunks() {} })
    XCTAssertEqual(
      codes,
      [.notFound, .unsupported, .fileAlreadyExists, .invalidArgument]
        + Array(repeating: .closed, count: 5))
    await context.close()
  }

  /// A task that was cancelled gets what NIO throws, and the handle stays as it is.
  func testCancellation() async throws {
    let directory = try TemporaryDirectory(self)
    let path = try directory.file("data", testBytes(1 << 20))
    let context = try AIOContext(queueDepth: 8)
    let handle = try await AIOFileSystem(context).openFile(forReadingAt: path)
    try evict(path)
    let reading = Task {
      while !Task.isCancelled { await Task.yield() }
      _ = try await handle.readChunk(fromAbsoluteOffset: 4096, length: .bytes(4096))
    }
    reading.cancel()
    do {
      try await reading.value
      XCTFail("read")
    } catch {
      XCTAssert(error is CancellationError, "\(error)")
    }
    let chunks = Task {
      while !Task.isCancelled { await Task.yield() }
      for try await _ in handle.readChunks() {}
    }
    chunks.cancel()
    let ended = await chunks.result
    XCTAssertThrowsError(try ended.get()) { XCTAssert($0 is CancellationError, "\($0)") }
    let chunk = try await handle.readChunk(fromAbsoluteOffset: 0, length: .bytes(10))
    XCTAssertEqual(chunk.readableBytes, 10)
    try await handle.close()
    await context.close()
  }

  /// So does one whose read is under way when it is cancelled.
  func testCancellationOfChunksUnderWay() async throws {
    let directory = try TemporaryDirectory(self)
    let path = try directory.file("data", testBytes(4096))
    let queue = DispatchQueue(label: "context")
    let context = try AIOContext(queueDepth: 1, queue: queue, pendingLimit: 0)
    let file = try await AIOFile.open(path, .readOnly, caching: .direct)
    queue.suspend()
    // It has the only slot, for which the chunk waits.
    try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { _ in }
    let reader = ChunkReader(
      AIOByteBufferChunks(
        context: context, file: file, range: 0..<4096, chunkLength: 4096, mapsErrors: true))
    let reading = Task { try await reader.next() }
    while await !reader.hasBegun { await Task.yield() }
    reading.cancel()
    do {
      _ = try await reading.value
      XCTFail("read")
    } catch {
      XCTAssert(error is CancellationError, "\(error)")
    }
    queue.resume()
    await context.close()
  }

  /// Who finds that it has begun finds it waiting.
  private actor ChunkReader {
    private let iterator: AIOByteBufferChunks.Iterator
    private(set) var hasBegun = false

    init(_ chunks: AIOByteBufferChunks) { iterator = chunks.makeAsyncIterator() }

    func next() async throws -> ByteBuffer? {
      hasBegun = true
      return try await iterator.next(isolation: self)
    }
  }

  /// The first program does what it says.
  func testFirstProgram() async throws {
    let directory = try TemporaryDirectory(self)
    let path = try directory.file("data", Array("one\ntwo\nthree\n".utf8))
    let lines = try await countLines(path)
    XCTAssertEqual(lines, 3)
  }

  /// A file that is closed while NIO opens it once more keeps its number: what is then done to it
  /// is done to no other file.
  func testClosingWhileNIOOpens() async throws {
    let directory = try TemporaryDirectory(self)
    let (path, other) = (try directory.file("data", [1]), try directory.file("other", [2]))
    for path in [path, other] { XCTAssertEqual(chmod(path.string, 0o600), 0) }
    let context = try AIOContext(queueDepth: 8)
    let file = try await AIOFile.open(path, .readOnly, caching: .automatic)
    let handle = AIOReadFileHandle(
      context: context, file: file,
      source: .onDemand { descriptor in
        // Whoever awaits it waits for what holds the file.
        file.close(completion: nil)
        // It gets the number of the file, if that is free.
        let next = try FileDescriptor.open(other, .readOnly)
        defer { try? next.close() }
        return try await FileSystem.shared.openFile(
          forReadingAt: FilePath("/proc/self/fd/\(descriptor.rawValue)"))
      })
    try await handle.replacePermissions([.ownerRead])
    for (path, mode) in [(path, 0o400), (other, 0o600)] {
      var status = stat()
      XCTAssertEqual(stat(path.string, &status), 0)
      XCTAssertEqual(status.st_mode & 0o777, mode_t(mode), path.string)
    }
    await file.close()
    await context.close()
  }

  /// What NIO's handles do beside reading is theirs here, too.
  func testAttributesAndPermissions() async throws {
    let directory = try TemporaryDirectory(self)
    let path = try directory.file("data", [1, 2, 3])
    let context = try AIOContext(queueDepth: 8)
    let handle = try await AIOFileSystem(context).openFile(forReadingAt: path)
    try await handle.replacePermissions([.ownerRead, .otherExecute])
    let permissions = try await handle.info().permissions
    XCTAssertEqual(permissions, [.ownerRead, .otherExecute])
    let size = try await handle.withUnsafeDescriptor { try $0.seek(offset: 0, from: .end) }
    XCTAssertEqual(size, 3)
    let descriptor = try handle.detachUnsafeFileDescriptor()
    defer { try? descriptor.close() }
    // No program that is started later gets it.
    XCTAssertEqual(fcntl(descriptor.rawValue, F_GETFD), FD_CLOEXEC)
    XCTAssertTrue(handle.file.isClosed)
    var byte: UInt8 = 0
    let count = try withUnsafeMutableBytes(of: &byte) {
      try descriptor.read(fromAbsoluteOffset: 2, into: $0)
    }
    XCTAssertEqual([UInt8(count), byte], [1, 3])
    await context.close()
  }
}
#endif
