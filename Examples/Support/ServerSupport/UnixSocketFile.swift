// SPDX-License-Identifier: Apache-2.0

import Glibc
import SystemPackage

/// The file of a Unix socket that this process has bound.
struct UnixSocketFile {
  let path: FilePath
  private let device: dev_t
  private let inode: ino_t

  /// - Parameter path: that of a socket just bound. If it has gone already, nothing is to be
  ///   removed.
  init?(_ path: FilePath) {
    guard let status = Self.status(path) else { return nil }
    (self.path, device, inode) = (path, status.st_dev, status.st_ino)
  }

  /// Removes the file, if it is still this one: another server may have taken over the path.
  func unlink() {
    guard let status = Self.status(path), status.st_dev == device, status.st_ino == inode
    else { return }
    path.withPlatformString { _ = Glibc.unlink($0) }
  }

  private static func status(_ path: FilePath) -> stat? {
    var status = stat()
    return path.withPlatformString { lstat($0, &status) } == 0 ? status : nil
  }
}
