// SPDX-License-Identifier: Apache-2.0
//
// What is done to the entries of a directory. The calls that change an entry have no flag that
// keeps their path beneath the directory: so the parent is opened beneath it first, and they get
// the last name alone.

internal import CKernel
internal import PlatformLibc
public import SystemPackage

/// The entries of a directory, and of those beneath it.
///
/// Each call blocks the calling thread; with `await` a thread of the library's. A path is relative
/// to the directory and does not leave it, as in
/// ``AIOFile/open(_:_:beneath:options:permissions:caching:)-(_,_,_,_,_,_)``; a symbolic link at its
/// end is not followed, except by ``sync(_:)-(_)`` and ``entries(_:)-(_)``.
///
/// What changed is visible to others at once, and durable once ``sync(_:)-(_)`` of the directory
/// that the entry is in has returned.
///
/// The calls throw ``AIOError`` with the code ``AIOError/Code/notFound``, ``AIOError/Code/exists``,
/// ``AIOError/Code/permissionDenied``, ``AIOError/Code/noSpace``,
/// ``AIOError/Code/descriptorLimit``, ``AIOError/Code/unavailable`` (no `openat2(2)`), or
/// ``AIOError/Code/system``, as for a path that leaves the directory (`EXDEV`), or a directory that
/// is not empty (`ENOTEMPTY`).
extension AIODirectory {
  /// An entry of a directory.
  public struct Entry: Hashable, Sendable {
    /// Its name in the directory.
    public let name: FilePath.Component
    /// What it is.
    public let kind: AIOFile.Kind
    /// The number of the file in its file system (`d_ino`).
    public let inode: UInt64
  }

  /// Makes the entries of a directory durable: those made, renamed and removed before the call.
  /// Corresponds to `fsync(2)` of the directory.
  ///
  /// - Parameter path: A directory beneath this one; this one unless given.
  public func sync(_ path: FilePath = ".") throws(AIOError) {
    let subject = subject(.syncDirectory, path)
    let place = try openBeneath(path, O_RDONLY | O_DIRECTORY, subject)
    defer { PlatformLibc.close(place) }
    let answer = ckernel_fsync(place)
    guard answer == 0 else { throw AIOError(errno: -answer, subject) }
  }

  /// Renames a file, or a directory. Others see the old name or the new one, and where a file is
  /// replaced, the old file or the new one. Corresponds to `renameat2(2)`.
  ///
  /// - Parameters:
  ///   - path: The path of what is renamed.
  ///   - newPath: Its new path.
  ///   - directory: The directory that the new path is relative to; this one unless given. It has
  ///     to be on the same mount.
  ///   - replaces: Whether a file of the new name is replaced. If not, and where there is one,
  ///     ``AIOError/Code/exists`` is thrown.
  public func rename(
    _ path: FilePath, to newPath: FilePath, in directory: AIODirectory? = nil,
    replaces: Bool = true
  ) throws(AIOError) {
    let subject = subject(.rename, path)
    try withParent(of: path, subject) { (place, name) throws(AIOError) in
      let target = directory ?? self
      try target.withParent(of: newPath, target.subject(.rename, newPath)) {
        (newPlace, newName) throws(AIOError) in
        // The names' bytes are used during the call only.
        let answer = unsafe name.withPlatformString { name in
          unsafe newName.withPlatformString {
            unsafe ckernel_rename(place, name, newPlace, $0, replaces ? 0 : 1)
          }
        }
        guard answer == 0 else { throw AIOError(errno: -answer, subject) }
      }
    }
  }

  /// Removes a name of a file, and the file with its last name. Corresponds to `unlinkat(2)`.
  ///
  /// It may take long: the file system frees the blocks.
  public func unlink(_ path: FilePath) throws(AIOError) {
    try remove(path, .unlink, 0)
  }

  /// Removes an empty directory. Corresponds to `unlinkat(2)` with `AT_REMOVEDIR`.
  public func removeDirectory(_ path: FilePath) throws(AIOError) {
    try remove(path, .removeDirectory, AT_REMOVEDIR)
  }

  private func remove(
    _ path: FilePath, _ operation: AIOError.Operation, _ flags: Int32
  ) throws(AIOError) {
    let subject = subject(operation, path)
    try withParent(of: path, subject) { (place, name) throws(AIOError) in
      // The name's bytes are used during the call only.
      guard unsafe name.withPlatformString({ unsafe unlinkat(place, $0, flags) }) == 0 else {
        throw AIOError(errno: errno, subject)
      }
    }
  }

