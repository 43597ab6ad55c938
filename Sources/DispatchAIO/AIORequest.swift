// SPDX-License-Identifier: Apache-2.0

/// An accepted request, to name it by when cancelling. A plain value: to drop it, or to keep it
/// past the completion, is harmless, and no other request is ever equal to it.
public struct AIORequest: Hashable, Sendable {
  let id: RequestID
  /// Which context made it, so that another one is not misled by its number.
  let context: UInt32
}

/// Called once for a request: the number of bytes moved (0 for a sync, fewer than asked for at the
/// end of a file), or why it failed.
public typealias AIOCompletion = @Sendable (Result<Int, AIOError>) -> Void

/// What became of an attempt to cancel.
public enum AIOCancellation: Hashable, Sendable {
  /// The request had not reached the kernel, and will not: it completes with
  /// ``AIOError/Code/cancelled``.
  case cancelled
  /// The request is with the kernel, which cancels no file I/O: it completes as if nobody had
  /// asked. Its buffer stays the kernel's until then.
  case notCancellable
  /// The request has completed, or been cancelled, already; or it is another context's.
  case alreadyCompleted
}
