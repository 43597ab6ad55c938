// SPDX-License-Identifier: Apache-2.0
//
// The replacement of a file as a whole. The new file has no name while it is written (O_TMPFILE),
// so that nothing is left behind whatever happens. linkat(2) replaces nothing: where there is a
// file, the new one gets a temporary name, by which it is renamed over the old.

internal import CKernel
public import Dispatch
internal import PlatformLibc
public import SystemPackage

/// A new file that takes the place of another, or of none, as a whole and durably.
///
/// ```swift
/// let replacement = try await AIOReplacement.begin("/etc/app/state")
/// try await context.write(replacement.file, at: 0, from: buffer)
/// try await replacement.commit()
/// ```
///
/// Until ``commit()-()`` the new file has no name, and whoever opens the path gets the old file. If
/// it is not committed, by an error, by ``abandon()`` or because the last reference is gone, the
/// old file is untouched and nothing of the new one remains.
///
/// Where the file system has no files without a name (`O_TMPFILE`: FUSE, NFS and overlays of before
/// Linux 6.3), or there is no `/proc`, the new file has a temporary name, `.aio-` and sixteen
/// hexadecimal digits, in the same directory. That name remains if the process or the machine ends
/// meanwhile. With `O_TMPFILE` it can remain only if that happens within ``commit()-()``.
public final class AIOReplacement: Sendable {
  /// What is to be done with a file that has the path.
  public enum Existing: Sendable, Hashable {
    /// It is replaced. If it is a symbolic link, the link is, and not what it points to.
    case replace
    /// It is kept: ``AIOReplacement/commit()-()`` throws ``AIOError/Code/exists``.
    case keep
  }

  private enum State {
    /// With the temporary name, if it has one.
    case open(FilePath.Component?)
    case ended
  }

  /// The new file, open for reading and writing. It stays open after the commit.
  public let file: AIOFile
  private let existing: Existing
  /// The permissions that the caller asked for.
  private let permissions: FilePermissions?
  /// The directory of the path, and the name in it.
  private let place: Place
  private let name: FilePath.Component
  private let state: Lock<State>

  /// An open directory, closed with its last reference.
  private final class Place: Sendable {
    let descriptor: Int32
    init(_ descriptor: Int32) { self.descriptor = descriptor }
    deinit {
      // A server of files may be asked.
      let descriptor = descriptor
      BlockingCalls.run(on: nil) { PlatformLibc.close(descriptor) }
    }
  }

  /// Makes the new file. Blocks the calling thread. Corresponds to `open(2)` with `O_TMPFILE`.
  ///
  /// - Parameters:
  ///   - path: The path that the file is to have; its directory exists.
  ///   - directory: The directory that the path is relative to and must not leave; if `nil`, the
  ///     path is any path.
  ///   - existing: What is to be done with a file that has the path.
  ///   - permissions: The permissions of the new file, less the process's umask. If `nil`, those of
  ///     the file that is replaced (without set-user-ID and its like), and where there is none,
  ///     `rw-r--r--` less the umask. Until the commit the group and others may do no more with the
  ///     new file than with the old one. The owner is the process's, and access control lists and
  ///     extended attributes of the old file are not kept: set them on ``file`` before the commit.
  ///   - caching: The way to the disk; ``AIOFile/Caching/direct`` unless given.
  /// - Throws: ``AIOError`` as
  ///   ``AIOFile/open(_:_:beneath:options:permissions:caching:)-(_,_,_,_,_,_)``.
  public static func begin(
    _ path: FilePath, beneath directory: AIODirectory? = nil, existing: Existing = .replace,
    permissions: FilePermissions? = nil, caching: AIOFile.Caching = .direct
  ) throws(AIOError) -> AIOReplacement {
    try AIOReplacement(path, directory, existing, permissions, caching)
  }

