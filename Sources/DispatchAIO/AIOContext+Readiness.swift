// SPDX-License-Identifier: Apache-2.0
//
// Sockets, pipes and timers beside the disk, in one ring: sources, polls, hooks and blocks.

internal import PlatformLibc
internal import SystemPackage

extension AIOContext {
  /// Makes a source of the readability of a descriptor: see ``AIOSource``. It takes the place of
  /// `DispatchSource.makeReadSource(fileDescriptor:queue:)`. Corresponds to `epoll_ctl(2)` with
  /// `EPOLLIN`. May be called from any thread, and never blocks.
  ///
  /// - Parameter fileDescriptor: The descriptor of a socket, a pipe, a terminal or the like,
  ///   usually non-blocking. It stays the caller's, which closes it in the cancel handler.
  /// - Returns: The source, which delivers no event before ``AIOSource/activate()``. Its handlers
  ///   run on the context's ``queue``.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/unsupportedFile`` for a regular file or a
  ///   directory, which are always ready; ``AIOError/Code/exists`` if the descriptor has a read
  ///   source already; ``AIOError/Code/descriptorLimit`` if the process has no more descriptors, or
  ///   the user no more epoll watches; ``AIOError/Code/contextClosed``;
  ///   ``AIOError/Code/forked``; or ``AIOError/Code/system``, for example for a number that is no
  ///   open descriptor.
  public func makeReadSource(fileDescriptor: Int32) throws(AIOError) -> AIOSource {
    try makeSource(fileDescriptor, isWriter: false)
  }

  /// Makes a source of the writability of a descriptor. Corresponds to `epoll_ctl(2)` with
  /// `EPOLLOUT`. Everything else is as for ``makeReadSource(fileDescriptor:)``; a descriptor may
  /// have one source of each kind.
  public func makeWriteSource(fileDescriptor: Int32) throws(AIOError) -> AIOSource {
    try makeSource(fileDescriptor, isWriter: true)
  }

  private func makeSource(_ fd: Int32, isWriter: Bool) throws(AIOError) -> AIOSource {
    let source = AIOSource(fd: fd, isWriter: isWriter, loop: loop)
    if Fork.isChild { throw .forked(.init(operation: .poll, descriptor: fd)) }
    do throws(Errno) {
      try loop.readiness.add(source)
    } catch {
      throw .polling(fd, error)
    }
    loop.readinessChanged(hasHandlers: false)
    return source
  }

  /// Makes a timer, which
  /// ``AIOTimerSource/schedule(deadline:repeating:leeway:)-(_,DispatchTimeInterval,_)`` sets. It
  /// takes the place of `DispatchSource.makeTimerSource(queue:)`. Corresponds to
  /// `timerfd_create(2)`, which the first timer of a context calls. May be called from any thread,
  /// and never blocks.
  ///
  /// - Returns: The timer, which has no event before it has been scheduled and activated. Its
  ///   handlers run on the context's ``queue``.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/descriptorLimit``,
  ///   ``AIOError/Code/contextClosed``, ``AIOError/Code/forked`` or ``AIOError/Code/system``.
  public func makeTimerSource() throws(AIOError) -> AIOTimerSource {
    if Fork.isChild { throw .forked(.init(operation: .poll)) }
    let timer = AIOTimerSource(loop: loop)
    do throws(Errno) {
      try loop.readiness.prepareTimers()
      try loop.readiness.add(timer)
    } catch {
      throw .polling(nil, error)
    }
    loop.readinessChanged(hasHandlers: false)
    return timer
  }

