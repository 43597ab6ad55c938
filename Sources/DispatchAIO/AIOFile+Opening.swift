// SPDX-License-Identifier: Apache-2.0
//
// The way a path is opened. Opening has side effects: a FIFO waits for its other end, a tape
// rewinds, a terminal may hang up. O_NONBLOCK would avoid them, but then open(2) does not wait for
// the holder of a lease either. So the path is looked up first (O_PATH opens nothing), and a
// regular file or a block device is then opened through /proc/self/fd, which names exactly the file
// that was found.
//
// A file that does not exist is created with O_EXCL and without O_DIRECT, because the kernel
// creates the file before it finds that O_DIRECT is not supported, and only its creator may remove
// it.

internal import CKernel
internal import PlatformLibc
internal import SystemPackage

/// One call of `AIOFile.open`. `run` may sleep; `runCached` does not.
struct FileOpening {
  /// The number of attempts while other processes create and remove the file.
  private static let attemptLimit = 64
  /// The number of symbolic links to follow: as many as the kernel does.
  private static let linkLimit = 40

  /// The path to look up next. A symbolic link whose target is to be created is followed here.
  private(set) var path: FilePath
  /// The directory that the path must stay beneath, if any.
  let directory: AIODirectory?
  let options: FileDescriptor.OpenOptions
  /// The access mode and the options as flags of open(2), without those that say how to find or
  /// create the file.
  private let flags: Int32
  private let permissions: FilePermissions
  let isDirect: Bool
  let subject: AIOError.Subject

  init(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode, beneath directory: AIODirectory? = nil,
    options: FileDescriptor.OpenOptions, permissions: FilePermissions = [], isDirect: Bool
  ) {
    self.path = path
    self.directory = directory
    subject = AIOError.Subject(operation: .open, path: path)
    self.options = options
    self.permissions = permissions
    self.isDirect = isDirect
    var kept = options.subtracting([.create, .noFollow])
    // Without O_CREAT, O_EXCL asks for exclusive use of a block device.
    if options.contains(.create) { kept.remove(.exclusiveCreate) }
    flags = mode.rawValue | kept.rawValue | O_CLOEXEC
  }

  /// Opens the file.
  mutating func run() throws(AIOError) -> FileDescriptor {
    if options.rawValue & ckernel_o_tmpfile == ckernel_o_tmpfile {
      // O_TMPFILE: a file without a name, in the directory that the path names.
      guard flags & O_ACCMODE != O_RDONLY else {
        throw AIOError(
          .wrongAccessMode, subject,
          .text("a file without a name (O_TMPFILE) is opened for writing, too; it has nothing else")
        )
      }
      return try orThrow(call(path, openFlags), isDirect: isDirect)
    }
    for _ in 0..<Self.attemptLimit {
      if options.contains([.create, .exclusiveCreate]) {
        if let made = try create() { return made }
        throw AIOError(errno: EEXIST, subject)
      }
      if let found = try look() {
        defer { try? found.descriptor.close() }
        guard found.kind.isSupported else {
          throw found.kind.refusal(subject, device: UInt64(found.status.st_rdev))
        }
        if let opened = try reopen(found) { return opened }
      } else {
        if let made = try create() { return made }
        if directory == nil { try followDanglingLink() } else { try refuseLink() }
      }
    }
    throw AIOError(
      .system, errno: .resourceTemporarilyUnavailable, subject,
      .text("others made and removed the file over and over while it was being opened"))
  }

  // MARK: A file that exists

  /// A file that was found, and has not been opened yet.
  private struct Found {
    /// A descriptor with O_PATH.
    let descriptor: FileDescriptor
    let status: stat
    var kind: AIOFile.Kind { AIOFile.Kind(mode: status.st_mode) }
  }

  /// Looks the path up.
  ///
  /// - Returns: `nil` if nothing exists there, and a file is to be created.
  private func look() throws(AIOError) -> Found? {
    let noFollow = options.contains(.noFollow) ? O_NOFOLLOW : 0
    let answer = call(path, ckernel_o_path | O_CLOEXEC | noFollow)
    if answer == -ENOENT, options.contains(.create) { return nil }
    let descriptor = try orThrow(answer)
    var status = stat()
    guard unsafe fstat(descriptor.rawValue, &status) == 0 else {
      let errno = PlatformLibc.errno
      try? descriptor.close()
      throw AIOError(errno: errno, subject)
    }
    return Found(descriptor: descriptor, status: status)
  }

