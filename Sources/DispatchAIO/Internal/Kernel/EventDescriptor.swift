// SPDX-License-Identifier: Apache-2.0

internal import CKernel
internal import PlatformLibc
internal import SystemPackage

/// The eventfd that the kernel counts completions on (on Darwin a kqueue, which offload threads
/// signal), non-blocking and close-on-exec. The owner
/// closes it.
struct EventDescriptor: Sendable {
  let rawValue: Int32

  init() throws(Errno) {
    rawValue = ckernel_event_create()
    guard rawValue >= 0 else { throw Errno(rawValue: -rawValue) }
  }

  /// Clears the counter, so that the source fires only for later completions. The counter's value
  /// means nothing: completions can be in the ring and not yet counted, or have been reaped.
  func drain() {
    _ = ckernel_event_drain(rawValue)
  }

  func close() {
    PlatformLibc.close(rawValue)
  }
}
