// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

/// The kernel of a context without kernel AIO: it takes no requests, so that each is a system call
/// on an offload thread.
struct ThreadKernel: Kernel {
  var takesRequests: Bool { false }

  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>, count: Int)
    -> Int
  {
    -Int(ENOSYS)
  }

  func reap(
    into events: UnsafeMutablePointer<CompletionEvent>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int { 0 }

  func destroy() {}
}
