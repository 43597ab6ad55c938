// SPDX-License-Identifier: Apache-2.0

internal import CLibAIO
internal import Glibc

/// The kernel of a context without kernel AIO: it takes no requests, so that each is a system call
/// on an offload thread.
struct ThreadKernel: Kernel {
  var takesRequests: Bool { false }

  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>, count: Int) -> Int {
    -Int(ENOSYS)
  }

  func reap(
    into events: UnsafeMutablePointer<io_event>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int { 0 }

  func destroy() {}
}
