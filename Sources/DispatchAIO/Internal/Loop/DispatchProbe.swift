// SPDX-License-Identifier: Apache-2.0
//
// A trial of what the loop needs of Dispatch, which does not report its absence: without a
// descriptor for its epoll set, or a watch for the eventfd in it, the process is killed (SIGILL); a
// source that epoll_ctl refuses later never fires, nor does a timer without a timerfd. An accepted
// request would then never complete. So descriptors and watches are checked before Dispatch is
// used, and then a source and a timer are made whose events are known.

internal import CKernel
internal import Dispatch
internal import PlatformLibc
internal import Synchronization
internal import SystemPackage

enum DispatchProbe {
  /// The number of descriptors that must be free before Dispatch is used for the first time.
  /// Dispatch takes its epoll set, the eventfd that wakes its manager, and a timerfd for each
  /// clock; the context and the probe take an eventfd each, and all contexts one to end waits; and
  /// the rest is for the program's other threads meanwhile.
  private static let firstReserve = 8
  /// The number once Dispatch has its own: the context's, and the probe's.
  private static let reserve = 2
  /// The time to wait for an event that is due at once, before looking for a reason.
  private static let patience = DispatchTimeInterval.seconds(1)
  /// The time to wait on if there is none: the machine may be that slow.
  private static let lastPatience = DispatchTimeInterval.seconds(10)

  /// Whether the probe has passed in this process: then Dispatch has all that it needs for itself.
  private static let hasPassed = Atomic<Bool>(false)

  /// The number of descriptors that `checkDescriptors` requires to be free.
  static var descriptorsNeeded: Int {
    hasPassed.load(ordering: .relaxed) ? reserve : firstReserve
  }

  /// Checks that the descriptors and the watches that Dispatch needs are free. Called before
  /// Dispatch is used. Other threads may take them afterwards, which nothing can prevent.
  ///
  /// - Throws: `EMFILE` or `ENFILE`; `ENOSPC` if the user's epoll watches are used up.
  static func checkDescriptors() throws(Errno) {
    var taken: [Int32] = []
    defer { for descriptor in taken { PlatformLibc.close(descriptor) } }
    let needed = descriptorsNeeded
    for _ in 0..<needed {
      let descriptor = ckernel_event_create()
      guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
      taken.append(descriptor)
    }
    // Its number is for an epoll set.
    PlatformLibc.close(taken.removeLast())
    if let errno = watchFailure(taken[0]) { throw errno }
  }

  /// The errno with which the kernel refuses to watch a descriptor; `nil` if it does not.
  private static func watchFailure(_ descriptor: Int32) -> Errno? {
    let answer = ckernel_poll_set_try(descriptor)
    return answer == 0 ? nil : Errno(rawValue: -answer)
  }

  /// Finds out whether sources and timers fire. Called once the context's source has been
  /// activated. Takes some tens of microseconds; a second or more if they do not fire.
  ///
  /// - Returns: `nil` if they do; or the reason why a source does not, most likely `ENOSPC`;
  ///   `EMFILE` if a timer does not; or the errno of `eventfd(2)`.
  static func failure() -> Errno? {
    let descriptor = ckernel_event_create()
    guard descriptor >= 0 else { return Errno(rawValue: -descriptor) }
    let queue = DispatchQueue(label: "DispatchAIO.probe")
    let fired = DispatchSemaphore(value: 0)
    let source = DispatchSource.makeReadSource(fileDescriptor: descriptor, queue: queue)
    source.setEventHandler {
      // Drained, or the source would fire repeatedly until it is cancelled.
      _ = ckernel_event_drain(descriptor)
      fired.signal()
    }
    source.setCancelHandler { PlatformLibc.close(descriptor) }
    source.activate()
    defer { source.cancel() }
    _ = ckernel_event_signal(descriptor)
    if fired.wait(timeout: .now() + patience) == .timedOut {
      if let errno = watchFailure(descriptor) { return errno }
      guard fired.wait(timeout: .now() + lastPatience) == .success else { return .noSpace }
    }
    if hasPassed.load(ordering: .relaxed) { return nil }
    let timed = DispatchSemaphore(value: 0)
    queue.asyncAfter(deadline: .now() + .nanoseconds(1)) { timed.signal() }
    guard timed.wait(timeout: .now() + lastPatience) == .success else { return .tooManyOpenFiles }
    hasPassed.store(true, ordering: .relaxed)
    return nil
  }
}
