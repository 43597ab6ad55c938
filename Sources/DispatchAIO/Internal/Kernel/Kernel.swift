// SPDX-License-Identifier: Apache-2.0
//
// The calls that the engine makes to a kernel. The product has one implementation, `LinuxKernel`;
// the tests have a simulated one that gives every answer that the real one can give, from a seed.

internal import CLibAIO
internal import CLinux

/// A kernel AIO context: a bounded set of requests in flight and a ring of their completions.
///
/// Answers are raw, as the system calls give them: a count, or a negative errno. There is no
/// `cancel`: `io_cancel(2)` refuses every file operation, in flight or not, so that the call would
/// only cost time.
protocol Kernel: Sendable {
  /// Submits the first `count` of `requests`, in order. Corresponds to `io_submit(2)`.
  ///
  /// - Returns: The number of requests taken, from the first on; or the first's negative errno.
  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>, count: Int) -> Int

  /// Moves up to `capacity` completions out of the ring.
  ///
  /// - Parameter nanoseconds: The longest wait for the first, if there is none; below 1 s.
  /// - Returns: The number of completions; or a negative errno, with none taken.
  func reap(
    into events: UnsafeMutablePointer<io_event>, capacity: Int, waiting nanoseconds: UInt64
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

extension Kernel {
  var now: UInt64 {
    @inline(__always) get { clinux_monotonic_nanoseconds() }
  }

  func waitTimerFired() {}
}
