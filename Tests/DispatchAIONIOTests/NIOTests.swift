// SPDX-License-Identifier: Apache-2.0

#if NIO
import DispatchAIONIO
import NIOCore
import NIOPosix
import Synchronization
import SystemPackage
import XCTest
import _NIOFileSystem

final class NIOTests: XCTestCase {
  // MARK: Buffers

  /// Random ranges of files that were opened in each way have the file's bytes, from the page cache
  /// and from the disk.
  func testRangesOfAnyShape() async throws {
    let directory = try TemporaryDirectory(self)
    let bytes = testBytes(300_001)
    let path = try directory.file("data", bytes)
    let context = try AIOContext(queueDepth: 8)
    let seed = UInt64.random(in: 0 ... .max)
    var numbers = SeededNumbers(seed)
    for caching in [AIOFile.Caching.direct, .buffered, .automatic] {
      let file = try await AIOFile.open(path, .readOnly, caching: caching)
      for round in 0..<60 {
        if round % 6 == 0 { try evict(path) }
        let offset = Int.random(in: 0...bytes.count + 5000, using: &numbers)
        let count = Int.random(in: 0...(round % 2 == 0 ? 5000 : 200_000), using: &numbers)
        let read = try await context.readByteBuffer(file, from: Int64(offset), count: count)
        let expected = bytes[min(offset, bytes.count)..<min(offset + count, bytes.count)]
        XCTAssert(
          read.readableBytesView.elementsEqual(expected),
          "\(caching), \(count) bytes from \(offset), got \(read.readableBytes); seed \(seed)")
      }
    }
    await context.close()
  }

  /// A buffer that was read is its reader's: it can be written to and grows.
  func testBufferIsTheReaders() async throws {
    let directory = try TemporaryDirectory(self)
    let bytes = testBytes(10_000)
    let path = try directory.file("data", bytes)
    let context = try AIOContext(queueDepth: 8)
    let file = try await AIOFile.open(path, .readOnly, caching: .direct)
    var buffer = try await context.readByteBuffer(file, from: 100, count: 9000)
    let copy = buffer
    buffer.setInteger(UInt8(7), at: buffer.readerIndex)
    buffer.writeRepeatingByte(9, count: 100_000)
    XCTAssert(copy.readableBytesView.elementsEqual(bytes[100..<9100]))
    XCTAssertEqual(buffer.readableBytes, 109_000)
    XCTAssertEqual(buffer.readInteger(as: UInt8.self), 7)
    XCTAssertEqual(buffer.readBytes(length: 8999), Array(bytes[101..<9100]))
    await context.close()
  }

  /// Buffers are written one after the other, whatever their reader indices are.
  func testWritingBuffers() async throws {
    let directory = try TemporaryDirectory(self)
    let path = try directory.file("data", [])
    let context = try AIOContext(queueDepth: 8)
    let file = try await AIOFile.open(path, .readWrite, caching: .automatic)
    let bytes = testBytes(100_000)
    var buffers = [ByteBuffer(bytes: bytes[..<10]), ByteBuffer(bytes: bytes[5..<70_000])]
    buffers[1].moveReaderIndex(forwardBy: 5)
    try await context.writeByteBuffers(buffers + [ByteBuffer()], to: file, at: 3)
    let back = try await context.readByteBuffer(file, from: 0, count: 100_000)
    XCTAssert(back.readableBytesView.elementsEqual([0, 0, 0] + bytes[..<70_000]))
    await context.close()
  }

  /// What cannot be is an error that says so, and no trap.
  func testRefusals() async throws {
    let directory = try TemporaryDirectory(self)
    let path = try directory.file("data", [1, 2, 3])
    let context = try AIOContext(queueDepth: 8)
    let file = try await AIOFile.open(path, .readOnly, caching: .buffered)
    for (offset, count, code) in [
      (Int64(-1), 10, AIOError.Code.invalidOffset), (0, -1, .tooLarge), (0, .max, .tooLarge),
      (.max, 10, .invalidOffset),
    ] {
      do {
        _ = try await context.readByteBuffer(file, from: offset, count: count)
        XCTFail("\(count) bytes from \(offset) were read")
      } catch {
        XCTAssertEqual(error.code, code, "\(error)")
      }
    }
    let direct = try await AIOFile.open(path, .readOnly, caching: .direct)
    await context.close()
    do {
      _ = try await context.readByteBuffer(direct, from: 5000, count: 10)
      XCTFail("read")
    } catch {
      // What was asked for, and not the blocks that it is in.
      XCTAssertEqual(error.code, .contextClosed)
      XCTAssertEqual([error.offset, error.length.map { Int64($0) }], [5000, 10])
    }
  }

