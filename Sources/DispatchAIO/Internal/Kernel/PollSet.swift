// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import SystemPackage

/// An epoll set, level-triggered. Any thread may change it; the loop asks what is ready. Whoever
/// made it closes it.
struct PollSet: Sendable {
  /// What is ready: the number that the descriptor was added with, and poll(2)'s mask.
  typealias Readiness = clinux_readiness

  let descriptor: Int32

  init() throws(Errno) {
    descriptor = clinux_epoll_create()
    guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
  }

  /// Corresponds to `epoll_ctl(2)` with `EPOLL_CTL_ADD`.
  func add(_ fd: Int32, events: UInt32, number: UInt64) throws(Errno) {
    let answer = clinux_epoll_add(descriptor, fd, events, number)
    guard answer == 0 else { throw Errno(rawValue: -answer) }
  }

  /// Corresponds to `epoll_ctl(2)` with `EPOLL_CTL_MOD`.
  func modify(_ fd: Int32, events: UInt32, number: UInt64) throws(Errno) {
    let answer = clinux_epoll_modify(descriptor, fd, events, number)
    guard answer == 0 else { throw Errno(rawValue: -answer) }
  }

  /// Corresponds to `epoll_ctl(2)` with `EPOLL_CTL_DEL`. A descriptor that was closed has been
  /// removed by that.
  func remove(_ fd: Int32) {
    _ = clinux_epoll_remove(descriptor, fd)
  }

  /// What is ready now, up to the buffer's size and 64. Corresponds to `epoll_wait(2)`, without a
  /// wait.
  func ready(into buffer: UnsafeMutableBufferPointer<Readiness>) -> Int {
    max(0, Int(unsafe clinux_epoll_ready(descriptor, buffer.baseAddress, Int32(buffer.count))))
  }

  func close() {
    try? FileDescriptor(rawValue: descriptor).close()
  }
}
