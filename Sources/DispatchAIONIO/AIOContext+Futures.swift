// SPDX-License-Identifier: Apache-2.0

#if NIO
public import DispatchAIO
public import NIOCore

/// Futures, in the manner of NIO's `NonBlockingFileIO`, whose calls have the same labels. What can
/// be answered without waiting is answered in place: the future that is returned has succeeded.
/// They fail with `IOError` where the kernel answered an errno, as `NonBlockingFileIO` does, and
/// with `AIOError` where nothing was asked of it.
extension AIOContext {
  /// Reads a range of a file. Corresponds to `pread(2)`.
  ///
  /// - Parameters:
  ///   - fileHandle: The file, open for reading.
  ///   - offset: The offset of the first byte, 0 or more; any, also for a direct file.
  ///   - count: The number of bytes, 0 to 2^31 - 1.
  ///   - allocator: What allocates the buffer.
  ///   - eventLoop: The event loop of the future.
  /// - Returns: The bytes: fewer than asked for only if the file ends there.
  public func read(
    fileHandle: AIOFile, fromOffset offset: Int64, byteCount count: Int,
    allocator: ByteBufferAllocator, eventLoop: any EventLoop
  ) -> EventLoopFuture<ByteBuffer> {
    do throws(AIOError) {
      if let buffer = try fileHandle.readByteBufferNow(
        from: offset, count: count, allocator: allocator)
      {
        return eventLoop.makeSucceededFuture(buffer)
      }
    } catch {
      return eventLoop.makeFailedFuture(error.forFutures)
    }
    return future(on: eventLoop) { () async throws(AIOError) in
      try await self.readUncachedByteBuffer(
        fileHandle, from: offset, count: count, allocator: allocator)
    }
  }

  /// Reads a range of a file in chunks: each is read once the future of the chunk before has
  /// succeeded. The file may end before the range does.
  ///
  /// - Parameters:
  ///   - chunkSize: The number of bytes of a chunk, 1 or more; the last one may have fewer.
  ///   - chunkHandler: Called on the event loop with each chunk.
  /// - Returns: Succeeds once the last chunk has been handled; fails with the error of a read, or
  ///   of the handler.
  public func readChunked(
    fileHandle: AIOFile, fromOffset offset: Int64, byteCount: Int, chunkSize: Int = 128 << 10,
    allocator: ByteBufferAllocator, eventLoop: any EventLoop,
    chunkHandler: @escaping @Sendable (ByteBuffer) -> EventLoopFuture<Void>
  ) -> EventLoopFuture<Void> {
    guard chunkSize > 0 else {
      fatalError("AIOContext.readChunked: a chunkSize of \(chunkSize); it must be 1 or more")
    }
    guard byteCount > 0 else { return eventLoop.makeSucceededVoidFuture() }
    let count = min(chunkSize, byteCount)
    return read(
      fileHandle: fileHandle, fromOffset: offset, byteCount: count, allocator: allocator,
      eventLoop: eventLoop
    ).flatMap { chunk in
      guard chunk.readableBytes > 0 else { return eventLoop.makeSucceededVoidFuture() }
      return chunkHandler(chunk).flatMap {
        guard chunk.readableBytes == count else { return eventLoop.makeSucceededVoidFuture() }
        return self.readChunked(
          fileHandle: fileHandle, fromOffset: offset + Int64(count), byteCount: byteCount - count,
          chunkSize: chunkSize, allocator: allocator, eventLoop: eventLoop,
          chunkHandler: chunkHandler)
      }
    }
  }

  /// Writes a buffer to a file. Corresponds to `pwrite(2)`.
  ///
  /// - Parameters:
  ///   - fileHandle: The file, open for writing, buffered or automatic.
  ///   - offset: The offset in the file, 0 or more.
  /// - Returns: Succeeds once all bytes have been written.
  public func write(
    fileHandle: AIOFile, toOffset offset: Int64, buffer: ByteBuffer, eventLoop: any EventLoop
  ) -> EventLoopFuture<Void> {
    future(on: eventLoop) { () async throws(AIOError) in
      try await self.writeByteBuffers([buffer], to: fileHandle, at: offset)
    }
  }

  private func future<Value: Sendable>(
    on eventLoop: any EventLoop, _ body: @escaping @Sendable () async throws(AIOError) -> Value
  ) -> EventLoopFuture<Value> {
    eventLoop.makeFutureWithTask {
      do throws(AIOError) {
        return try await body()
      } catch {
        throw error.forFutures
      }
    }
  }
}
#endif
