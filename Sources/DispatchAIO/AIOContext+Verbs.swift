// SPDX-License-Identifier: Apache-2.0
//
// The verbs. Each checks what can be checked without the kernel, and hands the request to the loop.

public import Dispatch

/// The limits of one request.
extension AIOContext {
  /// The most buffers of one vectored request: 1024, the kernel's `UIO_MAXIOV`.
  public static var maximumBuffers: Int { SubmissionBatch.maximumElements }
}

/// Requests, whose results their completion handlers get.
///
/// Each verb returns as soon as the request has been accepted, and never blocks. It throws, at once
/// and with nothing accepted, ``AIOError/Code/full``, ``AIOError/Code/contextClosed``,
/// ``AIOError/Code/fileClosed``, ``AIOError/Code/wrongAccessMode``,
/// ``AIOError/Code/misaligned``, ``AIOError/Code/invalidOffset``, ``AIOError/Code/tooLarge``,
/// ``AIOError/Code/tooManyBuffers``, ``AIOError/Code/notSupported`` (an option that the file does
/// not have) or ``AIOError/Code/forked``. Everything else is a result: the
/// completion handler gets it.
///
/// A read or a write may have any length. It transfers all that was asked for, in as many attempts
/// as that takes, or completes with an error whose ``AIOError/transferred`` says how many bytes
/// were transferred before; only the end of the file makes a read shorter.
extension AIOContext {
  /// Reads from a file into a buffer. Corresponds to `pread(2)` (`IOCB_CMD_PREAD`).
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffer: The buffer to read into, whose count is the number of bytes to read. It must not
  ///     be touched until the completion handler runs.
  ///   - options: What the read is to do beside reading.
  ///   - queue: The queue to run the completion handler on; the context's own queue unless given.
  ///   - completion: Gets the number of bytes read: all of the buffer, fewer only if the file ends
  ///     there, 0 beyond its end.
  /// - Returns: The request, for ``cancel(_:)``.
  /// - Throws: ``AIOError``, with nothing accepted; its codes are listed at the top of this group.
  @discardableResult
  public func read(
    _ file: AIOFile, at offset: Int64, into buffer: AIOBuffer,
    options: AIOReadOptions = [], queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.read(into: .buffer(buffer)), file, offset, options.request, queue, completion)
  }

  /// Reads from a file into several buffers, one after the other. Corresponds to `preadv(2)`
  /// (`IOCB_CMD_PREADV`).
  ///
  /// The parameters, the result and the errors are those of
  /// ``read(_:at:into:options:queue:completion:)-(_,_,AIOBuffer,_,_,_)``, with up to 1024 buffers;
  /// for a direct file each of them must be aligned.
  @discardableResult
  public func read(
    _ file: AIOFile, at offset: Int64, into buffers: [AIOBuffer],
    options: AIOReadOptions = [], queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.read(into: .buffers(buffers)), file, offset, options.request, queue, completion)
  }

  /// Reads from a file into memory of the caller's. Corresponds to `pread(2)` (`IOCB_CMD_PREAD`).
  ///
  /// If pages of the memory are not resident, as those of a mapped file may be, the request is
  /// offloaded, because the kernel reads them in while it takes the request.
  ///
  /// - Warning: The memory must stay allocated, and untouched, until the completion handler runs,
  ///   whatever happens in between. Nothing checks that; ``AIOBuffer`` takes care of it.
  @discardableResult
  @unsafe
  public func read(
    _ file: AIOFile, at offset: Int64, into memory: UnsafeMutableRawBufferPointer,
    options: AIOReadOptions = [], queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try unsafe accept(.read(into: .raw(memory)), file, offset, options.request, queue, completion)
  }

  /// Reads from a file into several pieces of memory of the caller's. Corresponds to `preadv(2)`
  /// (`IOCB_CMD_PREADV`).
  ///
  /// - Warning: The memory must stay allocated, and untouched, until the completion handler runs.
  @discardableResult
  @unsafe
  public func read(
    _ file: AIOFile, at offset: Int64, into memory: [UnsafeMutableRawBufferPointer],
    options: AIOReadOptions = [], queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try unsafe accept(.read(into: .raws(memory)), file, offset, options.request, queue, completion)
  }

  /// Writes a buffer to a file. Corresponds to `pwrite(2)` (`IOCB_CMD_PWRITE`).
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - offset: The offset in the file in bytes, 0 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``. A file opened with `.append` is written at its end instead.
  ///   - buffer: The bytes to write, which must not be changed until the completion handler runs.
  ///   - options: What the write is to do beside writing.
  ///   - queue: The queue to run the completion handler on; the context's own queue unless given.
  ///   - completion: Gets the number of bytes written, which is all of the buffer; or an error, for
  ///     example ``AIOError/Code/noSpace``.
  /// - Returns: The request, for ``cancel(_:)``.
  /// - Throws: ``AIOError``, with nothing accepted; its codes are listed at the top of this group.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffer: AIOBuffer,
    options: AIOWriteOptions = [], queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.write(from: .buffer(buffer)), file, offset, options.request, queue, completion)
  }

  /// Writes several buffers to a file, one after the other. Corresponds to `pwritev(2)`
  /// (`IOCB_CMD_PWRITEV`).
  ///
  /// The parameters, the result and the errors are those of
  /// ``write(_:at:from:options:queue:completion:)-(_,_,AIOBuffer,_,_,_)``, with up to 1024 buffers;
  /// for a direct file each of them must be aligned.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffers: [AIOBuffer],
    options: AIOWriteOptions = [], queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.write(from: .buffers(buffers)), file, offset, options.request, queue, completion)
  }

  /// Writes memory of the caller's to a file. Corresponds to `pwrite(2)` (`IOCB_CMD_PWRITE`).
  ///
  /// If pages of the memory are not resident, as those of a mapped file may be, the request is
  /// offloaded, because the kernel reads them in while it takes the request.
  ///
  /// - Warning: The memory must stay allocated, and unchanged, until the completion handler runs,
  ///   whatever happens in between. Nothing checks that; ``AIOBuffer`` takes care of it.
  @discardableResult
  @unsafe
  public func write(
    _ file: AIOFile, at offset: Int64, from memory: UnsafeRawBufferPointer,
    options: AIOWriteOptions = [], queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    // The memory is mutable in name only: a write does not change it.
    let memory = unsafe UnsafeMutableRawBufferPointer(mutating: memory)
    return try unsafe accept(
      .write(from: .raw(memory)), file, offset, options.request, queue, completion)
  }

  /// Writes several pieces of memory of the caller's to a file. Corresponds to `pwritev(2)`
  /// (`IOCB_CMD_PWRITEV`).
  ///
  /// - Warning: The memory must stay allocated, and unchanged, until the completion handler runs.
  @discardableResult
  @unsafe
  public func write(
    _ file: AIOFile, at offset: Int64, from memory: [UnsafeRawBufferPointer],
    options: AIOWriteOptions = [], queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try unsafe accept(
      .write(from: .constants(memory)), file, offset, options.request, queue, completion)
  }

  /// Makes the data of a file durable, and its metadata. Corresponds to `fsync(2)`
  /// (`IOCB_CMD_FSYNC`).
  ///
  /// It covers the writes that had completed before this call. After a failure, data written since
  /// the last sync that succeeded may be lost and must be written again: the kernel reports the
  /// loss only once (see ``AIOError/recoverySuggestion``).
  ///
  /// - Parameters:
  ///   - file: The file.
  ///   - queue: The queue to run the completion handler on; the context's own queue unless given.
  ///   - completion: Gets 0, or an error.
  /// - Returns: The request, for ``cancel(_:)``.
  /// - Throws: ``AIOError``, with nothing accepted; its codes are listed at the top of this group.
  @discardableResult
  public func fsync(
    _ file: AIOFile, queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.fsync, file, 0, [], queue, completion)
  }

  /// Makes the data of a file durable, and of its metadata only what is needed to read the data
  /// back (the size, but not the times). Corresponds to `fdatasync(2)` (`IOCB_CMD_FDSYNC`).
  ///
  /// Everything else is as for ``fsync(_:queue:completion:)``.
  @discardableResult
  public func fdatasync(
    _ file: AIOFile, queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.fdatasync, file, 0, [], queue, completion)
  }
}

extension AIOContext {
  @inline(__always)
  func accept(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ options: RequestOptions,
    _ queue: DispatchQueue?, _ completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    let length = try operation.check(file.file, offset, options)
    let delivery = Delivery.callback(completion, queue: queue === loop.queue ? nil : queue)
    return AIORequest(
      id: try accept(operation, file, offset, length, options, delivery), context: number)
  }

  /// Accepts a request that has been checked.
  @inline(__always)
  func accept(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ length: Int,
    _ options: RequestOptions, _ delivery: consuming Delivery, mayWait: Bool = true
  ) throws(AIOError) -> RequestID {
    let file = file.file
    guard file.retain() else {
      throw .fileClosed(AIOError.Subject(operation, file, offset, length, options))
    }
    do {
      return try loop.accept(
        Request(
          operation: operation, file: file, offset: offset, length: length, options: options,
          mayWait: mayWait, attachment: delivery))
    } catch {
      file.release()
      throw error
    }
  }
}
