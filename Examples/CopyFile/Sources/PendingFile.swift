// SPDX-License-Identifier: Apache-2.0

import CFiles
import DispatchAIO
import Glibc
import ServerSupport
import SystemPackage

/// A file that gets its name when it is complete. Called from any thread.
///
/// Until then it has none (`O_TMPFILE`), so that nothing is left behind, whatever happens; where
/// the filesystem has no such files, it has a temporary one.
///
/// - Safety: `@unchecked Sendable` because its state is touched under the lock only. The lock is
///   held while a name is made or changed, so that whoever removes the file finds the name it has.
final class PendingFile: @unchecked Sendable {
  private let lock = Lock(())
  private var file: AIOFile?
  /// The file's name, if it has one already.
  private var temporary: FilePath?
  private var isOver = false

  /// Makes the file, open for reading and writing.
  ///
  /// - Parameters:
  ///   - name: for error messages.
  ///   - caching: direct is buffered where the filesystem has no direct I/O.
  func create(
    in directory: FilePath, named name: FilePath, caching: AIOFile.Caching
  ) throws -> AIOFile {
    try lock.withLock { _ in
      guard !isOver else { throw Failure("interrupted") }
      let made =
        try Self.makeUnnamed(in: directory, name, caching)
        ?? makeNamed(in: directory, caching)
      file = made
      return made
    }
  }

  /// - Returns: `nil` where there are no such files, or none can be given a name.
  private static func makeUnnamed(
    in directory: FilePath, _ name: FilePath, _ caching: AIOFile.Caching
  ) throws(AIOError) -> AIOFile? {
    guard access("/proc/self/fd", X_OK) == 0 else { return nil }
    var descriptor = directory.withPlatformString {
      cfiles_open_unnamed($0, caching == .direct)
    }
    if descriptor == -EINVAL, caching == .direct {
      descriptor = directory.withPlatformString { cfiles_open_unnamed($0, false) }
    }
    // Why it cannot be, the other way tells, if that cannot be, either.
    guard descriptor >= 0 else { return nil }
    do {
      return try AIOFile(adopting: FileDescriptor(rawValue: descriptor), path: name)
    } catch {
      close(descriptor)
      throw error
    }
  }

  private func makeNamed(in directory: FilePath, _ caching: AIOFile.Caching) throws -> AIOFile {
    guard !directory.isAppendOnly else {
      throw Failure(
        "\(directory.escaped): append-only (chattr +a), so that a temporary file would stay there")
    }
    while true {
      let path = Self.temporaryName(in: directory)
      do throws(AIOError) {
        let file = try AIOFile.openDirectIfPossible(
          path, .readWrite, options: [.create, .exclusiveCreate], permissions: .ownerReadWrite,
          caching: caching)
        temporary = path
        return file
      } catch {
        guard error.code == .exists else { throw error }
      }
    }
  }

  private static func temporaryName(in directory: FilePath) -> FilePath {
    directory.appending(".aio-copy-" + String(UInt64.random(in: .min ... .max), radix: 36))
  }

  // MARK: The name

  /// Gives the file its name, atomically.
  func publish(as path: FilePath, replacing: Bool) throws {
    try lock.withLock { _ in try publishLocked(as: path, replacing: replacing) }
  }

  /// Under the lock.
  private func publishLocked(as path: FilePath, replacing: Bool) throws {
    guard !isOver, let file else { throw Errno.interrupted }
    if let temporary {
      if replacing { try temporary.rename(to: path) } else { try renameToNewName(temporary, path) }
    } else {
      do throws(Errno) {
        try path.link(to: file.fileDescriptor)
      } catch {
        guard error == .fileExists, replacing else { throw error }
        try replace(path, with: file)
      }
    }
    temporary = nil
    isOver = true
  }

  /// Gives a file without a name that of another, which is only possible by way of a third.
  private func replace(_ path: FilePath, with file: AIOFile) throws(Errno) {
    let name = Self.temporaryName(in: path.removingLastComponent())
    try name.link(to: file.fileDescriptor)
    do throws(Errno) {
      try name.rename(to: path)
    } catch {
      try? name.unlink()
      throw error
    }
  }

  /// Renames a file, or fails if the new name exists.
  private func renameToNewName(_ old: FilePath, _ new: FilePath) throws {
    let answer = old.withPlatformString { old in new.withPlatformString { link(old, $0) } }
    if answer == 0 {
      do throws(Errno) {
        try old.unlink()
      } catch {
        throw Failure(
          "the copy is complete, but its temporary name \(old.escaped) is left: \(error)")
      }
      return
    }
    switch Errno(rawValue: errno) {
    case .notPermitted, .notSupported, .noFunction, .tooManyLinks:
      // A filesystem without hard links, where to check before is all that can be done.
      guard !new.exists else { throw Errno.fileExists }
      try old.rename(to: new)
    case let errno: throw errno
    }
  }

  /// Removes the file, unless it has its name already. Afterwards it cannot get one.
  func remove() {
    lock.withLock { _ in
      isOver = true
      try? temporary?.unlink()
      temporary = nil
    }
  }
}

extension FilePath {
  /// Whether the path is a directory in which names can only be added.
  var isAppendOnly: Bool { withPlatformString { cfiles_is_append_only($0) } }

  /// Whether something has the name, a dangling link included.
  fileprivate var exists: Bool {
    var status = Glibc.stat()
    return withPlatformString { lstat($0, &status) } == 0
  }

  fileprivate func link(to file: FileDescriptor) throws(Errno) {
    let answer = withPlatformString { cfiles_link(file.rawValue, $0) }
    guard answer == 0 else { throw Errno(rawValue: -answer) }
  }

  fileprivate func rename(to other: FilePath) throws(Errno) {
    let answer = withPlatformString { old in
      other.withPlatformString { Glibc.rename(old, $0) == 0 ? 0 : errno }
    }
    guard answer == 0 else { throw Errno(rawValue: answer) }
  }

  fileprivate func unlink() throws(Errno) {
    let answer = withPlatformString { Glibc.unlink($0) == 0 ? 0 : errno }
    guard answer == 0 else { throw Errno(rawValue: answer) }
  }
}

extension AIOFile {
  /// Opens a file for direct I/O, or buffered if that is asked for or the filesystem has no other.
  static func openDirectIfPossible(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode, options: FileDescriptor.OpenOptions = [],
    permissions: FilePermissions = .ownerReadWrite, caching: Caching = .direct
  ) throws(AIOError) -> AIOFile {
    do {
      return try open(path, mode, options: options, permissions: permissions, caching: caching)
    } catch  where error.code == .directUnsupported {
      // The kernel may have made the file before it refused.
      return try open(
        path, mode, options: options.subtracting(.exclusiveCreate), permissions: permissions,
        caching: .buffered)
    }
  }

  /// The same open file, through the page cache. This one must not be used any more.
  func buffered() throws -> AIOFile {
    let descriptor = try fileDescriptor.duplicate()
    do {
      let answer = cfiles_make_buffered(descriptor.rawValue)
      guard answer == 0 else { throw Errno(rawValue: -answer) }
      return try AIOFile(adopting: descriptor, path: path)
    } catch {
      try? descriptor.close()
      throw error
    }
  }
}