  /// Opens the file that was found.
  ///
  /// - Returns: `nil` if the path names another file by now.
  private func reopen(_ found: Found) throws(AIOError) -> FileDescriptor? {
    var flags = openFlags
    // In a directory like /tmp the kernel refuses to open a file that another user has put there
    // (fs.protected_regular), but only if it is asked to create by the path.
    let isOthers = options.contains(.create) && found.status.st_uid != geteuid()
    if isOthers {
      flags |= O_CREAT
    } else {
      let answer = reopen(found.descriptor, flags)
      // Without a /proc, or if a sandbox forbids to use it, the path has to do.
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

  // MARK: A file that does not exist

  /// Creates the file.
  ///
  /// - Returns: `nil` if the path names a file, or a symbolic link, by now.
  private func create() throws(AIOError) -> FileDescriptor? {
    let answer = call(path, flags | O_CREAT | O_EXCL)
    if answer == -EEXIST { return nil }
    let made = try orThrow(answer)
    guard isDirect else { return made }
    // The file is opened once more, because some file systems (SMB) look at O_DIRECT only then.
    let direct = reopen(made, openFlags & ~O_TRUNC)
    if direct >= 0 {
      try? made.close()
      return FileDescriptor(rawValue: direct)
    }
    var refusal = direct
    if refusal != -EINVAL {
      // There is no /proc, or the file's own permissions forbid opening it.
      refusal = ckernel_set_direct(made.rawValue)
      if refusal == 0 { return made }
    }
    removeMade(made)
    try? made.close()
    _ = try orThrow(refusal, isDirect: true)
    return nil
  }

  /// Removes the file that `create` made, unless the path names another file by now.
  private func removeMade(_ made: FileDescriptor) {
    guard let name = path.lastComponent else { return }
    let parent = path.removingLastComponent()
    let place = call(parent.isEmpty ? "." : parent, ckernel_o_path | O_DIRECTORY | O_CLOEXEC)
    guard place >= 0 else { return }
    defer { PlatformLibc.close(place) }
    // The name's bytes and the status are used during the calls only.
    var (ours, named) = (stat(), stat())
    unsafe name.withPlatformString {
      guard unsafe fstat(made.rawValue, &ours) == 0,
        unsafe fstatat(place, $0, &named, AT_SYMLINK_NOFOLLOW) == 0, Self.isSame(ours, named)
      else { return }
      _ = unsafe unlinkat(place, $0, 0)
    }
  }

  private var linksFollowed = 0

  /// If the path names a symbolic link whose target does not exist, replaces the path by the
  /// target.
  private mutating func followDanglingLink() throws(AIOError) {
    let capacity = Int(PATH_MAX) + 1
    let target = unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: capacity) {
      buffer -> FilePath? in
      // The buffer is this closure's, with room for the 0 at the end; the path is a copy.
      guard let base = buffer.baseAddress else { return nil }
      let count = unsafe path.withPlatformString { unsafe readlink($0, base, capacity - 1) }
      guard count > 0 else { return nil }
      unsafe base[count] = 0
      return unsafe FilePath(platformString: base)
    }
    // The link was removed in the meantime, or is a file by now: the next look-up says which.
    guard let target else { return }
    linksFollowed += 1
    guard linksFollowed <= Self.linkLimit else { throw AIOError(errno: ELOOP, subject) }
    path = path.removingLastComponent().pushing(target)
  }

  /// If the path names a symbolic link whose target does not exist, throws: only the kernel can
  /// follow a link and stay beneath the directory, and it does not create what a link names.
  private func refuseLink() throws(AIOError) {
    let place = call(path, ckernel_o_path | O_CLOEXEC | O_NOFOLLOW)
    guard place >= 0 else { return }
    defer { PlatformLibc.close(place) }
    var status = stat()
    guard unsafe fstat(place, &status) == 0, status.st_mode & S_IFMT == S_IFLNK else { return }
    throw AIOError(
      .exists, errno: .fileExists, subject,
      .text("it is a symbolic link to what does not exist; create the file under its own name"))
  }

  // MARK: The calls

  /// The flags that the file is open with.
  var openFlags: Int32 { flags | (isDirect ? ckernel_o_direct : 0) }

  /// Opens the file that a descriptor stands for, also after the file was renamed.
  ///
  /// - Returns: The descriptor, or a negative errno.
  func reopen(_ descriptor: FileDescriptor, _ flags: Int32) -> Int32 {
    Self.open(FilePath("/proc/self/fd/\(descriptor.rawValue)"), flags, permissions)
  }

  private static func isSame(_ a: stat, _ b: stat) -> Bool {
    a.st_dev == b.st_dev && a.st_ino == b.st_ino
  }

  /// Calls open(2), or openat2(2) beneath the directory.
  ///
  /// - Returns: The descriptor, or a negative errno.
  private func call(_ path: FilePath, _ flags: Int32) -> Int32 {
    Self.open(path, flags, beneath: directory, permissions)
  }

  /// Calls open(2), or openat2(2) beneath a directory and where there are rules.
  ///
  /// - Parameters:
  ///   - directory: The directory that the path must stay beneath, if any.
  ///   - permissions: Those of a file that is created.
  ///   - resolve: The rules beside those that keep the path beneath the directory.
  /// - Returns: The descriptor, which the caller closes, or a negative errno.
  static func open(
    _ path: FilePath, _ flags: Int32, beneath directory: AIODirectory? = nil,
    _ permissions: FilePermissions = [], resolve: UInt64 = 0
  ) -> Int32 {
    var resolve = resolve
    if directory != nil { resolve |= ckernel_resolve_beneath | ckernel_resolve_no_magic_links }
    let creates = flags & O_CREAT != 0 || flags & ckernel_o_tmpfile == ckernel_o_tmpfile
    // The path's bytes are used during the call only.
    return unsafe path.withPlatformString {
      unsafe ckernel_open(
        directory?.descriptor ?? ckernel_at_cwd, $0, flags, creates ? permissions.rawValue : 0,
        resolve)
    }
  }

  /// Turns an answer of `call` into a descriptor or an error.
  ///
  /// - Parameter isDirect: Whether the call asked for O_DIRECT.
  private func orThrow(
    _ answer: Int32, isDirect: Bool = false
  ) throws(AIOError) -> FileDescriptor {
    if answer >= 0 { return FileDescriptor(rawValue: answer) }
    if answer == -EINVAL, isDirect {
      throw AIOError(.directUnsupported, errno: .invalidArgument, subject, .errno)
    }
    if answer == -ENOSYS, directory != nil {
      throw .noOpenat2(subject)
    }
    throw AIOError(errno: -answer, subject)
  }
}

extension AIOError {
  static func noOpenat2(_ subject: Subject) -> AIOError {
    AIOError(
      .unavailable, errno: .noFunction, subject,
      .text("to stay beneath a directory needs openat2(2), which Linux has from 5.6 on"))
  }
}
