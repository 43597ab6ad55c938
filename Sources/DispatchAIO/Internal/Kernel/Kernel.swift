// SPDX-License-Identifier: Apache-2.0
//
// The calls that the engine makes to a kernel. The product has two implementations, `LinuxKernel`
// and `ThreadKernel`, of which `SystemKernel` is the one that a context was made with; the tests
// have a simulated one that gives every answer that the real one can give, from a seed.

internal import CKernel

/// A kernel AIO context: a bounded set of requests in flight and a ring of their completions.
///
/// Answers are raw, as the system calls give them: a count, or a negative errno. There is no
/// `cancel`: `io_cancel(2)` refuses every file operation, in flight or not, so that the call would
/// only cost time.
protocol Kernel: Sendable {
  /// Whether it takes requests. If not, nothing is submitted, nothing is reaped, and nobody waits
  /// in it: every request is a system call on an offload thread, and Dispatch reports readiness.
  var takesRequests: Bool { get }

  /// Submits the first `count` of `requests`, in order. Corresponds to `io_submit(2)`.
  ///
  /// - Returns: The number of requests taken, from the first on; or the first's negative errno.
  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>, count: Int)
    -> Int

  /// Moves up to `capacity` completions out of the ring.
  ///
  /// - Parameter nanoseconds: The longest wait for the first, if there is none; below 1 s.
  /// - Returns: The number of completions; or a negative errno, with none taken.
  func reap(
    into events: UnsafeMutablePointer<CompletionEvent>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int

  /// The time by the monotonic clock, in nanoseconds. The tests' kernel has a clock of its own, so
  /// that a run of theirs does not depend on how fast it is.
  var now: UInt64 { get }

  /// A completion of the kernel's own was taken out of the ring: that which bounds a wait.
  func waitTimerFired()

  /// Waits for everything in flight, then frees the context. Corresponds to `io_destroy(2)`, which
  /// takes tens of milliseconds even when idle, and so is never called on the loop. No other call
  /// may follow.
  func destroy()
}

/// The tags of completions that are not a request's: no slot has them.
enum ReservedTag {
  /// The completion that `wake` makes.
  static let wake = UInt64.max
  /// That of the poll request.
  static let poll = UInt64.max - 1
  /// That of the timer of waits; the least of them.
  static let timer = UInt64.max - 2
}

extension Kernel {
  var takesRequests: Bool { true }

  var now: UInt64 {
    @inline(__always) get { ckernel_monotonic_nanoseconds() }
  }

  func waitTimerFired() {}
}
