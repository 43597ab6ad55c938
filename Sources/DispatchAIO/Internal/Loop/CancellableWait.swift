// SPDX-License-Identifier: Apache-2.0

/// Makes what a task waits for, suspends the task until it has completed, and cancels it if the
/// task is cancelled meanwhile, or was before. (A request has a state of its own:
/// `CancellationState`.)
///
/// - Parameters:
///   - start: Makes it; what it gets is to be called once, from any thread, with the result, unless
///     `start` throws.
///   - cancel: Cancels it, which completes it; from any thread, and at any time after `start`.
func awaitCancellably<Handle: Sendable, Value: Sendable>(
  isolation: isolated (any Actor)?,
  _ start: (@escaping @Sendable (Result<Value, AIOError>) -> Void) throws(AIOError) -> Handle,
  cancel: @Sendable (Handle) -> Void
) async throws(AIOError) -> Value {
  let pending = Lock<(handle: Handle?, isCancelled: Bool)>((nil, false))
  let result = await withTaskCancellationHandler {
    // Resumed once: by the one completion, or at once when it is refused.
    await suspended(isolation: isolation) { (resumption: Resumption<Result<Value, AIOError>>) in
      do throws(AIOError) {
        let handle = try start { resumption.resume(returning: $0) }
        let isCancelled = pending.withLock { pending in
          pending.handle = handle
          return pending.isCancelled
        }
        if isCancelled { cancel(handle) }
      } catch {
        resumption.resume(returning: .failure(error))
      }
    }
  } onCancel: {
    let handle = pending.withLock { pending in
      pending.isCancelled = true
      return pending.handle
    }
    if let handle { cancel(handle) }
  }
  return try result.get()
}
