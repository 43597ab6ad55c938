// SPDX-License-Identifier: Apache-2.0
//
// What the engine asks of a kernel. The product has one implementation, `LinuxKernel`; the tests
// have a simulated one that gives every answer the real one can give, from a seed.

internal import CLibAIO

/// A kernel AIO context: a bounded set of requests in flight and a ring of their completions.
///
/// Answers are raw, as the system calls give them: a count, or a negative errno. There is no
/// `cancel`: `io_cancel` refuses every file operation, in flight or not, so that calling it would
/// only cost time.
protocol Kernel: Sendable {
  /// `io_submit(2)`: hands over the first `count` of `requests`, in order.
  ///
  /// - Returns: how many were taken, from the first on; or the negative errno of the first.
  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>, count: Int) -> Int

  /// Moves up to `capacity` completions out of the ring.
  ///
  /// - Parameter nanoseconds: for how long to wait for the first, if there is none; below 1 s.
  /// - Returns: how many, or a negative errno, in which case none was taken.
  func reap(
    into events: UnsafeMutablePointer<io_event>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int

  /// A completion of the kernel's own was taken out of the ring: that which bounds a wait.
  func waitTimerFired()

  /// `io_destroy(2)`: waits for everything in flight, then frees the context. It takes tens of
  /// milliseconds even when idle: never on the loop. Nothing may be called after it.
  func destroy()
}

extension Kernel {
  func waitTimerFired() {}
}
