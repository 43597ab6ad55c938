// SPDX-License-Identifier: Apache-2.0
//
// The verbs: each checks what can be checked without the kernel, and hands the request to the loop.

public import Dispatch

/// The limits of one request.
extension AIOContext {
  /// The most buffers of one vectored request: 1024, the kernel's UIO_MAXIOV.
  public static var maximumBuffers: Int { SubmissionBatch.maximumElements }
}

/// Each verb returns when the request has been accepted, and throws, at once and with nothing
/// accepted, when it is refused: ``AIOError/Code/full``, ``AIOError/Code/contextClosed``,
/// ``AIOError/Code/fileClosed``, ``AIOError/Code/wrongAccessMode``,
/// ``AIOError/Code/misaligned``, ``AIOError/Code/invalidOffset``, ``AIOError/Code/tooLarge`` or
/// ``AIOError/Code/tooManyBuffers``. Everything else is a result: the completion handler gets it.
extension AIOContext {
  /// Reads from a file into a buffer: `IOCB_CMD_PREAD`.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: Where in the file, in bytes.
  ///   - buffer: Where to; its count is how many bytes to read. Not to be touched until the
  ///     completion.
  ///   - queue: Where to run the completion handler; the context's queue unless given.
  ///   - completion: Gets the number of bytes read: fewer than asked for at the end of the file, 0
  ///     beyond it.
  /// - Returns: The request, for ``cancel(_:)``.
  @discardableResult
  public func read(
    _ file: AIOFile, at offset: Int64, into buffer: AIOBuffer, queue: DispatchQueue? = nil,
    completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.read(into: .buffer(buffer)), file, offset, queue, completion)
  }

  /// Reads from a file into several buffers, one after the other: `IOCB_CMD_PREADV`.
  ///
  /// As ``read(_:at:into:queue:completion:)-(_,_,AIOBuffer,_,_)``, with up to 1024 buffers.
  @discardableResult
  public func read(
    _ file: AIOFile, at offset: Int64, into buffers: [AIOBuffer], queue: DispatchQueue? = nil,
    completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.read(into: .buffers(buffers)), file, offset, queue, completion)
  }

  /// Reads from a file into memory of the caller's: `IOCB_CMD_PREAD`.
  ///
  /// - Warning: The memory must stay allocated, and untouched, until the completion handler runs,
  ///   whatever happens in between. Nothing checks that; ``AIOBuffer`` takes care of it.
  @discardableResult
  @unsafe
  public func read(
    _ file: AIOFile, at offset: Int64, into memory: UnsafeMutableRawBufferPointer,
    queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try unsafe accept(.read(into: .raw(memory)), file, offset, queue, completion)
  }

  /// Reads from a file into several pieces of memory of the caller's: `IOCB_CMD_PREADV`.
  ///
  /// - Warning: The memory must stay allocated, and untouched, until the completion handler runs.
  @discardableResult
  @unsafe
  public func read(
    _ file: AIOFile, at offset: Int64, into memory: [UnsafeMutableRawBufferPointer],
    queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try unsafe accept(.read(into: .raws(memory)), file, offset, queue, completion)
  }

  /// Writes a buffer to a file: `IOCB_CMD_PWRITE`.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - offset: Where in the file, in bytes.
  ///   - buffer: What to write; not to be changed until the completion.
  ///   - queue: Where to run the completion handler; the context's queue unless given.
  ///   - completion: Gets the number of bytes written: fewer than asked for when the disk became
  ///     full on the way.
  /// - Returns: The request, for ``cancel(_:)``.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffer: AIOBuffer, queue: DispatchQueue? = nil,
    completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.write(from: .buffer(buffer)), file, offset, queue, completion)
  }

  /// Writes several buffers to a file, one after the other: `IOCB_CMD_PWRITEV`.
  ///
  /// As ``write(_:at:from:queue:completion:)-(_,_,AIOBuffer,_,_)``, with up to 1024 buffers.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffers: [AIOBuffer], queue: DispatchQueue? = nil,
    completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.write(from: .buffers(buffers)), file, offset, queue, completion)
  }

  /// Writes memory of the caller's to a file: `IOCB_CMD_PWRITE`.
  ///
  /// - Warning: The memory must stay allocated, and unchanged, until the completion handler runs,
  ///   whatever happens in between. Nothing checks that; ``AIOBuffer`` takes care of it.
  @discardableResult
  @unsafe
  public func write(
    _ file: AIOFile, at offset: Int64, from memory: UnsafeRawBufferPointer,
    queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    // Mutable in name only: a write does not change it.
    let memory = unsafe UnsafeMutableRawBufferPointer(mutating: memory)
    return try unsafe accept(.write(from: .raw(memory)), file, offset, queue, completion)
  }

  /// Writes several pieces of memory of the caller's to a file: `IOCB_CMD_PWRITEV`.
  ///
  /// - Warning: The memory must stay allocated, and unchanged, until the completion handler runs.
  @discardableResult
  @unsafe
  public func write(
    _ file: AIOFile, at offset: Int64, from memory: [UnsafeRawBufferPointer],
    queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    let memory = unsafe memory.map { unsafe UnsafeMutableRawBufferPointer(mutating: $0) }
    return try unsafe accept(.write(from: .raws(memory)), file, offset, queue, completion)
  }

  /// Makes what was written to the file durable, and all that the file system knows of the file:
  /// `IOCB_CMD_FSYNC`. It covers the writes that had completed when it was asked for.
  ///
  /// - Parameters:
  ///   - file: The file.
  ///   - queue: Where to run the completion handler; the context's queue unless given.
  ///   - completion: Gets 0.
  /// - Returns: The request, for ``cancel(_:)``.
  @discardableResult
  public func fsync(
    _ file: AIOFile, queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.fsync, file, 0, queue, completion)
  }

  /// Makes what was written to the file durable, and of what the file system knows only what is
  /// needed to read it back (the size, but not the times): `IOCB_CMD_FDSYNC`. It covers the writes
  /// that had completed when it was asked for.
  ///
  /// Parameters and result as for ``fsync(_:queue:completion:)``.
  @discardableResult
  public func fdatasync(
    _ file: AIOFile, queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.fdatasync, file, 0, queue, completion)
  }
}

extension AIOContext {
  @inline(__always)
  func accept(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ queue: DispatchQueue?,
    _ completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    let file = file.file
    let length = try operation.check(file, offset)
    guard file.retain() else {
      throw .closed(Subject(operation, file, offset, length))
    }
    do {
      let id = try loop.accept(
        Request(
          operation: operation, file: file, offset: offset, length: length,
          attachment: Delivery(
            completion: completion, queue: queue === loop.queue ? nil : queue)))
      return AIORequest(id: id, context: number)
    } catch {
      file.release()
      throw error
    }
  }

  private typealias Subject = AIOError.Subject
}