  /// What the page cache has takes no request, and is there in the future that is returned.
  func testCachedReadMakesNoRequest() async throws {
    let directory = try TemporaryDirectory(self)
    let bytes = testBytes(100_000)
    let path = try directory.file("data", bytes)
    let context = try AIOContext(queueDepth: 8)
    let file = try await AIOFile.open(path, .readOnly, caching: .automatic)
    XCTAssertNotNil(try file.readByteBufferNow(from: 5, count: 50_000))
    let before = context.statistics.accepted
    let loop = MultiThreadedEventLoopGroup.singleton.any()
    let buffer = try await context.read(
      fileHandle: file, fromOffset: 7, byteCount: 70_000, allocator: .init(), eventLoop: loop
    ).get()
    XCTAssert(buffer.readableBytesView.elementsEqual(bytes[7..<70_007]))
    _ = try await context.readByteBuffer(file, from: 1, count: 99_999)
    XCTAssertEqual(context.statistics.accepted, before)
    await context.close()
  }

  // MARK: Futures

  func testFutures() async throws {
    let directory = try TemporaryDirectory(self)
    let bytes = testBytes(500_000)
    let path = try directory.file("data", bytes)
    try evict(path)
    let context = try AIOContext(queueDepth: 8)
    let file = try await AIOFile.open(path, .readWrite, caching: .automatic)
    let loop = MultiThreadedEventLoopGroup.singleton.any()
    let collected = Mutex<[ByteBuffer]>([])
    try await context.readChunked(
      fileHandle: file, fromOffset: 10, byteCount: 1_000_000, allocator: .init(), eventLoop: loop
    ) { chunk in
      collected.withLock { $0.append(chunk) }
      return loop.makeSucceededVoidFuture()
    }.get()
    let chunks = collected.withLock { $0 }
    XCTAssertEqual(chunks.map(\.readableBytes), [131_072, 131_072, 131_072, 106_774])
    XCTAssert(chunks.flatMap(\.readableBytesView).elementsEqual(bytes[10...]))

    try await context.write(
      fileHandle: file, toOffset: 4, buffer: ByteBuffer(string: "four"), eventLoop: loop
    ).get()
    let back = try await context.read(
      fileHandle: file, fromOffset: 4, byteCount: 4, allocator: .init(), eventLoop: loop
    ).get()
    XCTAssertEqual(String(buffer: back), "four")

    let readOnly = try await AIOFile.open(path, .readOnly, caching: .automatic)
    do {
      try await context.write(
        fileHandle: readOnly, toOffset: 0, buffer: back, eventLoop: loop
      ).get()
      XCTFail("written")
    } catch let error as AIOError {
      XCTAssertEqual(error.code, .wrongAccessMode)
    }
    await context.close()
  }

  // MARK: A server

  /// A NIO server that answers each number with a block of a file, from its event loop.
  func testServer() async throws {
    let directory = try TemporaryDirectory(self)
    let bytes = testBytes(1 << 20)
    let path = try directory.file("data", bytes)
    try evict(path)
    let context = try AIOContext(queueDepth: 8)
    let file = try await AIOFile.open(path, .readOnly, caching: .automatic)
    let group = MultiThreadedEventLoopGroup.singleton
    let server = try await ServerBootstrap(group: group).childChannelInitializer { channel in
      channel.eventLoop.makeCompletedFuture {
        try channel.pipeline.syncOperations.addHandler(BlockHandler(context, file))
      }
    }.bind(host: "127.0.0.1", port: 0).get()
    let client = try await ClientBootstrap(group: group).connect(to: server.localAddress!) {
      channel in
      channel.eventLoop.makeCompletedFuture {
        try NIOAsyncChannel<ByteBuffer, ByteBuffer>(wrappingChannelSynchronously: channel)
      }
    }
    try await client.executeThenClose { inbound, outbound in
      var answers = inbound.makeAsyncIterator()
      // Twice: from the disk, and from the page cache.
      for number: UInt8 in [3, 200, 3, 200, 0, 255] {
        try await outbound.write(ByteBuffer(bytes: [number]))
        var answer = ByteBuffer()
        while answer.readableBytes < 4096, var part = try await answers.next() {
          answer.writeBuffer(&part)
        }
        let offset = Int(number) * 4096
        XCTAssert(answer.readableBytesView.elementsEqual(bytes[offset..<offset + 4096]))
      }
    }
    try await server.close()
    await context.close()
  }
}

private final class BlockHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private let (context, file): (AIOContext, AIOFile)

  init(_ context: AIOContext, _ file: AIOFile) { (self.context, self.file) = (context, file) }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    let channel = context.channel
    for number in unwrapInboundIn(data).readableBytesView {
      self.context.read(
        fileHandle: file, fromOffset: Int64(number) * 4096, byteCount: 4096,
        allocator: channel.allocator, eventLoop: context.eventLoop
      ).whenSuccess { channel.writeAndFlush($0, promise: nil) }
    }
  }
}

/// Numbers that a seed determines.
struct SeededNumbers: RandomNumberGenerator {
  private var state: UInt64

  init(_ seed: UInt64) { state = seed | 1 }

  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }
}
#endif
