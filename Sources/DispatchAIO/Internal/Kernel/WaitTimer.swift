// SPDX-License-Identifier: Apache-2.0
//
// The bound of the waits in a context's ring. A timeout of io_getevents is a timer that is set and
// cancelled for each wait, and where the machine is a virtual one each of both leaves it: 10 us for
// one wait, as much as all else that a small request costs. So the bound is a timerfd that the ring
// polls. Set once, it serves every wait until it fires; a server that is busy sets it once in as
// long as the bound is.

#if os(Linux) && !ThreadsOnly
internal import CKernel
internal import PlatformLibc

/// - Safety: `@unchecked Sendable` because it is touched by the one who reaps only, a turn of the
///   loop; and by the end, when there are no turns any more. `@safe` because nobody else has the
///   block, which lives as long as the timer.
@safe
final class WaitTimer: @unchecked Sendable {
  /// A timerfd; negative before the first wait, and where there is none.
  private var descriptor: Int32 = -1
  /// Whether the kernel has refused: waits have timeouts then.
  private var isRefused = false
  /// Whether the poll is in flight, or its completion in the ring.
  private var isSet = false
  /// When it fires, by the monotonic clock, in nanoseconds.
  private var deadline: UInt64 = 0
  /// The poll. The timer's own: nobody else has it.
  private let block = UnsafeMutablePointer<ControlBlock>.allocate(capacity: 1)

  deinit { unsafe block.deallocate() }

  /// Makes sure that a wait that begins now ends in so many nanoseconds at the latest. It may end
  /// before.
  ///
  /// - Returns: whether that is so; if not, the wait needs a timeout.
  func set(_ nanoseconds: UInt64, in kernel: borrowing LinuxKernel) -> Bool {
    if isRefused { return false }
    let end = ckernel_monotonic_nanoseconds() &+ nanoseconds
    if isSet && deadline <= end { return true }
    if descriptor < 0 { descriptor = ckernel_timer_create() }
    // There may be descriptors again before the next wait.
    if descriptor == -EMFILE || descriptor == -ENFILE { return false }
    guard descriptor >= 0, ckernel_timer_set(descriptor, end) == 0 else {
      isRefused = true
      return false
    }
    deadline = end
    // In flight already: that ends then, too.
    if isSet { return true }
    unsafe block.initialize(
      to: ControlBlock(.pollReadable, descriptor, tag: ReservedTag.timer, event: nil))
    let answer = unsafe kernel.submit(block)
    isSet = answer == 1
    // Otherwise the ring has no room now.
    if answer == -Int(EINVAL) { isRefused = true }
    return isSet
  }

  /// Its completion was taken out of the ring.
  func fired() { isSet = false }

  /// Frees it. Its poll must be over.
  func close() {
    if descriptor >= 0 { PlatformLibc.close(descriptor) }
    descriptor = -1
    isRefused = true
  }
}
#endif