  private init(
    _ path: FilePath, _ directory: AIODirectory?, _ existing: Existing,
    _ permissions: FilePermissions?, _ caching: AIOFile.Caching
  ) throws(AIOError) {
    let subject = AIOError.Subject(operation: .replace, path: path)
    guard let name = path.lastComponent, name.kind == .regular else {
      throw AIOError(
        .system, errno: .invalidArgument, subject, .text("the path does not end with a name"))
    }
    let place = Place(try Self.openParent(of: path, directory, subject))
    let old: mode_t?
    do throws(Errno) {
      old =
        permissions == nil && existing == .replace
        ? try Self.permissions(of: name, in: place.descriptor) : nil
    } catch {
      throw AIOError(errno: error.rawValue, subject)
    }
    // No wider than the old file's, as the new one may have a name.
    let shared = FilePermissions(rawValue: old ?? 0o777).intersection([.groupRead, .otherRead])
    let mode = permissions ?? shared.union(.ownerReadWrite)
    let (descriptor, temporary) = try Self.make(in: place.descriptor, mode, caching, subject)
    do {
      file = try AIOFile(
        adopting: FileDescriptor(rawValue: descriptor), path: path,
        isAutomatic: caching == .automatic)
    } catch {
      if let temporary { Self.unlink(temporary, in: place.descriptor) }
      PlatformLibc.close(descriptor)
      throw error
    }
    (self.existing, self.permissions, self.place, self.name) = (existing, permissions, place, name)
    state = Lock(.open(temporary))
  }

  deinit { abandon() }

  /// Gives the file up: nothing of it remains, and the old file stays. Does nothing after the
  /// commit. Never blocks.
  public func abandon() {
    guard let temporary = end() else { return }
    file.close()
    guard let temporary else { return }
    let place = place
    BlockingCalls.run(on: file.file.traits.device) {
      Self.unlink(temporary, in: place.descriptor)
    }
  }

  /// - Returns: The temporary name, if there is one; `nil` if it was ended before.
  private func end() -> FilePath.Component?? {
    state.withLock { state -> FilePath.Component?? in
      guard case .open(let temporary) = state else { return nil }
      state = .ended
      return .some(temporary)
    }
  }

  /// Makes the new file durable, gives it its name, and makes that durable. Blocks the calling
  /// thread. Corresponds to `fsync(2)`, `linkat(2)`, `renameat2(2)`, and `fsync(2)` of the
  /// directory.
  ///
  /// Everything that was written to ``file`` must have completed. When the call returns, the bytes,
  /// the metadata and the name are durable: after a failure of the power the path names the new
  /// file. If that fails earlier, it names the old one, whole, or the new one, whole.
  ///
  /// - Throws: ``AIOError``, after which the old file is untouched and nothing of the new one
  ///   remains, with one exception, which the error's sentence names: where the sync of the
  ///   directory fails, others see the new file, and a failure of the power may still bring back
  ///   the old one. The code is ``AIOError/Code/exists`` if there is a file that is to be kept,
  ///   ``AIOError/Code/fileClosed`` if it was committed or abandoned before, or that of the errno,
  ///   also where the new file cannot have the permissions of the old one.
  public func commit() throws(AIOError) {
    let subject = AIOError.Subject(operation: .replace, path: file.path)
    guard let temporary = end() else {
      throw AIOError(
        .fileClosed, subject, .text("it was committed or abandoned before; begin another"))
    }
    var named = temporary
    do throws(AIOError) {
      try file.call(subject) { descriptor in
        do throws(Errno) {
          try takePermissions(descriptor)
        } catch {
          return -Int64(error.rawValue)
        }
        let synced = ckernel_fsync(descriptor)
        if synced != 0 { return Int64(synced) }
        return Int64(giveName(descriptor, &named))
      }
    } catch {
      if let named { Self.unlink(named, in: place.descriptor) }
      file.close()
      throw error
    }
    let synced = ckernel_fsync(place.descriptor)
    guard synced == 0 || synced == -EINVAL else {
      let error = Errno(rawValue: -synced)
      throw AIOError(
        AIOError.Code(error), errno: error, subject,
        .text(
          """
          the new file is in place, but the directory could not be synced: \(error) (errno \
          \(error.rawValue)); after a failure of the power the old one may be back
          """))
    }
  }

  /// Makes the new file durable and gives it its name, by a thread that may sleep, and calls back:
  /// as ``commit()-()``. Never blocks, and may be called from any thread.
  ///
  /// - Parameters:
  ///   - queue: The queue to call back on.
  ///   - completion: Called once, with the error that ``commit()-()`` would throw.
  public func commit(
    queue: DispatchQueue, completion: @escaping @Sendable (Result<Void, AIOError>) -> Void
  ) {
    BlockingCalls.run(on: file.file.traits.device) { [self] in
      let result = Result { () throws(AIOError) in try commit() }
      queue.async { completion(result) }
    }
  }

