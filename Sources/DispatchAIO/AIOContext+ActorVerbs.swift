// SPDX-License-Identifier: Apache-2.0
//
// The callback verbs for an actor on the loop. Its closures stay in its isolation: the completion
// handler runs on the queue that the actor's jobs run on.

/// The callback verbs for actors whose executor is the context's ``executor``.
///
/// The completion handler belongs to the actor. It needs not be `@Sendable`: it may use the actor's
/// state without `await`, and capture what is not `Sendable`.
///
/// ```swift
/// try context.read(file, at: 0, into: buffer, isolation: self) { result in
///   self.received(result)
/// }
/// ```
///
/// The compiler knows that the caller is isolated to the actor that it gives. That the actor's
/// executor is the context's is checked by each call: anything else is a programmer error, and
/// traps. Everything else is as for the verbs without `isolation:`, whose handlers run on the
/// context's ``queue``; no task is made or resumed.
extension AIOContext {
  /// Reads from a file into a buffer: see
  /// ``read(_:at:into:options:queue:completion:)-(_,_,AIOBuffer,_,_,_)``.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffer: The buffer to read into, whose count is the number of bytes to read. It must not
  ///     be touched until the completion handler runs.
  ///   - options: What the read is to do beside reading.
  ///   - isolation: The caller's actor, whose executor is the context's ``executor``.
  ///   - completion: Gets the number of bytes read, in the isolation of the actor.
  @discardableResult
  public func read(
    _ file: AIOFile, at offset: Int64, into buffer: AIOBuffer, options: AIOReadOptions = [],
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try read(
      file, at: offset, into: buffer, options: options, completion: onQueue(completion, isolation))
  }

  /// Reads from a file into several buffers, one after the other: see
  /// ``read(_:at:into:options:isolation:completion:)-(_,_,AIOBuffer,_,_,_)``.
  @discardableResult
  public func read(
    _ file: AIOFile, at offset: Int64, into buffers: [AIOBuffer], options: AIOReadOptions = [],
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try read(
      file, at: offset, into: buffers, options: options, completion: onQueue(completion, isolation))
  }

