// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc
import ServerSupport
import SystemPackage

/// A file that has a temporary name until it is complete. Called from any thread.
///
/// The lock is held while a name is made or changed, so that `remove` finds the name that the file
/// has.
final class PendingFile: Sendable {
  private struct State {
    var temporary: FilePath?
    /// Whether the file has its name, or was removed.
    var isOver = false
  }

  private let state = Lock(State())

  /// Makes the file, open for reading and writing, for direct I/O if the filesystem has that.
  func create(in directory: FilePath) throws -> AIOFile {
    try state.withLock { state in
      guard !state.isOver else { throw Failure("interrupted") }
      while true {
        let path = directory.appending(
          ".aio-copy-" + String(UInt64.random(in: .min ... .max), radix: 36))
        do {
          let file = try AIOFile.openDirectIfPossible(
            path, .readWrite, options: [.create, .exclusiveCreate], permissions: .ownerReadWrite)
          state.temporary = path
          return file
        } catch let error as AIOError where error.code == .exists {
          continue
        } catch {
          throw error
        }
      }
    }
  }

  /// Gives the file its name, atomically.
  func publish(as path: FilePath, replacing: Bool) throws(Errno) {
    try state.withLock { state throws(Errno) in
      guard !state.isOver, let temporary = state.temporary else { throw .interrupted }
      if replacing {
        guard rename(temporary.string, path.string) == 0 else { throw Errno(rawValue: errno) }
      } else {
        try renameToNewName(temporary, path)
      }
      state.temporary = nil
      state.isOver = true
    }
  }

  /// Renames a file, or fails if the new name exists.
  private func renameToNewName(_ old: FilePath, _ new: FilePath) throws(Errno) {
    if link(old.string, new.string) == 0 {
      unlink(old.string)
      return
    }
    switch Errno(rawValue: errno) {
    case .notPermitted, .notSupported, .noFunction, .tooManyLinks:
      // A filesystem without hard links, where to check before is all that can be done.
      var status = stat()
      guard lstat(new.string, &status) != 0 else { throw .fileExists }
      guard rename(old.string, new.string) == 0 else { throw Errno(rawValue: errno) }
    case let errno: throw errno
    }
  }

  /// Removes the file, unless it has its name already. Afterwards it cannot get one.
  func remove() {
    state.withLock { state in
      state.isOver = true
      if let temporary = state.temporary { unlink(temporary.string) }
      state.temporary = nil
    }
  }
}

extension AIOFile {
  /// Opens a file for direct I/O, or buffered if the filesystem has none.
  static func openDirectIfPossible(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode, options: FileDescriptor.OpenOptions = [],
    permissions: FilePermissions = .ownerReadWrite
  ) throws(AIOError) -> AIOFile {
    do {
      return try open(path, mode, options: options, permissions: permissions)
    } catch  where error.code == .directUnsupported {
      // The kernel may have made the file before it refused.
      return try open(
        path, mode, options: options.subtracting(.exclusiveCreate), permissions: permissions,
        caching: .buffered)
    }
  }
}