  /// Takes the permissions of the file that is replaced, unless the caller gave some.
  private func takePermissions(_ descriptor: Int32) throws(Errno) {
    guard permissions == nil, existing == .replace,
      let old = try Self.permissions(of: name, in: place.descriptor)
    else { return }
    // A file system whose files all have the same may refuse to set them. The structure is filled
    // during the call.
    var new = stat()
    if unsafe fstat(descriptor, &new) == 0, new.st_mode & 0o777 == old { return }
    guard fchmod(descriptor, old) == 0 else { throw Errno(rawValue: errno) }
  }

  /// - Parameter temporary: The temporary name, which is `nil` while and once it has none.
  /// - Returns: 0, or a negative errno.
  private func giveName(_ descriptor: Int32, _ temporary: inout FilePath.Component?) -> Int32 {
    let place = place.descriptor
    if temporary == nil {
      // Where there is no file, this is all; and where there is one that is to be kept.
      let answer = Self.link(descriptor, place, name)
      guard answer == -EEXIST, existing == .replace else { return answer }
      for _ in 0..<Self.attemptLimit {
        let name = Self.temporaryName()
        let answer = Self.link(descriptor, place, name)
        if answer == -EEXIST { continue }
        guard answer == 0 else { return answer }
        temporary = name
        break
      }
    }
    guard let old = temporary else { return -EEXIST }
    // The names' bytes are used during the calls only.
    let answer = unsafe old.withPlatformString { old -> Int32 in
      unsafe name.withPlatformString { name -> Int32 in
        if existing == .replace { return unsafe ckernel_rename(place, old, place, name, 0) }
        // NFS has no rename that keeps what is there, and FUSE seldom. A link replaces nothing by
        // its nature; where there are no links (FAT), there is that rename.
        if unsafe linkat(place, old, place, name, 0) == 0 {
          _ = unsafe unlinkat(place, old, 0)
          return 0
        }
        return errno == EEXIST ? -EEXIST : unsafe ckernel_rename(place, old, place, name, 1)
      }
    }
    if answer == 0 { temporary = nil }
    return answer
  }

  // MARK: Calls

  /// The number of attempts to find a temporary name that nobody has.
  private static let attemptLimit = 64

  private static func temporaryName() -> FilePath.Component {
    let digits = String(UInt64.random(in: 0...UInt64.max), radix: 16)
    let name = ".aio-" + String(repeating: "0", count: 16 - digits.count) + digits
    guard let component = FilePath.Component(name) else {
      preconditionFailure("AIOReplacement: \(name) is no name")
    }
    return component
  }

  /// The permissions of the file that has the name; `nil` if there is none, or no regular one.
  private static func permissions(
    of name: FilePath.Component, in place: Int32
  ) throws(Errno) -> mode_t? {
    var old = stat()
    // The name's bytes and the status are used during the call only.
    let answer = unsafe name.withPlatformString {
      unsafe fstatat(place, $0, &old, AT_SYMLINK_NOFOLLOW)
    }
    guard answer == 0 else {
      if errno == ENOENT { return nil }
      throw Errno(rawValue: errno)
    }
    return old.st_mode & S_IFMT == S_IFREG ? old.st_mode & 0o777 : nil
  }

  private static func openParent(
    of path: FilePath, _ directory: AIODirectory?, _ subject: AIOError.Subject
  ) throws(AIOError) -> Int32 {
    let parent = path.removingLastComponent()
    let flags = O_RDONLY | O_DIRECTORY
    if let directory {
      return try directory.openBeneath(parent.isEmpty ? "." : parent, flags, subject)
    }
    let answer = FileOpening.open(parent.isEmpty ? "." : parent, flags | O_CLOEXEC)
    guard answer >= 0 else { throw AIOError(errno: -answer, subject) }
    return answer
  }

