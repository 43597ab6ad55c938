// SPDX-License-Identifier: Apache-2.0

internal import CKernel
internal import SystemPackage

/// An epoll set, or a kqueue, level-triggered. Any thread may change it; the loop asks it for
/// events. The owner closes it.
struct PollSet: Sendable {
  /// An event of a descriptor: the number that it was added with, and the mask of `poll(2)`.
  typealias Event = ckernel_readiness

  let descriptor: Int32

  init() throws(Errno) {
    descriptor = ckernel_poll_set_create()
    guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
  }

  /// Corresponds to `epoll_ctl(2)` with `EPOLL_CTL_ADD`.
  func add(_ fd: Int32, events: UInt32, number: UInt64) throws(Errno) {
    let answer = ckernel_poll_set_add(descriptor, fd, events, number)
    guard answer == 0 else { throw Errno(rawValue: -answer) }
  }

  /// Corresponds to `epoll_ctl(2)` with `EPOLL_CTL_MOD`.
  func modify(_ fd: Int32, events: UInt32, number: UInt64) throws(Errno) {
    let answer = ckernel_poll_set_modify(descriptor, fd, events, number)
    guard answer == 0 else { throw Errno(rawValue: -answer) }
  }

  /// Corresponds to `epoll_ctl(2)` with `EPOLL_CTL_DEL`. A descriptor that has been closed is no
  /// longer in the set.
  func remove(_ fd: Int32) {
    _ = ckernel_poll_set_remove(descriptor, fd)
  }

  /// Moves events of descriptors that are ready to a buffer: as many as it has room for, up to 64.
  /// Corresponds to `epoll_wait(2)` without a wait.
  ///
  /// - Returns: The number of events.
  func ready(into buffer: UnsafeMutableBufferPointer<Event>) -> Int {
    max(0, Int(unsafe ckernel_poll_set_ready(descriptor, buffer.baseAddress, Int32(buffer.count))))
  }

  func close() {
    try? FileDescriptor(rawValue: descriptor).close()
  }
}
