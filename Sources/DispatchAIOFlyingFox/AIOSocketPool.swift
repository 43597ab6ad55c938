// SPDX-License-Identifier: Apache-2.0
//
// FlyingFox's sockets in the ring. Its own pool is an actor with a thread that sits in epoll_wait,
// and each round of events goes from that thread to the actor and back. Here the sockets' set is
// one descriptor in the context's ring, whose events are handled on the context's queue.

#if FlyingFox
public import DispatchAIO
public import FlyingSocks
internal import Glibc
internal import SystemPackage

/// The sockets of a FlyingFox server in the ring of a context, in place of its epoll pool.
///
/// ```swift
/// let context = try AIOContext()
/// let server = HTTPServer(address: .loopback(port: 8080), pool: AIOSocketPool(context))
/// try await server.run()
/// ```
///
/// - A pool belongs to one server at a time, which prepares and runs it; several pools may share a
///   context, with each other and with anything else.
/// - Cancelling a task that waits ends its wait at once, and so does the end of ``run()``: both
///   with `CancellationError`.
/// - The waits cost the context no requests: a pool of any number of sockets is one source.
/// - A hang-up of the peer with nothing left to read, and an error of the socket, throw
///   `SocketError.disconnected`; a descriptor that cannot be waited for throws
///   `SocketError.failed`.
/// - The connections of a listening socket send small segments at once (`TCP_NODELAY`), unless they
///   are told not to. With TCP's delay FlyingFox's small answers take 40 ms on a connection that is
///   kept alive; without, large bodies of `Data` take more segments.
/// - A context that closes ends the pool: ``run()`` throws `SocketError.disconnected`, and waits
///   `CancellationError`.
public final class AIOSocketPool: AsyncSocketPool {
  private struct State {
    /// The waits, from `prepare` to the end of the run.
    var waits: SocketWaits?
    var isRunning = false
    var source: AIOSource?
    var runner: CheckedContinuation<Void, any Error>?
  }

  private let context: AIOContext
  private let delaysSmallSegments: Bool
  private let state = Lock(State())

  /// Makes a pool.
  ///
  /// - Parameters:
  ///   - context: The context whose ring the sockets are in. The pool holds it.
  ///   - delaysSmallSegments: Whether connections keep TCP's delay of small segments, which gathers
  ///     the 4 KiB pieces that FlyingFox writes a body of `Data` in, and holds up small answers.
  public init(_ context: AIOContext, delaysSmallSegments: Bool = false) {
    self.context = context
    self.delaysSmallSegments = delaysSmallSegments
  }

  deinit { end() }

  // MARK: AsyncSocketPool

  /// Prepares the pool to be run; sockets may wait from here on. A pool whose run has ended may be
  /// prepared and run once more.
  ///
  /// - Throws: `SocketError.failed` if there are no descriptors, the context has been closed, or
  ///   the pool is prepared already.
  public func prepare() async throws {
    let waits = try SocketWaits()
    let source: AIOSource
    do throws(AIOError) {
      source = try context.makeReadSource(fileDescriptor: waits.set)
    } catch {
      close(waits.set)
      throw SocketError.failed(
        type: "AIOSocketPool", errno: error.errno?.rawValue ?? 0, message: error.description)
    }
    source.setEventHandler { [weak self] in self?.resumeReady() }
    // Also when the context closes.
    source.setCancelHandler { [weak self, weak source, set = waits.set] in
      self?.sourceEnded(source)
      close(set)
    }
    let isNew = state.withLock { state in
      guard state.waits == nil else { return false }
      (state.waits, state.source) = (waits, source)
      return true
    }
    source.activate()
    guard isNew else {
      source.cancel()
      throw Self.refusal("the pool is prepared already")
    }
  }

