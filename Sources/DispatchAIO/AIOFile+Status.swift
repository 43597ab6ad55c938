// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

extension AIOFile {
  /// What a path can name.
  public enum Kind: Hashable, Sendable {
    case regular, directory, symbolicLink, blockDevice, characterDevice, pipe, socket
    /// Something else, or something that was gone when it was looked at.
    case other

    init(mode: mode_t) {
      switch mode & S_IFMT {
      case S_IFREG: self = .regular
      case S_IFDIR: self = .directory
      case S_IFLNK: self = .symbolicLink
      case S_IFBLK: self = .blockDevice
      case S_IFCHR: self = .characterDevice
      case S_IFIFO: self = .pipe
      case S_IFSOCK: self = .socket
      default: self = .other
      }
    }

    /// - Parameter entryType: The `d_type` of an entry; `nil` if it says nothing.
    init?(entryType: UInt8) {
      if entryType == 0 { return nil }
      // DTTOIF.
      self.init(mode: mode_t(entryType) << 12)
    }
  }

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

    init(_ status: clinux_status) {
      kind = Kind(mode: mode_t(status.mode))
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
