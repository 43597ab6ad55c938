// SPDX-License-Identifier: Apache-2.0
//
// How a path is opened. To open is to do something: a FIFO waits for its other end, a tape rewinds, a
// terminal may hang up; and O_NONBLOCK, which would not wait, does not wait for the holder of a lease
// either, as open(2) does. So one looks first (O_PATH opens nothing), and what is a file is then
// opened by way of /proc/self/fd, which names the very file that was looked at.
//
// A file that is not there is made with O_EXCL and without O_DIRECT: the kernel makes the file before
// it finds that it cannot be opened so, and only who made it may remove it.

internal import CLinux
internal import Glibc
internal import SystemPackage

/// One call of ``AIOFile/open(_:_:options:permissions:caching:)-(_,_,_,_,_)``.
struct FileOpening {
  /// How often to begin anew when others make and remove the file meanwhile.
  private static let attemptLimit = 64
  /// As many symbolic links as the kernel follows.
  private static let linkLimit = 40

  /// Where to look next: symbolic links that point to nothing, to what is to be made, are followed
  /// here.
  private var path: FilePath
  private let options: FileDescriptor.OpenOptions
  /// The access mode and the options as flags of open(2), without those that tell how to find or
  /// make the file.
  private let flags: Int32
  private let permissions: FilePermissions
  private let isDirect: Bool
  private let subject: AIOError.Subject

  init(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode, options: FileDescriptor.OpenOptions,
    permissions: FilePermissions, isDirect: Bool, subject: AIOError.Subject
  ) {
    self.path = path
    self.options = options
    self.permissions = permissions
    self.isDirect = isDirect
    self.subject = subject
    var kept = options.subtracting([.create, .noFollow])
    // Without O_CREAT it asks to have a block device alone.
    if options.contains(.create) { kept.remove(.exclusiveCreate) }
    flags = mode.rawValue | kept.rawValue | O_CLOEXEC
  }

  /// Opens the file.
  mutating func run() throws(AIOError) -> FileDescriptor {
    if options.rawValue & clinux_o_tmpfile == clinux_o_tmpfile {
      // A file without a name, in the directory that the path names.
      return try orThrow(call(path, flags | directFlag), isDirect: isDirect)
    }
    for _ in 0..<Self.attemptLimit {
      if options.contains([.create, .exclusiveCreate]) {
        if let made = try create() { return made }
        throw AIOError(errno: EEXIST, subject)
      }
      if let found = try look() {
        defer { try? found.descriptor.close() }
        guard found.kind.isSupported else { throw found.kind.refusal(subject) }
        if let opened = try reopen(found) { return opened }
      } else {
        if let made = try create() { return made }
        try followDanglingLink()
      }
    }
    throw AIOError(
      .system, errno: .resourceTemporarilyUnavailable, subject,
      .text("others made and removed the file over and over while it was being opened"))
  }

  // MARK: What is there

  /// A file that was found, and not opened yet.
  private struct Found {
    /// Of O_PATH.
    let descriptor: FileDescriptor
    let status: stat
    var kind: FileKind { FileKind(status) }
  }

  /// Finds out what the path names.
  ///
  /// - Returns: `nil` when there is nothing, and it is to be made.
  private func look() throws(AIOError) -> Found? {
    let noFollow = options.contains(.noFollow) ? O_NOFOLLOW : 0
    let answer = call(path, clinux_o_path | O_CLOEXEC | noFollow)
    if answer == -ENOENT, options.contains(.create) { return nil }
    let descriptor = try orThrow(answer)
    var status = stat()
    guard unsafe fstat(descriptor.rawValue, &status) == 0 else {
      let errno = Glibc.errno
      try? descriptor.close()
      throw AIOError(errno: errno, subject)
    }
    return Found(descriptor: descriptor, status: status)
  }

  /// Opens the file that was found.
  ///
  /// - Returns: `nil` when the path names another by now.
  private func reopen(_ found: Found) throws(AIOError) -> FileDescriptor? {
    var flags = flags | directFlag
    // The kernel protects the users of a directory like /tmp from files that others have put in the
    // way of theirs (fs.protected_regular), but only if it is asked to create, by the path.
    let isOthers = options.contains(.create) && found.status.st_uid != geteuid()
    if isOthers {
      flags |= O_CREAT
    } else {
      let answer = call(Self.name(found.descriptor), flags)
      // Without a /proc, or where a sandbox forbids to use it, there is the path.
      guard answer < 0, [ENOENT, ENOTDIR, EACCES, EPERM, ELOOP].contains(-answer) else {
        return try orThrow(answer, isDirect: isDirect)
      }
    }
    if options.contains(.noFollow) { flags |= O_NOFOLLOW }
    let answer = call(path, flags)
    if answer == -ENOENT { return nil }
    let opened = try orThrow(answer, isDirect: isDirect)
    var status = stat()
    if unsafe fstat(opened.rawValue, &status) == 0, Self.isSame(status, found.status) {
      return opened
    }
    try? opened.close()
    return nil
  }