  /// Writes a buffer to a file: see
  /// ``write(_:at:from:options:queue:completion:)-(_,_,AIOBuffer,_,_,_)``.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - offset: The offset in the file in bytes, 0 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffer: The bytes to write, which must not be changed until the completion handler runs.
  ///   - options: What the write is to do beside writing.
  ///   - isolation: The caller's actor, whose executor is the context's ``executor``.
  ///   - completion: Gets the number of bytes written, in the isolation of the actor.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffer: AIOBuffer, options: AIOWriteOptions = [],
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try write(
      file, at: offset, from: buffer, options: options, completion: onQueue(completion, isolation))
  }

  /// Writes several buffers to a file, one after the other: see
  /// ``write(_:at:from:options:isolation:completion:)-(_,_,AIOBuffer,_,_,_)``.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffers: [AIOBuffer], options: AIOWriteOptions = [],
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try write(
      file, at: offset, from: buffers, options: options, completion: onQueue(completion, isolation))
  }

  /// Reads any range of a file, into a buffer that the library makes: see
  /// ``read(_:from:count:queue:completion:)``.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more.
  ///   - count: The number of bytes; 0 or more.
  ///   - isolation: The caller's actor, whose executor is the context's ``executor``.
  ///   - completion: Gets the bytes, in the isolation of the actor.
  @discardableResult
  public func read(
    _ file: AIOFile, from offset: Int64, count: Int, isolation: isolated any Actor,
    completion: @escaping (Result<AIOBuffer, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    checkIsOnQueue(isolation)
    // It stays in the actor's isolation, whose queue is the one that calls it.
    nonisolated(unsafe) let completion = completion
    return try read(file, from: offset, count: count) { unsafe completion($0) }
  }

  /// Writes a buffer to any range of a file: see
  /// ``write(_:contentsOf:at:queue:completion:)-(_,AIOBuffer,_,_,_)``.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing.
  ///   - buffer: The bytes to write, which must not be changed until the completion handler runs.
  ///   - offset: The offset in the file in bytes, 0 or more.
  ///   - isolation: The caller's actor, whose executor is the context's ``executor``.
  ///   - completion: Gets the number of bytes written, in the isolation of the actor.
  @discardableResult
  public func write(
    _ file: AIOFile, contentsOf buffer: AIOBuffer, at offset: Int64,
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try write(file, contentsOf: buffer, at: offset, completion: onQueue(completion, isolation))
  }

  /// Writes several buffers to any range of a file, one after the other: see
  /// ``write(_:contentsOf:at:isolation:completion:)-(_,AIOBuffer,_,_,_)``.
  @discardableResult
  public func write(
    _ file: AIOFile, contentsOf buffers: [AIOBuffer], at offset: Int64,
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try write(file, contentsOf: buffers, at: offset, completion: onQueue(completion, isolation))
  }

  /// Appends a buffer to a file: see
  /// ``append(_:from:options:queue:completion:)-(_,AIOBuffer,_,_,_)``.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing; a direct one must end at a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffer: The bytes to append, which must not be changed until the completion handler runs.
  ///   - options: What the append is to do beside writing; not ``AIOWriteOptions/atomic``.
  ///   - isolation: The caller's actor, whose executor is the context's ``executor``.
  ///   - completion: Gets the offset at which the bytes begin, in the isolation of the actor.
  @discardableResult
  public func append(
    _ file: AIOFile, from buffer: AIOBuffer, options: AIOWriteOptions = [],
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try append(file, from: buffer, options: options, completion: onQueue(completion, isolation))
  }

  /// Appends several buffers to a file, one after the other: see
  /// ``append(_:from:options:isolation:completion:)-(_,AIOBuffer,_,_,_)``.
  @discardableResult
  public func append(
    _ file: AIOFile, from buffers: [AIOBuffer], options: AIOWriteOptions = [],
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try append(file, from: buffers, options: options, completion: onQueue(completion, isolation))
  }

  /// Sends a part of a file to a socket, behind a header: see
  /// ``send(_:at:count:to:header:completion:)``.
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - offset: The offset in the file in bytes, 0 or more.
  ///   - count: The number of bytes to send, 0 or more.
  ///   - socket: The descriptor of a non-blocking stream socket, which must stay open until the
  ///     completion handler runs.
  ///   - header: Bytes to send before those of the file.
  ///   - isolation: The caller's actor, whose executor is the context's ``executor``.
  ///   - completion: Gets the number of bytes of the file that were sent, in the isolation of the
  ///     actor.
  @discardableResult
  public func send(
    _ file: AIOFile, at offset: Int64, count: Int, to socket: Int32, header: [UInt8] = [],
    isolation: isolated any Actor, completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIOSend {
    try send(
      file, at: offset, count: count, to: socket, header: header,
      completion: onQueue(completion, isolation))
  }

  /// Makes the data of a file durable, and its metadata: see ``fsync(_:queue:completion:)``.
  ///
  /// - Parameters:
  ///   - file: The file.
  ///   - isolation: The caller's actor, whose executor is the context's ``executor``.
  ///   - completion: Gets 0, or an error, in the isolation of the actor.
  @discardableResult
  public func fsync(
    _ file: AIOFile, isolation: isolated any Actor,
    completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try fsync(file, completion: onQueue(completion, isolation))
  }

  /// Makes the data of a file durable: see ``fdatasync(_:queue:completion:)``. The parameters are
  /// those of ``fsync(_:isolation:completion:)``.
  @discardableResult
  public func fdatasync(
    _ file: AIOFile, isolation: isolated any Actor,
    completion: @escaping (Result<Int, AIOError>) -> Void
  ) throws(AIOError) -> AIORequest {
    try fdatasync(file, completion: onQueue(completion, isolation))
  }

  /// Waits once for a descriptor to be ready: see ``poll(_:for:completion:)``.
  ///
  /// - Parameters:
  ///   - fileDescriptor: The descriptor, which must stay open until the completion.
  ///   - events: The events to wait for.
  ///   - isolation: The caller's actor, whose executor is the context's ``executor``.
  ///   - completion: Gets the events that the descriptor is ready for, or an error, in the
  ///     isolation of the actor.
  @discardableResult
  public func poll(
    _ fileDescriptor: Int32, for events: AIOPollEvents, isolation: isolated any Actor,
    completion: @escaping (Result<AIOPollEvents, AIOError>) -> Void
  ) throws(AIOError) -> AIOPoll {
    checkIsOnQueue(isolation)
    // It stays in the actor's isolation, whose queue is the one that calls it.
    nonisolated(unsafe) let completion = completion
    return try poll(fileDescriptor, for: events) { unsafe completion($0) }
  }
}

// MARK: - Beneath

extension AIOContext {
  /// A handler that only the context's queue may call, and the same one for a request. Structures,
  /// because a closure that is cast by itself is wrapped twice.
  private struct Confined {
    let handler: (Result<Int, AIOError>) -> Void
  }
  private struct Sent {
    let handler: AIOCompletion
  }

  /// A completion handler that is called on the context's queue only, which is where the actor is.
  private func onQueue(
    _ completion: @escaping (Result<Int, AIOError>) -> Void, _ actor: any Actor
  ) -> AIOCompletion {
    checkIsOnQueue(actor)
    // The types differ by `@Sendable`, which the representation does not have. Another closure
    // around it would be an allocation for each request.
    return unsafe unsafeBitCast(Confined(handler: completion), to: Sent.self).handler
  }

  private func checkIsOnQueue(_ actor: any Actor) {
    // An actor holds its executor, and the caller the actor.
    guard unsafe actor.unownedExecutor.asSerialExecutor() === executor else {
      fatalError(
        """
        AIOContext: an actor of the type \(type(of: actor)) gave a completion handler of its own, \
        but its executor is not the context's; let its unownedExecutor be \
        context.executor.asUnownedSerialExecutor(), or give a @Sendable handler without isolation:
        """)
    }
  }
}
