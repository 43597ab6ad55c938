// SPDX-License-Identifier: Apache-2.0

internal import CLinux

/// What lets a suspended task go on: used exactly once, on any thread.
///
/// An `UnsafeContinuation`, with a word to the Thread Sanitizer: when the continuation is resumed
/// before its task has got as far as suspending itself, Swift's runtime lets the task go on without
/// telling the sanitizer that what came before the resumption has happened.
///
/// - Safety: `@safe` because the one thing that may go wrong with the continuation, using it twice
///   or never, is ruled out by whoever suspends: each place says why.
@safe
struct Resumption<Value: Sendable>: Sendable {
  private let continuation: UnsafeContinuation<Value, Never>

  fileprivate init(_ continuation: UnsafeContinuation<Value, Never>) {
    unsafe self.continuation = continuation
  }

  /// A number that is this suspension's own as long as it lasts.
  fileprivate var identity: UInt {
    // A continuation is a pointer to its task, and this is only ever compared.
    unsafe unsafeBitCast(continuation, to: UInt.self)
  }

  func resume(returning value: Value) {
    clinux_happens_before(identity)
    // Once: so says the user of this type.
    unsafe continuation.resume(returning: value)
  }
}

extension Resumption<Void> {
  func resume() { resume(returning: ()) }
}

/// Suspends the task until the resumption that `body` gets is used.
@inline(__always)
func suspended<Value: Sendable>(
  isolation: isolated (any Actor)?, _ body: (Resumption<Value>) -> Void
) async -> Value {
  var identity: UInt = 0
  // Resumed once: so says the user of this function.
  let value = await unsafe withUnsafeContinuation(isolation: isolation) { continuation in
    let resumption = unsafe Resumption<Value>(continuation)
    identity = resumption.identity
    body(resumption)
  }
  clinux_happens_after(identity)
  return value
}
