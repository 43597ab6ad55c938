// SPDX-License-Identifier: Apache-2.0

internal import CKernel

/// The continuation of a suspended task, to be resumed exactly once, on any thread.
///
/// It is an `UnsafeContinuation` that also informs the Thread Sanitizer: if a continuation is
/// resumed before its task has suspended itself, Swift's runtime continues the task without telling
/// the sanitizer that everything before the resumption has happened.
///
/// - Safety: `@safe` because the only misuse of the continuation, resuming it twice or never, is
///   ruled out by each caller of `suspended`, which says why.
@safe
struct Resumption<Value: Sendable>: Sendable {
  private let continuation: UnsafeContinuation<Value, Never>

  fileprivate init(_ continuation: UnsafeContinuation<Value, Never>) {
    unsafe self.continuation = continuation
  }

  /// A number that no other suspension has while this one lasts.
  fileprivate var identity: UInt {
    // A continuation is a pointer to its task. The number is only compared.
    unsafe unsafeBitCast(continuation, to: UInt.self)
  }

  /// Resumes the task.
  func resume(returning value: Value) {
    ckernel_happens_before(identity)
    // Resumed once, by the rule of this type.
    unsafe continuation.resume(returning: value)
  }
}

extension Resumption<Void> {
  func resume() { resume(returning: ()) }
}

/// Suspends the task until the resumption that `body` gets is resumed, and returns its value.
@inline(__always)
func suspended<Value: Sendable>(
  isolation: isolated (any Actor)?, _ body: (Resumption<Value>) -> Void
) async -> Value {
  var identity: UInt = 0
  // Resumed once: the caller of this function says why.
  let value = await unsafe withUnsafeContinuation(isolation: isolation) { continuation in
    let resumption = unsafe Resumption<Value>(continuation)
    identity = resumption.identity
    body(resumption)
  }
  ckernel_happens_after(identity)
  return value
}
