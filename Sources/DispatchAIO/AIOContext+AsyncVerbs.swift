// SPDX-License-Identifier: Apache-2.0
//
// The verbs with `await`. Each suspends its task until the request's one completion.
//
// They inherit the isolation of their caller, and every closure within passes it on, so that they
// run where their caller does, and an actor on the loop stays on the loop's thread.

internal import Synchronization

/// The same verbs for tasks.
///
/// Each call returns the number of bytes when its request has completed, and throws ``AIOError``
/// where the callback verbs throw or complete with a failure. As there, a read or a write transfers
/// all that was asked for, or throws an error whose ``AIOError/transferred`` says how many bytes
/// were transferred before; only the end of the file makes a read shorter.
///
/// - **Room**: where the callback verbs throw ``AIOError/Code/full``, these wait for a slot, in the
///   order of the calls and without a thread. Meanwhile the callback verbs get `.full`.
/// - **Cancellation**: if the task has been cancelled, nothing is submitted. If it is cancelled
///   while the request waits, for a slot, for room in the kernel, or for an offload thread, the
///   request is removed at once. Both throw ``AIOError`` with the code
///   ``AIOError/Code/cancelled``, which stands for `CancellationError` (the throws are typed, so
///   that it cannot be that). A request that the kernel has, or gets with the loop's next
///   submission, or that an offload thread has begun, is not disturbed: the call returns its result
///   when it has completed.
/// - **Threads**: a call runs on its caller's actor, or task executor, and nowhere else
///   (`isolation:` is not for the caller to give).
/// - **Memory**: an ``AIOUniqueBuffer`` belongs to the call until it returns, by its type. The
///   elements of an array of ``AIOBuffer`` do so by rule: they must not be touched before.
extension AIOContext {
  /// Reads from a file. Corresponds to `pread(2)` (`IOCB_CMD_PREAD`).
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffer: The buffer to read into.
  ///   - range: The part of the buffer to read into; all of it unless given.
  ///   - options: What the read is to do beside reading.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The number of bytes read: fewer than asked for only if the file ends there, 0
  ///   beyond its end.
  public func read(
    _ file: AIOFile, at offset: Int64, into buffer: inout AIOUniqueBuffer,
    range: Range<Int>? = nil, options: AIOReadOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(.read(into: .buffer(buffer.part(range))), file, offset, options.request)
  }

  /// Reads from a file into several buffers, one after the other. Corresponds to `preadv(2)`
  /// (`IOCB_CMD_PREADV`).
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffers: The buffers to read into, up to 1024, which must not be touched until the call
  ///     returns.
  ///   - options: What the read is to do beside reading.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The number of bytes read: fewer than asked for only if the file ends there, 0
  ///   beyond its end.
  public func read(
    _ file: AIOFile, at offset: Int64, into buffers: [AIOBuffer],
    options: AIOReadOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(.read(into: .buffers(buffers)), file, offset, options.request)
  }

  /// Writes to a file. Corresponds to `pwrite(2)` (`IOCB_CMD_PWRITE`).
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - offset: The offset in the file in bytes, 0 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``. A file opened with `.append` is written at its end instead.
  ///   - buffer: The bytes to write.
  ///   - range: The part of the buffer to write; all of it unless given.
  ///   - options: What the write is to do beside writing.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The number of bytes written, which is all that was asked for.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffer: borrowing AIOUniqueBuffer,
    range: Range<Int>? = nil, options: AIOWriteOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(.write(from: .buffer(buffer.part(range))), file, offset, options.request)
  }

  /// Writes several buffers to a file, one after the other. Corresponds to `pwritev(2)`
  /// (`IOCB_CMD_PWRITEV`).
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - offset: The offset in the file in bytes, 0 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``. A file opened with `.append` is written at its end instead.
  ///   - buffers: The bytes to write, in up to 1024 buffers, which must not be changed until the
  ///     call returns.
  ///   - options: What the write is to do beside writing.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The number of bytes written, which is all that was asked for.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffers: [AIOBuffer],
    options: AIOWriteOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(.write(from: .buffers(buffers)), file, offset, options.request)
  }

  /// Reads from a file into memory of the caller's. Corresponds to `pread(2)` (`IOCB_CMD_PREAD`).
  ///
  /// Everything else is as for the callback verb that takes a pointer.
  ///
  /// - Warning: The memory must stay allocated, and untouched, until the call returns. Nothing
  ///   checks that; ``AIOUniqueBuffer`` takes care of it.
  @unsafe
  public func read(
    _ file: AIOFile, at offset: Int64, into memory: UnsafeMutableRawBufferPointer,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try unsafe await perform(.read(into: .raw(memory)), file, offset)
  }

  /// Writes pieces of memory of the caller's to a file, one after the other. Corresponds to
  /// `pwritev(2)` (`IOCB_CMD_PWRITEV`).
  ///
  /// Everything else is as for the callback verb that takes pointers.
  ///
  /// - Warning: The memory must stay allocated, and unchanged, until the call returns. Nothing
  ///   checks that; ``AIOUniqueBuffer`` takes care of it.
  @discardableResult
  @unsafe
  public func write(
    _ file: AIOFile, at offset: Int64, from memory: [UnsafeRawBufferPointer],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try unsafe await perform(.write(from: .constants(memory)), file, offset)
  }

  /// Makes the data of a file durable, and its metadata. Corresponds to `fsync(2)`
  /// (`IOCB_CMD_FSYNC`).
  ///
  /// It covers the writes that had completed before this call. After a failure, data written since
  /// the last sync that succeeded may be lost and must be written again: see
  /// ``AIOError/recoverySuggestion``.
  public func fsync(
    _ file: AIOFile,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    _ = try await perform(.fsync, file, 0)
  }

  /// Makes the data of a file durable, and of its metadata only what is needed to read the data
  /// back (the size, but not the times). Corresponds to `fdatasync(2)` (`IOCB_CMD_FDSYNC`).
  ///
  /// Everything else is as for ``fsync(_:isolation:)``.
  public func fdatasync(
    _ file: AIOFile,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    _ = try await perform(.fdatasync, file, 0)
  }

  /// Closes the context, and returns once everything has been freed: see
  /// ``close(queue:completion:)``. Cancellation does not shorten it.
  public func close(isolation: isolated (any Actor)? = #isolation) async {
    // Resumed once: `close` calls back once.
    await suspended(isolation: isolation) { resumption in
      close { resumption.resume() }
    }
  }
}

