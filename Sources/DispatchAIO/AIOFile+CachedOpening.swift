// SPDX-License-Identifier: Apache-2.0
//
// Opening without waiting: by openat2(2) with RESOLVE_CACHED, which answers what the kernel's
// lookup cache has. The look-up never waits then, but the opening itself might: FUSE asks the
// process that serves the file, NFS the other machine. So only a file that is known to be on a
// local file system is opened, known from its mount, whose file system was asked for when a thread
// that may sleep opened a file of it.
//
// The file is looked up as a place (O_PATH), its mount is compared, and it is opened: five system
// calls. Where the same directory had regular files of a local file system just before, the file
// is opened at once and its status says whether that was right: two. This is not tried through a
// symbolic link, which may lead elsewhere. What remains is one file for each directory that is not
// as its neighbours are: one that is mounted by itself, or a pipe or device, which is opened with
// O_NONBLOCK. Beneath an `AIODirectory` it is never a mount, as the kernel crosses none.

internal import CKernel
internal import PlatformLibc
internal import SystemPackage

extension FileOpening {
  /// The largest direct file of a file system with maps of blocks that is opened without reading
  /// its map into memory, in bytes: its map is in the inode, unless it is in pieces.
  private static let mappedSize: Int64 = 1 << 20

  /// A file that has been opened.
  struct Opened {
    let descriptor: FileDescriptor
    let flags: Int32
    let status: ckernel_status
    let mount: Mounts.Facts
  }

  /// Opens the file if that takes no waiting.
  ///
  /// - Returns: `nil` if it might, or if only `run` can tell what is wrong.
  /// - Throws: `.notFound`.
  func runCached() throws(AIOError) -> Opened? {
    guard options.isDisjoint(with: [.create, .truncate, .directory]), !path.isEmpty else {
      return nil
    }
    if let directory, !directory.mount.kind.isLocal { return nil }
    let key = directoryKey
    let known = KnownDirectories.knowledge(of: key)
    if case .local(let mount) = known.knowledge {
      switch try openAtOnce(key, mount, known) {
      case .opened(let opened): return opened
      case .wouldWait: return nil
      case .isLink: break
      }
    }
    return try lookAndOpen(key)
  }

  /// What `KnownDirectories` calls the path's directory.
  private var directoryKey: UInt64 {
    // The path's bytes are read during the call.
    unsafe path.withPlatformString { path in
      let bytes = unsafe UnsafeRawBufferPointer(start: path, count: strlen(path))
      let parent = unsafe bytes[..<(bytes.lastIndex(of: UInt8(ascii: "/")) ?? 0)]
      return unsafe KnownDirectories.key(
        directory?.number ?? 0, UnsafeRawBufferPointer(rebasing: parent))
    }
  }

  private enum AtOnce {
    case opened(Opened)
    case wouldWait
    case isLink
  }

  /// Opens the file, taking it for one like its neighbours.
  private func openAtOnce(
    _ key: UInt64, _ mount: UInt64, _ known: KnownDirectories.Recent
  ) throws(AIOError) -> AtOnce {
    // Beneath a directory, a link leads to no other mount.
    let noFollow = directory == nil || options.contains(.noFollow) ? O_NOFOLLOW : 0
    let answer = Self.open(
      path, cachedFlags | noFollow, beneath: directory, resolve: cachedRules)
    if answer == -ENOENT { throw AIOError(errno: ENOENT, subject) }
    if answer == -ELOOP, !options.contains(.noFollow) { return .isLink }
    guard answer >= 0 else { return .wouldWait }
    var isDirectory = false
    guard let opened = check(answer, isDirectory: &isDirectory) else {
      // A directory notices nothing, as a file.
      if !isDirectory { KnownDirectories.learn(key, .mixed) }
      return .wouldWait
    }
    if opened.status.mount == mount {
      KnownDirectories.learn(key, .local(mount: mount), before: known)
    }
    return settle(opened).map { .opened($0) } ?? .wouldWait
  }

  /// Looks where the path leads, and opens the file if it is a regular one of a local file system.
  private func lookAndOpen(_ key: UInt64) throws(AIOError) -> Opened? {
    var isLink = false
    var place = try look(noFollow: directory == nil || options.contains(.noFollow))
    if let found = place, found.mode & S_IFMT == S_IFLNK, !options.contains(.noFollow) {
      PlatformLibc.close(found.descriptor)
      isLink = true
      place = try look(noFollow: false)
    }
    guard let place else { return nil }
    defer { PlatformLibc.close(place.descriptor) }
    guard place.mode & S_IFMT == S_IFREG,
      (directory?.mount ?? Mounts.known(place.mount))?.kind.isLocal == true
    else { return nil }
    let answer = reopen(FileDescriptor(rawValue: place.descriptor), cachedFlags)
    var isDirectory = false
    guard answer >= 0, let opened = check(answer, isDirectory: &isDirectory) else { return nil }
    // A link says nothing about its neighbours.
    if !isLink { KnownDirectories.learn(key, .local(mount: opened.status.mount)) }
    return settle(opened)
  }

  /// Looks the path up as a place, by the lookup cache.
  ///
  /// - Returns: A descriptor that the caller closes; `nil` if the look-up would wait.
  private func look(
    noFollow: Bool
  ) throws(AIOError) -> (descriptor: Int32, mode: mode_t, mount: UInt64)? {
    let flags = ckernel_o_path | O_CLOEXEC | (noFollow ? O_NOFOLLOW : 0)
    let place = Self.open(path, flags, beneath: directory, resolve: cachedRules)
    if place == -ENOENT { throw AIOError(errno: ENOENT, subject) }
    guard place >= 0 else { return nil }
    guard let status = try? ckernel_status(of: place, asksNobody: true) else {
      PlatformLibc.close(place)
      return nil
    }
    return (place, status.mode, status.mount)
  }

  /// Checks that a descriptor is one of a regular file on a local file system; closes it if not.
  private func check(_ descriptor: Int32, isDirectory: inout Bool) -> Opened? {
    let status = try? ckernel_status(of: descriptor)
    guard let status, status.mode & S_IFMT == S_IFREG,
      var mount = directory?.mount ?? Mounts.known(status.mount), mount.kind.isLocal
    else {
      isDirectory = status.map { $0.mode & S_IFMT } == S_IFDIR
      // Nobody knows what it is: its close may wait.
      BlockingCalls.run(on: nil) { PlatformLibc.close(descriptor) }
      return nil
    }
    if cachedFlags & O_ACCMODE != O_RDONLY {
      mount = Mounts.facts(descriptor, status, isWritable: true)
    }
    return Opened(
      descriptor: FileDescriptor(rawValue: descriptor), flags: cachedFlags, status: status,
      mount: mount)
  }

  /// Leaves a file whose map of blocks has to be read to `run`.
  private func settle(_ opened: Opened) -> Opened? {
    guard isDirect, opened.mount.hasBlockMaps, opened.status.size > Self.mappedSize
    else { return opened }
    BlockingCalls.run(on: opened.status.device) { try? opened.descriptor.close() }
    return nil
  }

  /// O_NONBLOCK: the holder of a lease is not waited for. It means nothing to the reads and writes
  /// of a regular file, and stays.
  private var cachedFlags: Int32 { openFlags | O_NONBLOCK | O_NOCTTY }

  private var cachedRules: UInt64 {
    directory == nil ? ckernel_resolve_cached : ckernel_resolve_cached | ckernel_resolve_no_mounts
  }
}
