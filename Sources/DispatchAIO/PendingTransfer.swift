// SPDX-License-Identifier: Apache-2.0
//
// A read or write that is under way while its task does something else: what the chunk reader and
// the file writer keep several of.

internal import Synchronization

/// One request, made now and awaited later, or never.
final class PendingTransfer: Sendable {
  private enum State {
    case underway
    case awaited(Resumption<Result<Int, AIOError>>)
    case completed(Result<Int, AIOError>)
  }

  private let state = Lock(State.underway)
  private let waiter = Waiter()
  private let context: AIOContext

  /// Makes the request; where there is no room, it waits in line.
  init(
    _ operation: Operation, _ file: AIOFile, at offset: Int64, on context: AIOContext
  ) {
    self.context = context
    context.acceptLater(
      operation, file, offset, [], waiter,
      .callback({ [self] in completed($0) }, queue: nil))
  }

  private func completed(_ result: Result<Int, AIOError>) {
    let waiting = state.withLock { state -> Resumption<Result<Int, AIOError>>? in
      defer { state = .completed(result) }
      if case .awaited(let resumption) = state { return resumption }
      return nil
    }
    waiting?.resume(returning: result)
  }

  /// Waits for the completion; one task at a time. Does not end early, so that the buffer is nobody
  /// else's when it returns: a cancelled task's request is cancelled, if it can be.
  func value(isolation: isolated (any Actor)?) async throws(AIOError) -> Int {
    guard context.loop.jobs.needsPreference else {
      return try await valueHere(isolation: isolation)
    }
    return try await withTaskExecutorPreference(context.taskExecutor, isolation: isolation) {
      () throws(AIOError) in
      try await valueHere(isolation: isolation)
    }
  }

  private func valueHere(isolation: isolated (any Actor)?) async throws(AIOError) -> Int {
    let result = await withTaskCancellationHandler {
      await suspended(isolation: isolation) { (resumption: Resumption<Result<Int, AIOError>>) in
        let result = state.withLock { state -> Result<Int, AIOError>? in
          if case .completed(let result) = state { return result }
          state = .awaited(resumption)
          return nil
        }
        if let result { resumption.resume(returning: result) }
      }
    } onCancel: {
      cancel()
    }
    return try result.get()
  }

  /// Takes it back if the kernel does not have it.
  func cancel() { context.loop.cancel(waiter) }
}
