// SPDX-License-Identifier: Apache-2.0
//
// Reads and writes of any range: what a direct file needs aligned is aligned here.

public import Dispatch

/// Gets the one result of a read whose buffer the library made: the bytes, or an error. It runs on
/// the queue that the request named, and otherwise on the context's.
public typealias AIOBufferCompletion = @Sendable (Result<AIOBuffer, AIOError>) -> Void

/// Reads and writes of any offset and length, on any file.
///
/// They throw what the other verbs throw, with ``AIOError/offset`` and ``AIOError/length`` as they
/// were asked for, but never ``AIOError/Code/misaligned``.
extension AIOContext {
  /// Reads any range of a file, into a buffer that the library makes. Corresponds to `pread(2)`
  /// (`IOCB_CMD_PREAD`).
  ///
  /// Of a direct file, the whole blocks of the range are read, and the part that was asked for is
  /// handed out: nothing is copied. The memory is reused for later reads once the last reference to
  /// the buffer, and to each slice of it, is gone; up to 16 MiB of it are kept by a context, in
  /// pieces of 4 KiB to 4 MiB, and any number may be in use. A buffer takes up to twice its size.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more.
  ///   - count: The number of bytes; 0 or more.
  ///   - queue: The queue to run the completion handler on; the context's own queue unless given.
  ///   - completion: Gets the bytes: fewer than asked for only if the file ends there, none at or
  ///     beyond its end.
  /// - Returns: The request, for ``cancel(_:)``.
  /// - Throws: ``AIOError``, with nothing accepted: ``AIOError/Code/invalidOffset``, also for a
  ///   negative count; ``AIOError/Code/system`` with `ENOMEM` if there is no memory;
  ///   ``AIOError/Code/wrongAccessMode``, ``AIOError/Code/fileClosed``, ``AIOError/Code/full``,
  ///   ``AIOError/Code/contextClosed`` or ``AIOError/Code/forked``.
  @discardableResult
  public func read(
    _ file: AIOFile, from offset: Int64, count: Int, queue: DispatchQueue? = nil,
    completion: @escaping AIOBufferCompletion
  ) throws(AIOError) -> AIORequest {
    let read = try RangeRead(file.file, offset, count, pool: memoryPool)
    read.completion = completion
    do throws(AIOError) {
      // Of one reference: the closure takes no memory of its own.
      return try accept(read.operation, file, read.start, [], queue) { read.complete($0) }
    } catch {
      throw read.rebased(error)
    }
  }

  /// Reads any range of a file: see ``read(_:from:count:queue:completion:)``.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more.
  ///   - count: The number of bytes; 0 or more.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The bytes: fewer than asked for only if the file ends there, none at or beyond its
  ///   end.
  public func read(
    _ file: AIOFile, from offset: Int64, count: Int,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> AIOBuffer {
    let read = try RangeRead(file.file, offset, count, pool: memoryPool)
    do throws(AIOError) {
      return read.slice(try await perform(read.operation, file, read.start, isolation: isolation))
    } catch {
      throw read.rebased(error)
    }
  }

  /// Writes a buffer to any range of a file. Corresponds to `pwrite(2)`.
  ///
  /// To a direct file, whole blocks are written past the page cache, if the buffer is aligned, too;
  /// everything else goes through the page cache, by a second descriptor, which is opened (through
  /// `/proc/self/fd`) with the first such write and closed with the file. Bytes beside the range
  /// are never touched, the file ends where the last byte was written, and any number of such
  /// writes may be under way, also within one block. A read, direct or not, sees them once they
  /// have completed. An offload thread makes them, one of each file at a time: whole blocks at any
  /// depth are written by
  /// ``AIOContext/write(_:at:from:options:queue:completion:)-(_,_,AIOBuffer,_,_,_)``.
  ///
  /// - Important: While a write of this kind is under way, no other kind of write, and no other
  ///   process, may write past the page cache to the pages (4096 bytes) that it touches: either may
  ///   be lost.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - buffer: The bytes to write, which must not be changed until the completion handler runs.
  ///   - offset: The offset in the file in bytes, 0 or more. A file opened with `.append` is
  ///     written at its end instead.
  ///   - queue: The queue to run the completion handler on; the context's own queue unless given.
  ///   - completion: Gets the number of bytes written, which is all of the buffer; or an error,
  ///     also that of opening the second descriptor.
  /// - Returns: The request, for ``cancel(_:)``.
  /// - Throws: ``AIOError``, with nothing accepted, as the other verbs do, except
  ///   ``AIOError/Code/misaligned``.
  @discardableResult
  public func write(
    _ file: AIOFile, contentsOf buffer: AIOBuffer, at offset: Int64, queue: DispatchQueue? = nil,
    completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.write(from: .buffer(buffer)), file, offset, .anyRange, queue, completion)
  }

  /// Writes several buffers, one after the other, to any range of a file. Corresponds to
  /// `pwritev(2)`.
  ///
  /// Everything else is as for ``write(_:contentsOf:at:queue:completion:)-(_,AIOBuffer,_,_,_)``,
  /// with up to 1024 buffers of any size.
  @discardableResult
  public func write(
    _ file: AIOFile, contentsOf buffers: [AIOBuffer], at offset: Int64,
    queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.write(from: .buffers(buffers)), file, offset, .anyRange, queue, completion)
  }

  /// Writes a buffer to any range of a file: see
  /// ``write(_:contentsOf:at:queue:completion:)-(_,AIOBuffer,_,_,_)``.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - buffer: The bytes to write, which must not be changed until the call returns.
  ///   - offset: The offset in the file in bytes, 0 or more.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The number of bytes written, which is all of the buffer.
  @discardableResult
  public func write(
    _ file: AIOFile, contentsOf buffer: AIOBuffer, at offset: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(
      .write(from: .buffer(buffer)), file, offset, .anyRange, isolation: isolation)
  }

  /// Writes several buffers, one after the other, to any range of a file: see
  /// ``write(_:contentsOf:at:queue:completion:)-(_,[AIOBuffer],_,_,_)``.
  @discardableResult
  public func write(
    _ file: AIOFile, contentsOf buffers: [AIOBuffer], at offset: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(
      .write(from: .buffers(buffers)), file, offset, .anyRange, isolation: isolation)
  }
}
