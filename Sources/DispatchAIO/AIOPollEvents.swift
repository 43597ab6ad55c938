// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

/// The events that a descriptor is ready for, or that are waited for. Corresponds to the event bits
/// of `poll(2)`.
public struct AIOPollEvents: OptionSet, Hashable, Sendable {
  /// The bits of `poll(2)`.
  public let rawValue: UInt32

  /// Makes events of the bits of `poll(2)`, which are the lower 16; others are left out.
  public init(rawValue: UInt32) {
    // Those of `epoll(7)` would change how a descriptor is watched for everybody.
    self.rawValue = rawValue & 0xffff
  }

  /// A read does not wait: there are bytes, or the end of the stream (`POLLIN`).
  public static let readable = AIOPollEvents(rawValue: UInt32(POLLIN))
  /// A write does not wait: there is room (`POLLOUT`).
  public static let writable = AIOPollEvents(rawValue: UInt32(POLLOUT))
  /// An exceptional condition, such as out-of-band data of a socket (`POLLPRI`).
  public static let priority = AIOPollEvents(rawValue: UInt32(POLLPRI))
  /// The peer has shut down its writing side (`POLLRDHUP`).
  public static let readHangUp = AIOPollEvents(rawValue: 0x2000)
  /// An error (`POLLERR`), which is waited for in any case.
  public static let error = AIOPollEvents(rawValue: UInt32(POLLERR))
  /// A hang-up (`POLLHUP`), which is waited for in any case.
  public static let hangUp = AIOPollEvents(rawValue: UInt32(POLLHUP))
}
