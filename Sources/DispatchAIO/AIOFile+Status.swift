// SPDX-License-Identifier: Apache-2.0

internal import CKernel
internal import PlatformLibc
public import SystemPackage

extension AIOFile {
  /// What is known of a file from its opening, without a further system call. Corresponds to
  /// `fstat(2)`.
  public struct Status: Hashable, Sendable {
    /// A time by the clock of the file system, since 1970-01-01 00:00:00 UTC.
    public struct Time: Hashable, Comparable, Sendable {
      /// The whole seconds.
      public let seconds: Int64
      /// The nanoseconds beyond them, 0 to 999,999,999.
      public let nanoseconds: Int

      /// Whether a time is before another.
      public static func < (a: Time, b: Time) -> Bool {
        (a.seconds, a.nanoseconds) < (b.seconds, b.nanoseconds)
      }
    }

    /// What it is.
    public let kind: Kind
    /// The permissions (`st_mode`).
    public let permissions: FilePermissions
    /// The size in bytes; 0 for a block device (see ``AIOFile/size()-()``).
    public let size: Int64
    /// The time at which the contents changed last (`st_mtim`).
    public let modificationTime: Time
    /// The time at which the contents, a name or an attribute changed last (`st_ctim`).
    public let changeTime: Time
    /// The number of the file in its file system (`st_ino`).
    public let inode: UInt64
    /// The device of the file system (`st_dev`).
    public let device: UInt64
    /// The number of names; 0 for a file that was removed, or never had one.
    public let linkCount: Int

    init(_ status: ckernel_status) {
      kind = Kind(mode: status.mode)
      permissions = FilePermissions(rawValue: CInterop.Mode(status.mode & 0o7777))
      size = status.size
      modificationTime = Time(
        seconds: status.modified_seconds, nanoseconds: Int(status.modified_nanoseconds))
      changeTime = Time(
        seconds: status.changed_seconds, nanoseconds: Int(status.changed_nanoseconds))
      inode = status.inode
      device = status.device
      linkCount = Int(status.links)
    }
  }
}