  /// Makes the file.
  ///
  /// - Returns: Its descriptor, and its temporary name, if it has to have one.
  private static func make(
    in place: Int32, _ permissions: FilePermissions, _ caching: AIOFile.Caching,
    _ subject: AIOError.Subject
  ) throws(AIOError) -> (Int32, FilePath.Component?) {
    let flags = O_RDWR | O_CLOEXEC
    let direct = caching == .direct ? ckernel_o_direct : 0
    // Literals and strings, whose bytes are used during the calls only.
    let unnamed = unsafe ckernel_open(
      place, ".", flags | ckernel_o_tmpfile | direct, permissions.rawValue, 0)
    let error = -unnamed
    if unnamed >= 0 {
      // It gets its name through /proc.
      if unsafe access("/proc/self/fd/\(unnamed)", F_OK) == 0 { return (unnamed, nil) }
      PlatformLibc.close(unnamed)
    } else if error == EINVAL, direct != 0 {
      throw AIOError(.directUnsupported, errno: .invalidArgument, subject, .errno)
    } else if ![EOPNOTSUPP, EISDIR, ENOENT].contains(error) {
      throw AIOError(errno: error, subject)
    }
    for _ in 0..<attemptLimit {
      let name = temporaryName()
      // The name's bytes are used during the call only.
      let named = unsafe name.withPlatformString {
        unsafe ckernel_open(place, $0, flags | O_CREAT | O_EXCL, permissions.rawValue, 0)
      }
      if named == -EEXIST { continue }
      guard named >= 0 else { throw AIOError(errno: -named, subject) }
      if direct == 0 || ckernel_set_direct(named) == 0 {
        return (named, name)
      }
      unlink(name, in: place)
      PlatformLibc.close(named)
      throw AIOError(.directUnsupported, errno: .invalidArgument, subject, .errno)
    }
    throw AIOError(errno: EEXIST, subject)
  }

  private static func link(_ descriptor: Int32, _ place: Int32, _ name: FilePath.Component) -> Int32
  {
    // The name's bytes are used during the call only.
    unsafe name.withPlatformString { unsafe ckernel_link(descriptor, place, $0) }
  }

  private static func unlink(_ name: FilePath.Component, in place: Int32) {
    // The name's bytes are used during the call only.
    _ = unsafe name.withPlatformString { unsafe unlinkat(place, $0, 0) }
  }
}

// MARK: - For tasks

extension AIOReplacement {
  /// Makes the new file off the caller's thread: see
  /// ``begin(_:beneath:existing:permissions:caching:)-(_,_,_,_,_)``.
  public static func begin(
    _ path: FilePath, beneath directory: AIODirectory? = nil, existing: Existing = .replace,
    permissions: FilePermissions? = nil, caching: AIOFile.Caching = .direct,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> AIOReplacement {
    try await BlockingCalls.value(on: directory?.device) { () throws(AIOError) in
      try begin(
        path, beneath: directory, existing: existing, permissions: permissions, caching: caching)
    }
  }

  /// Makes the new file durable and gives it its name, off the caller's thread: see
  /// ``commit()-()``. Cancellation does not shorten it.
  public func commit(isolation: isolated (any Actor)? = #isolation) async throws(AIOError) {
    try await BlockingCalls.value(on: file.file.traits.device) { [self] () throws(AIOError) in
      try commit()
    }
  }
}

extension AIOFile {
  /// Writes a file as a whole: it takes the place of another, or of none, once `body` has returned.
  /// When the call returns, the new file and its name are durable; if it throws, the old file is
  /// untouched: see ``AIOReplacement``.
  ///
  /// ```swift
  /// try await AIOFile.replace("/etc/app/state") { file in
  ///   try await context.write(file, at: 0, from: buffer)
  /// }
  /// ```
  ///
  /// - Parameters:
  ///   - path: The path of the file.
  ///   - directory: A directory that the path does not leave; `nil` for none.
  ///   - existing: What is to happen to a file that has the name.
  ///   - permissions: Those of the new file; if `nil`, those of the file that it replaces.
  ///   - caching: How `body` writes the file.
  ///   - isolation: The caller's actor, which the compiler gives.
  ///   - body: Writes the new file; what it throws is thrown by the call.
  /// - Returns: What `body` returned.
  public static func replace<Value>(
    _ path: FilePath, beneath directory: AIODirectory? = nil,
    existing: AIOReplacement.Existing = .replace, permissions: FilePermissions? = nil,
    caching: Caching = .direct, isolation: isolated (any Actor)? = #isolation,
    _ body: (AIOFile) async throws -> Value
  ) async throws -> Value {
    let replacement = try await AIOReplacement.begin(
      path, beneath: directory, existing: existing, permissions: permissions, caching: caching)
    do {
      let value = try await body(replacement.file)
      try await replacement.commit()
      await replacement.file.close()
      return value
    } catch {
      replacement.abandon()
      throw error
    }
  }
}
