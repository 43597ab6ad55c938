// SPDX-License-Identifier: Apache-2.0
//
// Sockets, pipes and timers beside the disk, in one ring.

internal import Glibc
internal import SystemPackage

extension AIOContext {
  /// A source of events while a descriptor can be read from: see ``AIOSource``. In a Dispatch
  /// server it takes the place of `DispatchSource.makeReadSource(fileDescriptor:queue:)`.
  ///
  /// - Parameter fileDescriptor: Of a socket, a pipe, a terminal or the like, non-blocking for most
  ///   purposes. It stays the caller's, to be closed in the cancel handler.
  /// - Returns: The source, which delivers nothing before ``AIOSource/activate()``.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/unsupportedFile`` for a regular file or a
  ///   directory, which are always ready; ``AIOError/Code/exists`` when the descriptor has a read
  ///   source already; ``AIOError/Code/descriptorLimit`` where the process or the user has no more
  ///   descriptors or watches; ``AIOError/Code/contextClosed``; or ``AIOError/Code/system``, for a
  ///   bad descriptor.
  public func makeReadSource(fileDescriptor: Int32) throws(AIOError) -> AIOSource {
    try makeSource(fileDescriptor, isWriter: false)
  }

  /// A source of events while a descriptor can be written to. As
  /// ``makeReadSource(fileDescriptor:)``; a descriptor may have one of each.
  public func makeWriteSource(fileDescriptor: Int32) throws(AIOError) -> AIOSource {
    try makeSource(fileDescriptor, isWriter: true)
  }

  private func makeSource(_ fd: Int32, isWriter: Bool) throws(AIOError) -> AIOSource {
    let source = AIOSource(fd: fd, isWriter: isWriter, loop: loop)
    if Fork.isChild { throw .forked(.init(operation: .poll, descriptor: fd)) }
    do throws(Errno) {
      try loop.readiness.add(source, isWriter: isWriter)
    } catch {
      throw .polling(fd, error)
    }
    loop.readinessChanged(hasHandlers: false)
    return source
  }

  /// A timer, which is scheduled with ``AIOTimerSource/schedule(deadline:repeating:leeway:)``. It
  /// takes the place of `DispatchSource.makeTimerSource(queue:)`.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/descriptorLimit``,
  ///   ``AIOError/Code/contextClosed`` or ``AIOError/Code/system``: the errno of
  ///   `timerfd_create(2)`.
  public func makeTimerSource() throws(AIOError) -> AIOTimerSource {
    if Fork.isChild { throw .forked(.init(operation: .poll)) }
    do throws(Errno) {
      try loop.readiness.prepareTimers()
    } catch {
      throw .polling(nil, error)
    }
    loop.readinessChanged(hasHandlers: false)
    return AIOTimerSource(fd: -1, isWriter: false, loop: loop)
  }

  /// Waits once for a descriptor to be ready. Corresponds to `poll(2)`.
  ///
  /// - Parameters:
  ///   - fileDescriptor: Of a socket, a pipe, a terminal or the like; not to be closed before the
  ///     completion.
  ///   - events: What for; errors and hang-ups count always.
  ///   - completion: Called once, on the context's queue: with what it is ready for, or
  ///     ``AIOError/Code/cancelled`` or ``AIOError/Code/contextClosed``.
  /// - Returns: The poll, to cancel it.
  /// - Throws: As ``makeReadSource(fileDescriptor:)``.
  @discardableResult
  public func poll(
    _ fileDescriptor: Int32, for events: AIOPollEvents,
    completion: @escaping @Sendable (Result<AIOPollEvents, AIOError>) -> Void
  ) throws(AIOError) -> AIOPoll {
    let poll = OneShotPoll(fd: fileDescriptor, events: events, completion: completion)
    if Fork.isChild { throw .forked(poll.subject) }
    do throws(Errno) {
      try loop.readiness.add(poll)
    } catch {
      throw .polling(fileDescriptor, error)
    }
    loop.readinessChanged(hasHandlers: false)
    return AIOPoll(poll: poll, loop: loop)
  }

  /// Waits once for a descriptor to be ready. As ``poll(_:for:completion:)``; a cancelled task's
  /// call ends at once with ``AIOError/Code/cancelled``.
  public func poll(
    _ fileDescriptor: Int32, for events: AIOPollEvents,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> AIOPollEvents {
    let pending = Lock<(poll: AIOPoll?, isCancelled: Bool)>((nil, false))
    let result = await withTaskCancellationHandler {
      // Resumed once: by the poll's one completion, or at once when it is refused.
      await suspended(isolation: isolation) {
        (resumption: Resumption<Result<AIOPollEvents, AIOError>>) in
        do throws(AIOError) {
          let poll = try poll(fileDescriptor, for: events) { resumption.resume(returning: $0) }
          let isCancelled = pending.withLock { pending in
            pending.poll = poll
            return pending.isCancelled
          }
          if isCancelled { poll.cancel() }
        } catch {
          resumption.resume(returning: .failure(error))
        }
      }
    } onCancel: {
      let poll = pending.withLock { pending in
        pending.isCancelled = true
        return pending.poll
      }
      poll?.cancel()
    }
    return try result.get()
  }

  /// Runs a block once, after the handlers of this turn of the loop and before what they asked for
  /// goes down: where a server writes what it has gathered, as replies or one batch of a log. On
  /// the context's ``queue`` only; elsewhere it traps.
  public func beforeSubmit(_ body: @escaping @Sendable () -> Void) {
    loop.beforeSubmit(body)
  }

  /// Runs a block on the context's ``queue``, in a turn of the loop. From any thread; it ends a
  /// wait at once, whereas a block that is put on the queue itself may wait for as long as the loop
  /// waits (see ``Options/Waiting``). Blocks run in their order. After the context has closed, as
  /// `queue.async`.
  public func async(_ body: @escaping @Sendable () -> Void) {
    loop.async(body)
  }
}

/// A one-shot poll, to cancel it by: from ``AIOContext/poll(_:for:completion:)``.
public struct AIOPoll: Sendable {
  let poll: OneShotPoll
  let loop: Loop

  /// Ends the poll. From any thread.
  ///
  /// - Returns: ``AIOCancellation/cancelled`` when it completes with ``AIOError/Code/cancelled``;
  ///   ``AIOCancellation/alreadyCompleted`` when it has completed, or is just completing.
  @discardableResult
  public func cancel() -> AIOCancellation {
    guard loop.readiness.remove(poll) else { return .alreadyCompleted }
    loop.readiness.withLock { state in
      state.endedPolls.append((poll, .cancelledPoll(poll.subject)))
    }
    loop.readinessChanged(hasHandlers: true)
    return .cancelled
  }
}
