// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// What a descriptor is ready for, or is to be waited for. Corresponds to the events of `poll(2)`.
public struct AIOPollEvents: OptionSet, Hashable, Sendable {
  public let rawValue: UInt32

  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// There is something to read, or a read answers the end (`POLLIN`).
  public static let readable = AIOPollEvents(rawValue: UInt32(POLLIN))
  /// There is room to write (`POLLOUT`).
  public static let writable = AIOPollEvents(rawValue: UInt32(POLLOUT))
  /// There is an exceptional condition, as out-of-band data on a socket (`POLLPRI`).
  public static let priority = AIOPollEvents(rawValue: UInt32(POLLPRI))
  /// The peer writes no more (`POLLRDHUP`).
  public static let readHangUp = AIOPollEvents(rawValue: 0x2000)
  /// An error, which need not be asked for (`POLLERR`).
  public static let error = AIOPollEvents(rawValue: UInt32(POLLERR))
  /// A hang-up, which need not be asked for (`POLLHUP`).
  public static let hangUp = AIOPollEvents(rawValue: UInt32(POLLHUP))
}