  // MARK: What is not there

  /// Makes the file.
  ///
  /// - Returns: `nil` when there is one, or a symbolic link.
  private func create() throws(AIOError) -> FileDescriptor? {
    let answer = call(path, flags | O_CREAT | O_EXCL)
    if answer == -EEXIST { return nil }
    let made = try orThrow(answer)
    guard isDirect else { return made }
    // Opened anew, because some file systems (SMB) look at O_DIRECT at that moment only.
    let direct = call(Self.name(made), (flags & ~O_TRUNC) | directFlag)
    if direct >= 0 {
      try? made.close()
      return FileDescriptor(rawValue: direct)
    }
    var errno = -direct
    if errno != EINVAL {
      // There is no /proc, or the file's own permissions forbid to open it.
      let flags = fcntl(made.rawValue, F_GETFL)
      if fcntl(made.rawValue, F_SETFL, flags | directFlag) == 0 { return made }
      errno = Glibc.errno
    }
    removeMade(made)
    try? made.close()
    _ = try orThrow(-errno, isDirect: true)
    return nil
  }

  /// Removes the file that `create` made, unless the path names another by now.
  private func removeMade(_ made: FileDescriptor) {
    // The path's bytes and the status are used during the calls only.
    var (ours, named) = (stat(), stat())
    guard unsafe fstat(made.rawValue, &ours) == 0,
      unsafe path.withPlatformString({ unsafe lstat($0, &named) }) == 0,
      Self.isSame(ours, named)
    else { return }
    _ = unsafe path.withPlatformString { unsafe unlink($0) }
  }

  private var linksFollowed = 0

  /// If the path names a symbolic link, which points to nothing, goes on with what it points to.
  private mutating func followDanglingLink() throws(AIOError) {
    let capacity = Int(PATH_MAX) + 1
    let target = unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: capacity) {
      buffer -> FilePath? in
      // Allocated for this closure, with room for the 0 at the end; the path is a copy of it.
      guard let base = buffer.baseAddress else { return nil }
      let count = unsafe path.withPlatformString { unsafe readlink($0, base, capacity - 1) }
      guard count > 0 else { return nil }
      unsafe base[count] = 0
      return unsafe FilePath(platformString: base)
    }
    // It was removed meanwhile, or was a file: the next look will tell.
    guard let target else { return }
    linksFollowed += 1
    guard linksFollowed <= Self.linkLimit else { throw AIOError(errno: ELOOP, subject) }
    path = path.removingLastComponent().pushing(target)
  }

  // MARK: Beneath

  private var directFlag: Int32 { isDirect ? clinux_o_direct : 0 }

  /// What names the file of a descriptor, whatever has become of its path.
  private static func name(_ descriptor: FileDescriptor) -> FilePath {
    FilePath("/proc/self/fd/\(descriptor.rawValue)")
  }

  private static func isSame(_ a: stat, _ b: stat) -> Bool {
    a.st_dev == b.st_dev && a.st_ino == b.st_ino
  }

  /// open(2), which has done with the path's bytes when it returns.
  ///
  /// - Returns: the descriptor, or a negative errno.
  private func call(_ path: FilePath, _ flags: Int32) -> Int32 {
    while true {
      let answer = unsafe path.withPlatformString {
        unsafe Glibc.open($0, flags, permissions.rawValue)
      }
      if answer >= 0 { return answer }
      if errno != EINTR { return -errno }
    }
  }

  /// - Parameter isDirect: whether the call asked for O_DIRECT.
  private func orThrow(
    _ answer: Int32, isDirect: Bool = false
  ) throws(AIOError) -> FileDescriptor {
    if answer >= 0 { return FileDescriptor(rawValue: answer) }
    if answer == -EINVAL, isDirect {
      throw AIOError(.directUnsupported, errno: .invalidArgument, subject, .errno)
    }
    throw AIOError(errno: -answer, subject)
  }
}
