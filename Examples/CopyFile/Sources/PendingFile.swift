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
/// The lock is held while a name is made or changed, so that whoever removes the file finds the
/// name it has.
final class PendingFile: Sendable {
  private struct State {
    var file: AIOFile?
    /// The file's name, if it has one already.
    var temporary: FilePath?
    var isOver = false
  }
  private let state = Lock(State())

  /// Makes the file, open for reading and writing.
  ///
  /// - Parameters:
  ///   - name: for error messages.
  ///   - caching: direct is buffered where the filesystem has no direct I/O.
  func create(
    in directory: FilePath, named name: FilePath, caching: AIOFile.Caching
  ) throws -> AIOFile {
    try state.withLock { state in
      guard !state.isOver else { throw Failure("interrupted") }
      if let file = try Self.makeUnnamed(in: directory, name, caching) {
        state.file = file
        return file
      }
      let (file, path) = try Self.makeNamed(in: directory, caching)
      (state.file, state.temporary) = (file, path)
      return file
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

  private static func makeNamed(
    in directory: FilePath, _ caching: AIOFile.Caching
  ) throws -> (AIOFile, FilePath) {
    guard !directory.isAppendOnly else {
      throw Failure(
        "\(directory.escaped): append-only (chattr +a), so that a temporary file would stay there")
    }
    var caching = caching
    while true {
      let path = temporaryName(in: directory)
      do throws(AIOError) {
        let file = try AIOFile.open(
          path, .readWrite, options: [.create, .exclusiveCreate], permissions: .ownerReadWrite,
          caching: caching)
        return (file, path)
      } catch  where error.code == .directUnsupported && caching == .direct {
        // Under another name, because somebody may have seen this one, and put a link there.
        caching = .buffered
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
    try state.withLock { state in
      guard !state.isOver, let file = state.file else { throw Errno.interrupted }
      if let temporary = state.temporary {
        if replacing {
          try temporary.rename(to: path)
        } else {
          try Self.renameToNewName(temporary, path)
        }
      } else {
        try Self.linkUnnamed(file, as: path, replacing: replacing)
      }
      state.temporary = nil
      state.isOver = true
    }
  }

  private static func linkUnnamed(_ file: AIOFile, as path: FilePath, replacing: Bool) throws(Errno)
  {
    do throws(Errno) {
      try path.link(to: file.fileDescriptor)
    } catch {
      guard error == .fileExists, replacing else { throw error }
      try replace(path, with: file)
    }
  }

  /// Gives a file without a name that of another, which is only possible by way of a third.
  private static func replace(_ path: FilePath, with file: AIOFile) throws(Errno) {
    let name = temporaryName(in: path.removingLastComponent())
    try name.link(to: file.fileDescriptor)
    do throws(Errno) {
      try name.rename(to: path)
    } catch {
      try? name.unlink()
      throw error
    }
  }

  /// Renames a file, or fails if the new name exists.
  private static func renameToNewName(_ old: FilePath, _ new: FilePath) throws {
    let answer = old.withPlatformString { old in new.withPlatformString { Glibc.link(old, $0) } }
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
    state.withLock { state in
      state.isOver = true
      try? state.temporary?.unlink()
      state.temporary = nil
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
  /// Opens a file to read it: direct, or buffered if the filesystem has no direct I/O.
  static func openDirectIfPossible(_ path: FilePath) throws(AIOError) -> AIOFile {
    do {
      return try open(path, .readOnly)
    } catch  where error.code == .directUnsupported {
      return try open(path, .readOnly, caching: .buffered)
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