  /// Waits once for a descriptor to be ready. Corresponds to `poll(2)` without a timeout. May be
  /// called from any thread, and never blocks.
  ///
  /// - Parameters:
  ///   - fileDescriptor: The descriptor of a socket, a pipe, a terminal or the like, which must
  ///     stay open until the completion.
  ///   - events: The events to wait for; ``AIOPollEvents/error`` and ``AIOPollEvents/hangUp`` are
  ///     waited for in any case.
  ///   - completion: Called once, on the context's ``queue``: with the events that the descriptor
  ///     is ready for, or ``AIOError/Code/cancelled`` or ``AIOError/Code/contextClosed``.
  /// - Returns: The poll, for ``AIOPoll/cancel()``.
  /// - Throws: As ``makeReadSource(fileDescriptor:)``.
  @discardableResult
  public func poll(
    _ fileDescriptor: Int32, for events: AIOPollEvents,
    completion: @escaping @Sendable (Result<AIOPollEvents, AIOError>) -> Void
  ) throws(AIOError) -> AIOPoll {
    let poll = OneShotPoll(fd: fileDescriptor, events: events, completion: completion)
    if Fork.isChild { throw .forked(poll.subject) }
    do throws(Errno) {
      let id = try loop.readiness.add(poll)
      loop.readinessChanged(hasHandlers: false)
      return AIOPoll(id: id, loop: loop)
    } catch {
      throw .polling(fileDescriptor, error)
    }
  }

  /// Waits once for a descriptor to be ready. Corresponds to `poll(2)` without a timeout.
  ///
  /// - Parameters:
  ///   - fileDescriptor: The descriptor of a socket, a pipe, a terminal or the like, which must
  ///     stay open until the call returns.
  ///   - events: The events to wait for; ``AIOPollEvents/error`` and ``AIOPollEvents/hangUp`` are
  ///     waited for in any case.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The events that the descriptor is ready for.
  /// - Throws: As ``makeReadSource(fileDescriptor:)``; ``AIOError/Code/cancelled`` at once if the
  ///   task is cancelled.
  public func poll(
    _ fileDescriptor: Int32, for events: AIOPollEvents,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> AIOPollEvents {
    try await awaitCancellably(isolation: isolation) { completion throws(AIOError) in
      try poll(fileDescriptor, for: events, completion: completion)
    } cancel: {
      $0.cancel()
    }
  }

  /// Runs a block once, after the handlers of the current iteration of the loop and before the
  /// requests that they made are submitted: for work that gathers, such as one write of all replies
  /// to a socket, or of one group of log records.
  ///
  /// The call must be made on the context's ``queue``; anything else is a programmer error, and
  /// traps. If no turn of the loop is running, one is scheduled.
  ///
  /// - Parameter body: The block, which runs on the queue. A block that it registers itself runs
  ///   before the next submission. Once the context has closed, blocks run as blocks of the queue;
  ///   in a forked child, where no queue runs, never.
  public func beforeSubmit(_ body: @escaping @Sendable () -> Void) {
    loop.beforeSubmit(body)
  }

  /// Runs a block on the context's ``queue``, in a turn of the loop. May be called from any thread,
  /// and never blocks.
  ///
  /// It ends a wait of the loop at once, whereas a block on the queue itself is delayed for up to
  /// the bound of that wait (see ``Options/Waiting``).
  ///
  /// - Parameter body: The block. Blocks run in the order of the calls; once the context has
  ///   closed, as blocks of the queue; in a forked child, where no queue runs, never.
  public func async(_ body: @escaping @Sendable () -> Void) {
    loop.async(body)
  }
}

/// The handle of a one-shot poll: from ``AIOContext/poll(_:for:completion:)``.
public struct AIOPoll: Sendable {
  let id: PollTable.ID
  let loop: Loop

  /// Cancels the poll. May be called from any thread, and never blocks.
  ///
  /// - Returns: ``AIOCancellation/cancelled`` if the poll completes with
  ///   ``AIOError/Code/cancelled``; ``AIOCancellation/alreadyCompleted`` if it has completed, or is
  ///   about to, and in a forked child.
  @discardableResult
  public func cancel() -> AIOCancellation {
    guard loop.readiness.cancel(id) else { return .alreadyCompleted }
    loop.readinessChanged(hasHandlers: true)
    return .cancelled
  }
}
