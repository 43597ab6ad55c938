// SPDX-License-Identifier: Apache-2.0

#if NIO
public import DispatchAIO
public import NIOCore

/// SwiftNIO's `ByteBuffer` in and out.
extension AIOContext {
  /// Reads a range of a file into a buffer's own memory, without a copy: in place if the page cache
  /// has it (see ``DispatchAIO/AIOFile/readByteBufferNow(from:count:allocator:)``), and otherwise
  /// asynchronously. Corresponds to `pread(2)`.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset of the first byte, 0 or more; any, also for a direct file.
  ///   - count: The number of bytes, 0 to 2^31 - 1.
  ///   - allocator: What allocates the buffer.
  /// - Returns: The bytes: fewer than asked for only if the file ends there.
  /// - Throws: `AIOError`: what the library's verbs throw, or `.invalidOffset` and `.tooLarge` for
  ///   a range that cannot be. Cancellation is theirs, too.
  public func readByteBuffer(
    _ file: AIOFile, from offset: Int64, count: Int, allocator: ByteBufferAllocator = .init(),
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> ByteBuffer {
    if let buffer = try file.readByteBufferNow(from: offset, count: count, allocator: allocator) {
      return buffer
    }
    return try await readUncachedByteBuffer(file, from: offset, count: count, allocator: allocator)
  }

  /// Reads a range for which `readByteBufferNow` has just returned `nil`.
  func readUncachedByteBuffer(
    _ file: AIOFile, from offset: Int64, count: Int, allocator: ByteBufferAllocator = .init(),
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> ByteBuffer {
    guard let memory = ByteBufferMemory(from: offset, count: count, allocator) else {
      throw .rangeTooLarge(file, offset, count)
    }
    do throws(AIOError) {
      // `memory` is alive until it is asked for the buffer, and nobody else has its bytes.
      let transferred = try unsafe await read(file, at: memory.offset, into: memory.bytes)
      return memory.filled(transferred)
    } catch {
      throw error.rebased(file, offset, count, skipped: memory.skipped)
    }
  }

  /// Writes the readable bytes of buffers to a file, one after the other, without a copy.
  /// Corresponds to `pwritev(2)`.
  ///
  /// - Parameters:
  ///   - buffers: The buffers, up to 1024. A direct file needs them aligned, which a `ByteBuffer`
  ///     is not: it is for files that were opened buffered or automatic.
  ///   - file: The file, open for writing.
  ///   - offset: The offset in the file, 0 or more.
  /// - Throws: `AIOError`: what the library's verbs throw.
  public func writeByteBuffers(
    _ buffers: [ByteBuffer], to file: AIOFile, at offset: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    // The storage of each buffer stays as it is, and alive, until the write has completed: whoever
    // writes to a copy of the buffer gets a storage of its own as long as `buffers` holds this one.
    let memory = unsafe buffers.map {
      unsafe $0.withUnsafeReadableBytesWithStorageManagement { bytes, _ in unsafe bytes }
    }
    defer { withExtendedLifetime(buffers) {} }
    try unsafe await write(file, at: offset, from: memory)
  }
}

extension AIOFile {
  /// Reads a range of the file into a buffer's own memory if the page cache has it. Never blocks,
  /// and is for any thread. Corresponds to `preadv2(2)` with `RWF_NOWAIT`.
  ///
  /// - Parameters: As those of
  ///   ``DispatchAIO/AIOContext/readByteBuffer(_:from:count:allocator:isolation:)``.
  /// - Returns: The bytes, fewer than asked for only if the file ends there; `nil` if the call
  ///   would have to wait.
  public func readByteBufferNow(
    from offset: Int64, count: Int, allocator: ByteBufferAllocator = .init()
  ) throws(AIOError) -> ByteBuffer? {
    guard count >= 0, count <= Int(Int32.max) else { throw .rangeTooLarge(self, offset, count) }
    var buffer = allocator.buffer(capacity: count)
    // The bytes are written during the call only.
    let result = unsafe buffer.withUnsafeMutableWritableBytes { bytes in
      Result { () throws(AIOError) in
        try unsafe readNow(
          at: offset, into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<count]))
      }
    }
    guard let transferred = try result.get() else { return nil }
    buffer.moveWriterIndex(forwardBy: transferred)
    return buffer
  }
}

extension AIOError {
  static func rangeTooLarge(_ file: AIOFile, _ offset: Int64, _ count: Int) -> AIOError {
    AIOError(
      .tooLarge, .read, file: file, offset: offset, length: count,
      "\(count) bytes from \(offset) do not fit a ByteBuffer; read 0 to \(Int32.max) at a time")
  }
}
#endif
