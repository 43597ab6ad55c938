// SPDX-License-Identifier: Apache-2.0

public import DispatchAIO
public import Logging

extension Logger {
  /// Logs by what a context reads and writes files; what is slow is noticed.
  public func logKernel(of context: AIOContext) {
    if context.usesKernelAIO {
      info("files by kernel AIO, queue depth \(context.queueDepth)")
    } else {
      notice("files by threads, without kernel AIO: every request is a system call")
    }
  }
}
