// SPDX-License-Identifier: Apache-2.0

internal import CLibAIO
internal import CLinux
internal import Glibc
internal import SystemPackage

/// The real kernel's AIO context, through libaio; or none, where there is no AIO.
///
/// - Safety: `@unchecked Sendable` because the handle is a constant, and the kernel takes the calls
///   of a context from any thread at once.
@safe
struct LinuxKernel: Kernel, @unchecked Sendable {
  private let context: io_context_t?

  /// `io_setup(2)`.
  ///
  /// - Parameter queueDepth: how many requests may be in flight; the kernel promises room for the
  ///   completions of exactly that many.
  init(queueDepth: Int) throws(Errno) {
    var context: io_context_t?
    let answer = unsafe io_setup(Int32(queueDepth), &context)
    guard answer == 0 else { throw Errno(rawValue: -answer) }
    unsafe self.context = unsafe context
  }

  /// No kernel AIO: for an engine that performs everything, and so never submits nor reaps.
  static var absent: LinuxKernel { LinuxKernel() }

  private init() { unsafe context = nil }

  @inline(__always)
  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>, count: Int) -> Int {
    // The kernel copies the control blocks and the vectors before it returns; only the data they
    // point to must stay, and the request table keeps that alive until the completion.
    Int(unsafe io_submit(context, count, requests))
  }

  @inline(__always)
  func reap(
    into events: UnsafeMutablePointer<io_event>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int {
    guard let context = unsafe context else { return 0 }
    // Taken out of the ring in user space: no system call at all. `-1`: the ring is of a make that
    // we do not know.
    let count = unsafe clinux_aio_ring_reap(
      UnsafeMutableRawPointer(context), UnsafeMutableRawPointer(events), UInt32(capacity))
    if count > 0 || count == 0 && nanoseconds == 0 { return Int(count) }
    return unsafe call(into: events, capacity: capacity, waiting: nanoseconds)
  }

  /// `io_getevents(2)`, whatever the ring looks like.
  func call(
    into events: UnsafeMutablePointer<io_event>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int {
    var timeout = timespec(tv_sec: 0, tv_nsec: Int(nanoseconds))
    return Int(unsafe io_getevents(context, nanoseconds > 0 ? 1 : 0, capacity, events, &timeout))
  }

  func destroy() {
    if unsafe context != nil { unsafe io_destroy(context) }
  }
}
