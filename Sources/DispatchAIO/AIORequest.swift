// SPDX-License-Identifier: Apache-2.0

/// A handle of an accepted request, for ``AIOContext/cancel(_:)``.
///
/// It is a plain value: dropping it, or keeping it after the completion, is harmless, and no other
/// request is ever equal to it.
public struct AIORequest: Hashable, Sendable {
  let id: RequestID
  /// The number of the context that accepted it, so that another context does not take it for one
  /// of its own.
  let context: UInt32
}

/// A completion handler, called exactly once for each accepted request.
///
/// It gets the number of bytes transferred, which is all that was asked for (0 for a sync; fewer
/// for a read only if the file ends there), or the error.
public typealias AIOCompletion = @Sendable (Result<Int, AIOError>) -> Void

/// The outcome of an attempt to cancel a request.
public enum AIOCancellation: Hashable, Sendable {
  /// The request had not reached the kernel, and will not: it completes with
  /// ``AIOError/Code/cancelled``.
  case cancelled
  /// The request is with the kernel, which cancels no file I/O: it completes as if nobody had tried
  /// to cancel it. Its buffer stays the kernel's until then.
  case notCancellable
  /// The request has completed, or was cancelled before; or it belongs to another context.
  case alreadyCompleted
}