  /// Runs the pool until its task is cancelled, or the context is closed. It works on the context's
  /// queue: the task only waits for the end.
  ///
  /// - Throws: `CancellationError`; `SocketError.disconnected` if the context is closed; or
  ///   `SocketError.failed` if the pool is not prepared, or runs already.
  public func run() async throws {
    try state.withLock { state throws(SocketError) in
      guard state.waits != nil else { throw Self.notPrepared }
      guard !state.isRunning else { throw Self.refusal("the pool runs already") }
      state.isRunning = true
    }
    defer { end() }
    try await withTaskCancellationHandler {
      // Resumed once: by whoever takes it from the state, or here if it was not put there.
      try await withCheckedThrowingContinuation { (runner: CheckedContinuation<Void, any Error>) in
        let refusal = state.withLock { state -> (any Error)? in
          if Task.isCancelled { return CancellationError() }
          guard state.waits != nil else { return SocketError.disconnected }
          state.runner = runner
          return nil
        }
        if let refusal { runner.resume(throwing: refusal) }
      }
    } onCancel: {
      state.withLock { $0.runner.take() }?.resume(throwing: CancellationError())
    }
  }

  /// Suspends the calling task until a socket is ready for any of `events`. Called by FlyingFox's
  /// `AsyncSocket`, from any task.
  public func suspendSocket(
    _ socket: Socket, untilReadyFor events: Socket.Events
  ) async throws {
    let wait = SocketWaits.Wait(socket.file.rawValue, events)
    if !delaysSmallSegments, events.contains(.read) { Self.setUpListener(wait.fd) }
    try await withTaskCancellationHandler {
      // Resumed once: by whoever takes it from the waits, or here if it was not put there.
      try await unsafe withUnsafeThrowingContinuation { continuation in
        let refusal = state.withLock { state -> (any Error)? in
          if wait.isCancelled { return CancellationError() }
          guard state.waits != nil else { return Self.notPrepared }
          do throws(SocketError) {
            try unsafe state.waits?.add(wait, continuation)
            return nil
          } catch {
            return error
          }
        }
        if let refusal { unsafe continuation.resume(throwing: refusal) }
      }
    } onCancel: {
      let resumption = state.withLock { state in
        wait.isCancelled = true
        return state.waits?.remove(wait, CancellationError())
      }
      resumption?.resume()
    }
  }

  private static var notPrepared: SocketError {
    refusal("the pool is not prepared, or its run has ended; call prepare() and then run()")
  }

  private static func refusal(_ message: String) -> SocketError {
    .failed(type: "AIOSocketPool", errno: EINVAL, message: message)
  }

  /// If a socket listens, turns off the delay of small segments (`TCP_NODELAY`), which the
  /// connections inherit: FlyingFox writes the head of an answer and its body one after the other,
  /// and a small body would wait for the peer's delayed acknowledgement of the head, 40 ms.
  private static func setUpListener(_ fd: Int32) {
    var (listens, length) = (Int32(0), socklen_t(MemoryLayout<Int32>.size))
    // Both calls use the variables during the call only.
    guard unsafe getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0, listens != 0
    else { return }
    var yes = Int32(1)
    // A Unix socket has no such delay, and refuses.
    _ = unsafe setsockopt(fd, Int32(IPPROTO_TCP), TCP_NODELAY, &yes, length)
  }

  // MARK: On the context's queue

  private func resumeReady() {
    var resumptions: [SocketWaits.Resumption] = []
    state.withLock { $0.waits?.takeReady(into: &resumptions) }
    for resumption in resumptions { resumption.resume() }
  }

  /// Called when a source has been cancelled: by the pool itself, or by the context, which closes.
  private func sourceEnded(_ source: AIOSource?) {
    guard let source else { return }
    let runner = state.withLock { state in
      state.source === source ? state.runner.take() : nil
    }
    end(source)
    runner?.resume(throwing: SocketError.disconnected)
  }

  // MARK: The end

  /// Ends the waits of all sockets, and accepts no more.
  ///
  /// - Parameter source: The source that has ended; if `nil`, any.
  private func end(_ source: AIOSource? = nil) {
    let (ended, resumptions) = state.withLock { state -> (AIOSource?, [SocketWaits.Resumption]) in
      if let source, state.source !== source { return (nil, []) }
      let resumptions = state.waits?.takeAll(CancellationError()) ?? []
      state.waits = nil
      state.isRunning = false
      return (state.source.take(), resumptions)
    }
    // The set is closed in its cancel handler.
    ended?.cancel()
    for resumption in resumptions { resumption.resume() }
  }
}
#endif
