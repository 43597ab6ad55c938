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
  /// Names the completion that `wake` makes, that of the poll request, and that of the timer of
  /// waits: no slot has them.
  static let wakeTag = UInt64.max
  static let pollTag = UInt64.max - 1
  static let timerTag = UInt64.max - 2
  /// Room for the poll request, the timer of waits, and completions that `wake` makes: several
  /// threads may be about to, while the loop has stopped waiting already.
  private static let extraRoom = 6
  /// A descriptor that is always readable: an eventfd that has counted one, and is never read.
  private static let readableDescriptor: Int32 = {
    let descriptor = clinux_eventfd()
    if descriptor >= 0 { clinux_eventfd_signal(descriptor) }
    return descriptor
  }()

  private let context: io_context_t?
  private let waitTimer = WaitTimer()

  /// `io_setup(2)`.
  ///
  /// - Parameter room: how many requests may be in flight; the kernel promises room for the
  ///   completions of exactly that many, and a few more.
  init(room: Int) throws(Errno) {
    var context: io_context_t?
    let answer = unsafe io_setup(Int32(room + Self.extraRoom), &context)
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
    if clinux_masks_size_signal() != 0 {
      return Int(unsafe io_submit(context, count, requests))
    }
    // Neither one of Dispatch's threads nor one that masks SIGXFSZ by itself, as the main thread: a
    // write past RLIMIT_FSIZE would end the process.
    var signal = clinux_size_signal()
    unsafe clinux_size_signal_block(&signal)
    defer { unsafe clinux_size_signal_restore(&signal, 1) }
    return Int(unsafe io_submit(context, count, requests))
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
    if nanoseconds > 0, waitTimer.set(nanoseconds, in: self) {
      return Int(unsafe io_getevents(context, 1, capacity, events, nil))
    }
    var timeout = timespec(tv_sec: 0, tv_nsec: Int(nanoseconds))
    return Int(unsafe io_getevents(context, nanoseconds > 0 ? 1 : 0, capacity, events, &timeout))
  }

  /// Ends the `reap` that another thread waits in, by a request that is complete at once: a poll
  /// for a descriptor that is readable. Where there is no such thing (before Linux 4.18), the wait
  /// ends by itself.
  func wake() {
    guard unsafe context != nil, Self.readableDescriptor >= 0 else { return }
    var block = unsafe SubmissionBatch.poll(Self.readableDescriptor, tag: Self.wakeTag)
    unsafe withUnsafeMutablePointer(to: &block) { block in
      var pointer: UnsafeMutablePointer<iocb>? = unsafe block
      _ = unsafe submit(&pointer, count: 1)
    }
  }

  func waitTimerFired() { waitTimer.fired() }

  func destroy() {
    if unsafe context != nil { unsafe io_destroy(context) }
    waitTimer.close()
  }
}