  /// Makes a directory. Corresponds to `mkdirat(2)`.
  ///
  /// - Parameters:
  ///   - path: The path of the new directory, whose parent exists.
  ///   - permissions: Its permissions, less the process's umask.
  public func makeDirectory(
    _ path: FilePath,
    permissions: FilePermissions = [
      .ownerReadWriteExecute, .groupReadExecute, .otherReadExecute,
    ]
  ) throws(AIOError) {
    let subject = subject(.makeDirectory, path)
    try withParent(of: path, subject) { (place, name) throws(AIOError) in
      // The name's bytes are used during the call only.
      guard
        unsafe name.withPlatformString({ unsafe mkdirat(place, $0, permissions.rawValue) }) == 0
      else { throw AIOError(errno: errno, subject) }
    }
  }

  /// The size, the times and so on of a file or a directory, without opening it. Corresponds to
  /// `statx(2)`.
  ///
  /// - Parameters:
  ///   - path: Its path.
  ///   - followsLink: Whether a symbolic link at the end of the path is followed, if that does not
  ///     leave the directory.
  public func status(
    of path: FilePath, followsLink: Bool = false
  ) throws(AIOError) -> AIOFile.Status {
    let subject = subject(.status, path)
    let place = try openBeneath(path, ckernel_o_path | (followsLink ? 0 : O_NOFOLLOW), subject)
    defer { PlatformLibc.close(place) }
    return AIOFile.Status(try ckernel_status(of: place, subject))
  }

  /// The entries of a directory, in no order, without `.` and `..`. Corresponds to `getdents64(2)`.
  ///
  /// Entries that are made or removed meanwhile may be among them, or not.
  ///
  /// - Parameter path: A directory beneath this one; this one unless given.
  public func entries(_ path: FilePath = ".") throws(AIOError) -> [Entry] {
    let subject = subject(.list, path)
    let place = try openBeneath(path, O_RDONLY | O_DIRECTORY, subject)
    guard let stream = unsafe fdopendir(place) else {
      let error = errno
      PlatformLibc.close(place)
      throw AIOError(errno: error, subject)
    }
    // It closes the descriptor, too.
    defer { unsafe closedir(stream) }
    var entries: [Entry] = []
    while true {
      errno = 0
      // The entry is the stream's until the next call, and copied before.
      guard let entry = unsafe readdir(stream) else { break }
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
        // The kernel ends a name with a 0.
        unsafe $0.withMemoryRebound(to: CChar.self, capacity: Int(NAME_MAX) + 1) {
          unsafe FilePath.Component(platformString: $0)
        }
      }
      guard let name, name.kind == .regular else { continue }
      let kind = unsafe AIOFile.Kind(entryType: entry.pointee.d_type) ?? kind(of: name, in: place)
      unsafe entries.append(Entry(name: name, kind: kind, inode: UInt64(entry.pointee.d_ino)))
    }
    guard errno == 0 else { throw AIOError(errno: errno, subject) }
    return entries
  }

  /// Asks for what a file system does not say in its entries.
  private func kind(of name: FilePath.Component, in place: Int32) -> AIOFile.Kind {
    var status = stat()
    // The name's bytes and the status are used during the call only.
    let answer = unsafe name.withPlatformString {
      unsafe fstatat(place, $0, &status, AT_SYMLINK_NOFOLLOW)
    }
    return answer == 0 ? AIOFile.Kind(mode: status.st_mode) : .other
  }

  // MARK: Beneath

  func subject(_ operation: AIOError.Operation, _ path: FilePath) -> AIOError.Subject {
    let whole = self.path.map { path == "." ? $0 : $0.appending(path.components) } ?? path
    return AIOError.Subject(operation: operation, path: path.isAbsolute ? path : whole)
  }

  /// Opens what a path beneath the directory names.
  ///
  /// - Returns: The descriptor, which the caller closes.
  func openBeneath(
    _ path: FilePath, _ flags: Int32, _ subject: AIOError.Subject
  ) throws(AIOError) -> Int32 {
    let answer = FileOpening.open(path, flags | O_CLOEXEC, beneath: self)
    if answer >= 0 { return answer }
    throw answer == -ENOSYS ? .noOpenat2(subject) : AIOError(errno: -answer, subject)
  }

  /// Calls `body` with the directory that the last name of a path is in, and that name.
  func withParent(
    of path: FilePath, _ subject: AIOError.Subject,
    _ body: (_ place: Int32, _ name: FilePath.Component) throws(AIOError) -> Void
  ) throws(AIOError) {
    guard let name = path.lastComponent, name.kind == .regular else {
      throw AIOError(
        .system, errno: .invalidArgument, subject,
        .text("the path \"\(path)\" does not end with the name of an entry"))
    }
    let parent = path.removingLastComponent()
    let place = try openBeneath(
      parent.isEmpty ? "." : parent, ckernel_o_path | O_DIRECTORY, subject)
    defer { PlatformLibc.close(place) }
    try body(place, name)
  }
}
