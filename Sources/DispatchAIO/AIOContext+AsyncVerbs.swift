// SPDX-License-Identifier: Apache-2.0
//
// The verbs with `await`. Each suspends its task until the request's one completion.
//
// They take the isolation of their caller as theirs, and every closure within passes it on: so they
// run where their caller does, and an actor on the loop stays on the loop's thread.

internal import Synchronization

/// The same verbs for tasks: each returns when the request has completed, with the count of bytes,
/// and throws ``AIOError`` where the other face throws, or completes with a failure.
///
/// - **Room**: where the other face throws ``AIOError/Code/full``, these wait their turn, first come
///   first served, without a thread.
/// - **Cancellation**: if the task has been cancelled, nothing is submitted. If it is cancelled while
///   the request waits, for room or behind the queue depth, the request is taken out at once. Both
///   throw ``AIOError`` with the code ``AIOError/Code/cancelled``, which is to mean what
///   `CancellationError` means elsewhere (the throws are typed, and so it cannot be that). A request
///   that the kernel has is not disturbed: the call returns when it has completed, with what came of
///   it.
/// - **Threads**: a call runs on its caller's actor, or task executor, and nowhere else
///   (`isolation:` is not for you to give).
/// - **Memory**: an ``AIOUniqueBuffer`` is the call's until it returns, by its type. An array of
///   ``AIOBuffer`` is by rule: do not touch them until the call returns.
extension AIOContext {
  /// Reads from a file: `IOCB_CMD_PREAD`.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: Where in the file, in bytes.
  ///   - buffer: Where to.
  ///   - range: Which part of the buffer; all of it unless given.
  /// - Returns: The number of bytes read: fewer than asked for at the end of the file, 0 beyond it.
  public func read(
    _ file: AIOFile, at offset: Int64, into buffer: inout AIOUniqueBuffer,
    range: Range<Int>? = nil,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(.read(into: .buffer(buffer.part(range))), file, offset)
  }

  /// Reads from a file into several buffers, one after the other: `IOCB_CMD_PREADV`.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: Where in the file, in bytes.
  ///   - buffers: Where to, up to 1024; not to be touched until the call returns.
  /// - Returns: The number of bytes read: fewer than asked for at the end of the file, 0 beyond it.
  public func read(
    _ file: AIOFile, at offset: Int64, into buffers: [AIOBuffer],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(.read(into: .buffers(buffers)), file, offset)
  }

  /// Writes to a file: `IOCB_CMD_PWRITE`.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - offset: Where in the file, in bytes.
  ///   - buffer: What to write.
  ///   - range: Which part of the buffer; all of it unless given.
  /// - Returns: The number of bytes written: fewer than asked for when the disk became full on the
  ///   way.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffer: borrowing AIOUniqueBuffer,
    range: Range<Int>? = nil,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(.write(from: .buffer(buffer.part(range))), file, offset)
  }

  /// Writes several buffers to a file, one after the other: `IOCB_CMD_PWRITEV`.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - offset: Where in the file, in bytes.
  ///   - buffers: What to write, up to 1024; not to be changed until the call returns.
  /// - Returns: The number of bytes written: fewer than asked for when the disk became full on the
  ///   way.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffers: [AIOBuffer],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await perform(.write(from: .buffers(buffers)), file, offset)
  }

  /// Makes what was written to the file durable, and all that the file system knows of the file:
  /// `IOCB_CMD_FSYNC`. It covers the writes that had completed when it was asked for.
  public func fsync(
    _ file: AIOFile,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    _ = try await perform(.fsync, file, 0)
  }

  /// Makes what was written to the file durable, and of what the file system knows only what is
  /// needed to read it back (the size, but not the times): `IOCB_CMD_FDSYNC`. It covers the writes
  /// that had completed when it was asked for.
  public func fdatasync(
    _ file: AIOFile,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    _ = try await perform(.fdatasync, file, 0)
  }

  /// Closes the context, and returns once everything has been freed: see
  /// ``close(queue:completion:)``. Requests that wait for room get ``AIOError/Code/contextClosed``.
  /// Not cut short by cancellation.
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
  private func perform(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    guard loop.executor.needsPreference else {
      return try await performHere(operation, file, offset, isolation: isolation)
    }
    return try await withTaskExecutorPreference(loop.taskExecutor, isolation: isolation) {
      () throws(AIOError) in
      try await performHere(operation, file, offset, isolation: isolation)
    }
  }

  /// Makes a request, and waits for its completion; Swift resumes the task wherever it prefers to be.
  private func performHere(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, isolation: isolated (any Actor)?
  ) async throws(AIOError) -> Int {
    let loop = loop
    let state = CancellationState()
    let result = await withTaskCancellationHandler {
      // Resumed once: by the one completion that every accepted request has, or at once when it is
      // not accepted.
      await suspended(isolation: isolation) { (resumption: Resumption<Result<Int, AIOError>>) in
        if state.isCancelled {
          return resumption.resume(returning: .failure(cancelled(operation, file, offset)))
        }
        do throws(AIOError) {
          let request = try accept(operation, file, offset, nil) {
            resumption.resume(returning: $0)
          }
          state.accepted(request.id, by: loop)
        } catch {
          guard error.code == .full else {
            return resumption.resume(returning: .failure(error))
          }
          // Before anybody else runs, so that whoever called first is first.
          let waiter = Waiter()
          acceptLater(operation, file, offset, waiter) { resumption.resume(returning: $0) }
          state.waits(waiter, for: loop)
        }
      }
    } onCancel: {
      state.cancel(on: loop)
    }
    return try result.get()
  }

  private func cancelled(_ operation: Operation, _ file: AIOFile, _ offset: Int64) -> AIOError {
    // A request that would have been refused is refused as usual.
    do throws(AIOError) {
      let length = try operation.check(file.file, offset)
      return .cancelled(.init(operation, file.file, offset, length), transferred: 0)
    } catch {
      return error
    }
  }

  /// Gets a request in, behind those that wait already.
  ///
  /// - Parameter completion: called once: on the loop with what came of the request, or on whichever
  ///   thread ends it, this one also, before it gets as far.
  func acceptLater(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ waiter: Waiter,
    _ completion: @escaping AIOCompletion
  ) {
    let file = file.file
    let length: Int
    do throws(AIOError) {
      length = try operation.check(file, offset)
    } catch {
      return completion(.failure(error))
    }
    guard file.retain() else {
      return completion(.failure(.closed(.init(operation, file, offset, length))))
    }
    let request = Request(
      operation: operation, file: file, offset: offset, length: length,
      attachment: Delivery(completion: completion, queue: nil))
    if let error = loop.admit(request, waiter) {
      file.release()
      completion(.failure(error))
    }
  }
}