// MARK: - Beneath

extension AIOContext {
  /// Makes a request, and waits for its completion.
  @inline(__always)
  func perform(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ options: RequestOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    let length = try operation.check(file.file, offset, options)
    guard loop.jobs.needsPreference else {
      return try await performHere(
        operation, file, offset, length, options, isolation: isolation)
    }
    // Always in the same way, or Swift, which enqueues such a task at each step, would change the
    // order of the calls.
    return try await withTaskExecutorPreference(taskExecutor, isolation: isolation) {
      () throws(AIOError) in
      try await performCancellably(
        operation, file, offset, length, options, isolation: isolation)
    }
  }

  /// Makes a request that has been checked, and waits for its completion. Swift resumes the task on
  /// its preferred executor.
  private func performHere(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ length: Int,
    _ options: RequestOptions, isolation: isolated (any Actor)?
  ) async throws(AIOError) -> Int {
    // A request that the kernel gets at once cannot be cancelled: it needs no cancellation handler,
    // which would take a third of the call's time.
    if options.isEmpty,
      loop.submitsNext(operation.verb, file.file, offset: offset, length: length)
    {
      let result = await suspended(isolation: isolation) {
        (resumption: Resumption<Result<Int, AIOError>>) in
        // Resumed once: by the one completion of an accepted request, or here if it is refused.
        guard !Task.isCancelled else {
          return resumption.resume(
            returning: .failure(cancelled(operation, file, offset, length, options)))
        }
        do throws(AIOError) {
          _ = try accept(
            operation, file, offset, length, options,
            .task(resumption, isIsolated: isolation != nil), mayWait: false)
        } catch {
          resumption.resume(
            returning: error.code == .full
              ? .success(Request<Delivery>.wouldWait) : .failure(error))
        }
      }
      let count = try result.get()
      if count != Request<Delivery>.wouldWait { return count }
    }
    return try await performCancellably(
      operation, file, offset, length, options, isolation: isolation)
  }

  /// The same, for a request that may have to wait, and may be cancelled meanwhile.
  private func performCancellably(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ length: Int,
    _ options: RequestOptions,
    isolation: isolated (any Actor)?
  ) async throws(AIOError) -> Int {
    let loop = loop
    let state = CancellationState()
    let result = await withTaskCancellationHandler {
      // Resumed once: by the one completion of an accepted request, or here if it is not accepted.
      await suspended(isolation: isolation) { (resumption: Resumption<Result<Int, AIOError>>) in
        if state.isCancelled {
          return resumption.resume(
            returning: .failure(cancelled(operation, file, offset, length, options)))
        }
        let isIsolated = isolation != nil
        do throws(AIOError) {
          let id = try accept(
            operation, file, offset, length, options, .task(resumption, isIsolated: isIsolated))
          state.accepted(id, by: loop)
        } catch {
          guard error.code == .full else {
            return resumption.resume(returning: .failure(error))
          }
          // In this call and not in a later one, so that waiters are in the order of the calls.
          let waiter = Waiter()
          acceptLater(
            operation, file, offset, options, waiter, .task(resumption, isIsolated: isIsolated))
          state.waits(waiter, for: loop)
        }
      }
    } onCancel: {
      state.cancel(on: loop)
    }
    return try result.get()
  }

  private func cancelled(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ length: Int,
    _ options: RequestOptions
  ) -> AIOError {
    .cancelled(.init(operation, file.file, offset, length, options), transferred: 0)
  }

  /// Makes a request, which waits behind those that wait for a slot, if there is none.
  ///
  /// - Parameter delivery: Gets, once, on the loop the result of the request, or an error on the
  ///   thread that ends it before it has a slot, which may be this one.
  func acceptLater(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ options: RequestOptions,
    _ waiter: Waiter, _ delivery: consuming Delivery
  ) {
    let file = file.file
    let length: Int
    do throws(AIOError) {
      length = try operation.check(file, offset, options)
    } catch {
      return delivery.complete(.failure(error))
    }
    guard file.retain() else {
      return delivery.complete(
        .failure(.fileClosed(.init(operation, file, offset, length, options))))
    }
    loop.admit(
      Request(
        operation: operation, file: file, offset: offset, length: length, options: options,
        attachment: delivery),
      waiter)
  }
}
