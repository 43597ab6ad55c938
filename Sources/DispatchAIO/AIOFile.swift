// SPDX-License-Identifier: Apache-2.0

internal import CKernel
public import Dispatch
internal import PlatformLibc
public import SystemPackage

/// An open regular file or block device, for the requests of any number of contexts.
///
/// Opening, ``size()-()``, ``preallocate(_:)-(_)`` and ``truncate(to:)-(_)`` are blocking system
/// calls, which may sleep in the disk: they are for other threads than the loop's, or for `await`.
/// What the kernel's lookup cache knows is opened without blocking by
/// ``openNow(_:_:beneath:options:caching:)``, and so by
/// ``AIOContext/open(_:_:beneath:options:permissions:caching:queue:completion:)`` and by `await`.
/// What the page cache has is read without blocking by ``readNow(at:into:)-(_,AIOBuffer)``.
/// ``close(queue:completion:)`` never blocks.
///
/// A file stays open until it has been closed, or its last reference is gone, and every accepted
/// request on it has completed.
public final class AIOFile: Sendable {
  /// The way that reads and writes take to the disk.
  public enum Caching: Sendable, Hashable {
    /// Past the page cache (`O_DIRECT`): the device transfers asynchronously from and to the
    /// buffers, which have to be aligned (``AIOFile/alignment``).
    case direct
    /// Through the page cache, at any alignment.
    case buffered
    /// Reads from the page cache where the bytes are there, else past it; at any alignment. Writes
    /// as ``buffered``.
    ///
    /// What the page cache does not have is read with `O_DIRECT` through a second descriptor, which
    /// takes no thread. A thread opens it (through `/proc/self/fd`) while it makes the first read
    /// that is refused, and it is closed with the file. Where that is not possible (no direct
    /// I/O there, no `/proc`, no permission, no descriptors left, which is tried again after a
    /// second) and on memory, network and FUSE file systems, the file is ``buffered``.
    ///
    /// - A read sees what was written before it, through this file or by others, a mapping
    ///   included: the kernel refuses a direct read of pages that are not written back, and a
    ///   thread makes it.
    /// - After four refusals in a row reads are direct at once, and one in 64 is tried in the
    ///   page cache, which notices when the file is cached, and has the kernel cache what it tries
    ///   (Linux 5.10); one in two while blocks are read again, as those of a working set of up to
    ///   some 2 GiB of 4 KiB blocks. A range that was read directly of late (256 are remembered)
    ///   and is refused again is read through the page cache by a thread: one at a time for each
    ///   file, of at most 16 MiB. So what is read often ends up in the page cache, and what is read
    ///   once does not push out the rest.
    /// - A read whose offset, length or memory is not aligned for the device is copied: 128 KiB at
    ///   a time, with at most 128 such reads (16 MiB) under way in a context, and 512 KiB a turn.
    ///   More of them, and unaligned reads into memory of the caller's own (the `@unsafe` verbs),
    ///   are made by threads.
    case automatic
  }

  let file: OpenFile

  /// The size, the times and so on as of when the file was opened or adopted, without asking again.
  public let status: Status

  /// A group that is entered while the descriptor is open.
  private let isOpen = DispatchGroup()

  /// Opens a file. Corresponds to `open(2)` with `O_CLOEXEC`, and with `O_DIRECT` if direct.
  ///
  /// Blocks the calling thread, also while another process holds a lease on the file, and on ext4
  /// until the map of a direct file's blocks is in memory (some 20 ms for 8,000 extents). The path
  /// is looked up before it is opened, so that opening has no side effects on a tape or a terminal,
  /// and does not wait for the other end of a pipe. If the file system has no direct I/O, no new
  /// file is left behind.
  ///
  /// - Parameters:
  ///   - path: The file's path.
  ///   - mode: The access: reading, writing, or both.
  ///   - directory: The directory that the path is relative to and must not leave; if `nil`, the
  ///     path is any path. Beneath a directory, no file is created through a symbolic link.
  ///   - options: The options of `FileDescriptor.open`: `.create`, `.truncate`, `.exclusiveCreate`,
  ///     …. With `.append`, every write goes to the end of the file, whatever its offset.
  ///   - permissions: The permissions of the file if it is created, less the process's umask.
  ///   - caching: The way to the disk; ``Caching/direct`` unless given.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/notFound``,
  ///   ``AIOError/Code/permissionDenied``, ``AIOError/Code/exists``,
  ///   ``AIOError/Code/directUnsupported`` if the file system has no direct I/O,
  ///   ``AIOError/Code/unsupportedFile`` for a directory, pipe, socket, terminal or other character
  ///   device, and for a symbolic link with `.noFollow`,
  ///   ``AIOError/Code/wrongAccessMode`` for `.truncate` of a file that is opened for reading only,
  ///   ``AIOError/Code/descriptorLimit`` (two descriptors are needed during the call),
  ///   ``AIOError/Code/system``, as for a path that leaves the directory (`EXDEV`), or
  ///   ``AIOError/Code/unavailable`` if there is a directory and no `openat2(2)`.
  public static func open(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode, beneath directory: AIODirectory? = nil,
    options: FileDescriptor.OpenOptions = [],
    permissions: FilePermissions = [.ownerReadWrite, .groupRead, .otherRead],
    caching: Caching = .direct
  ) throws(AIOError) -> AIOFile {
    if options.contains(.truncate), mode == .readOnly {
      throw AIOError(
        .wrongAccessMode, AIOError.Subject(operation: .open, path: path),
        .text("to truncate is to write, and the file was to be opened for reading only"))
    }
    var opening = FileOpening(
      path, mode, beneath: directory, options: options, permissions: permissions,
      isDirect: caching == .direct)
    let descriptor = try opening.run()
    do {
      var flags = opening.openFlags
      // The caller asked for it while opening; an open file does not need it.
      if flags & O_NONBLOCK != 0 {
        flags &= ~O_NONBLOCK
        _ = fcntl(descriptor.rawValue, F_SETFL, flags)
      }
      var subject = opening.subject
      subject.descriptor = descriptor.rawValue
      let (status, mount) = try Self.ask(descriptor, flags, subject)
      // ext4 would read the map of the file's blocks in `io_submit`, RWF_NOWAIT or not, and so on
      // the loop. `open` may sleep; whether it succeeds changes nothing but that.
      if caching == .direct, mount.hasBlockMaps, Kind(mode: status.mode) == .regular {
        _ = ckernel_cache_block_map(descriptor.rawValue)
      }
      return AIOFile(
        FileOpening.Opened(descriptor: descriptor, flags: flags, status: status, mount: mount),
        path: path, isAutomatic: caching == .automatic)
    } catch {
      try? descriptor.close()
      throw error
    }
  }

  /// Opens a file if that takes no waiting: if the kernel's lookup cache knows the path, and the
  /// file is a regular one on a file system of this machine, of which the process has opened a file
  /// before. Never blocks, and is for any thread. Corresponds to `openat2(2)` with
  /// `RESOLVE_CACHED` (Linux 5.12), and `statx(2)`.
  ///
  /// The descriptor has `O_NONBLOCK`, which means nothing for a regular file, so that the holder of
  /// a lease is not waited for.
  ///
  /// - Parameters: As those of ``open(_:_:beneath:options:permissions:caching:)-(_,_,_,_,_,_)``.
  ///   With `.create` and `.truncate` the answer is `nil`.
  /// - Returns: The file; `nil` if the call might block, or failed in any other way than by
  ///   ``AIOError/Code/notFound``. The caller then opens it by another form of `open`, which also
  ///   says what is wrong. A direct file of more than 1 MiB on ext4 is always opened so, because
  ///   the map of its blocks may have to be read.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/notFound``.
  public static func openNow(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode, beneath directory: AIODirectory? = nil,
    options: FileDescriptor.OpenOptions = [], caching: Caching = .direct
  ) throws(AIOError) -> AIOFile? {
    let opening = FileOpening(
      path, mode, beneath: directory, options: options, isDirect: caching == .direct)
    return try opening.runCached().map {
      AIOFile($0, path: path, isAutomatic: caching == .automatic)
    }
  }

  /// Takes ownership of an open file descriptor, which is closed with the file.
  ///
  /// Requests are direct if the descriptor was opened with `O_DIRECT`.
  ///
  /// - Parameters:
  ///   - descriptor: A descriptor of a regular file or a block device.
  ///   - path: A name for error messages; `nil` names the descriptor's number instead.
  ///   - isAutomatic: Whether reads are made as ``Caching/automatic`` says, if the descriptor was
  ///     opened without `O_DIRECT`.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/unsupportedFile``,
  ///   ``AIOError/Code/wrongAccessMode`` if it was opened with `O_PATH`, or
  ///   ``AIOError/Code/system``; the descriptor then stays the caller's.
  public convenience init(
    adopting descriptor: FileDescriptor, path: FilePath? = nil, isAutomatic: Bool = false
  ) throws(AIOError) {
    let subject = AIOError.Subject(
      operation: .adopt, path: path, descriptor: descriptor.rawValue)
    let flags = fcntl(descriptor.rawValue, F_GETFL)
    guard flags >= 0 else { throw AIOError(errno: PlatformLibc.errno, subject) }
    let (status, mount) = try Self.ask(descriptor, flags, subject)
    guard flags & ckernel_o_path == 0 else {
      throw AIOError(
        .wrongAccessMode, subject,
        .text("it was opened with O_PATH, neither to read nor to write; open it without"))
    }
    self.init(
      FileOpening.Opened(descriptor: descriptor, flags: flags, status: status, mount: mount),
      path: path, isAutomatic: isAutomatic)
  }

  /// What an open file is, and its file system.
  private static func ask(
    _ descriptor: FileDescriptor, _ flags: Int32, _ subject: AIOError.Subject
  ) throws(AIOError) -> (ckernel_status, Mounts.Facts) {
    let status = try ckernel_status(of: descriptor.rawValue, subject)
    let kind = Kind(mode: status.mode)
    guard kind.isSupported else {
      throw kind.refusal(subject, device: status.represented_device)
    }
    // The file system of a device node, devtmpfs, says nothing about the device.
    if kind == .blockDevice { return (status, Mounts.Facts(kind: .local)) }
    let isWritable = flags & O_ACCMODE != O_RDONLY
    return (status, Mounts.facts(descriptor.rawValue, status, isWritable: isWritable))
  }

  private init(_ opened: FileOpening.Opened, path: FilePath?, isAutomatic: Bool) {
    let isOpen = isOpen
    isOpen.enter()
    var traits = OpenFile.Traits(opened)
    traits.isAutomatic = isAutomatic && opened.flags & ckernel_o_direct == 0
    let directReads = DirectReads(traits)
    let bufferedWrites = BufferedWrites(traits)
    status = Status(opened.status)
    let device = traits.device
    // Nothing is written back, and no other machine is told.
    let closesInPlace = !traits.isWritable && traits.isLocal && !traits.isBlockDevice
    file = OpenFile(
      descriptor: opened.descriptor.rawValue, path: path,
      traits: traits,
      size: traits.isBlockDevice ? .max : opened.status.size,
      atomicWriteUnit: traits.isDirect ? opened.status.atomicWriteUnit : nil,
      directReads: directReads,
      bufferedWrites: bufferedWrites
    ) { descriptor in
      if closesInPlace, ckernel_link_count(descriptor) > 0 {
        directReads?.close()
        PlatformLibc.close(descriptor)
        isOpen.leave()
        return
      }
      // The last close of a file can take long (it frees an unlinked file; NFS and FUSE flush), and
      // a completion on the loop may be the last to release it.
      BlockingCalls.run(on: device) {
        directReads?.close()
        bufferedWrites?.close()
        PlatformLibc.close(descriptor)
        isOpen.leave()
      }
    }
  }

  deinit {
    file.close()
  }

  /// The file's path, as it was opened or adopted.
  public var path: FilePath? { file.path }

  /// The descriptor, for calls that this library does not have. The file owns it: it must not be
  /// closed.
  public var fileDescriptor: FileDescriptor { FileDescriptor(rawValue: file.descriptor) }

  /// The way that requests take to the disk. A file that was opened ``Caching/direct`` is
  /// ``Caching/buffered`` if its file system accepts `O_DIRECT` and then does buffered I/O, as ext4
  /// does with `data=journal`; one that was opened ``Caching/automatic`` stays so.
  public var caching: Caching {
    file.traits.isAutomatic ? .automatic : file.traits.isDirect ? .direct : .buffered
  }

  /// The alignment that requests on this file need, in bytes; 1 and 1 unless it is direct.
  public var alignment: AIOAlignment { AIOAlignment(file.traits.alignment) }

  /// The lengths of a write, in bytes, that the disk and the file system do not tear, whatever
  /// happens to the power: powers of two, from the lower to the upper bound, for
  /// ``AIOWriteOptions/atomic``. `nil` if there are none, as before Linux 6.11, on most disks, and
  /// for files that are not direct. Corresponds to `statx(2)` with `STATX_WRITE_ATOMIC`.
  public var atomicWriteUnit: ClosedRange<Int>? { file.atomicWriteUnit }

  /// The file's size in bytes. Corresponds to `fstat(2)`, or `BLKGETSIZE64` for a block device.
  /// Blocks the calling thread.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/fileClosed`` or ``AIOError/Code/system``.
  public func size() throws(AIOError) -> Int64 {
    try call(subject(.size)) { descriptor in
      // The structure is filled during the call.
      var status = stat()
      guard unsafe fstat(descriptor, &status) == 0 else { return -Int64(PlatformLibc.errno) }
      return status.st_mode & S_IFMT == S_IFBLK
        ? ckernel_block_device_size(descriptor) : Int64(status.st_size)
    }
  }

  /// Allocates room on the disk for the bytes of `range`, and grows the file to cover it.
  /// Corresponds to `fallocate(2)`. Bytes that were never written read as zeros. Blocks the calling
  /// thread, possibly for long.
  ///
  /// - Parameter range: The bytes, in offsets from 0 on; an empty range changes nothing.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/noSpace``,
  ///   ``AIOError/Code/fileSizeLimit``, ``AIOError/Code/wrongAccessMode``,
  ///   ``AIOError/Code/invalidOffset``, ``AIOError/Code/fileClosed``, or
  ///   ``AIOError/Code/notSupported``.
  public func preallocate(_ range: Range<Int64>) throws(AIOError) {
    try allocate(.preallocate, 0, range, grows: true)
  }

  /// Sets the file's size. Corresponds to `ftruncate(2)`. Bytes beyond a smaller size are lost; a
  /// larger size adds a hole, which reads as zeros. Blocks the calling thread.
  ///
  /// - Parameter size: The size in bytes, 0 or more.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/invalidOffset``,
  ///   ``AIOError/Code/wrongAccessMode``, ``AIOError/Code/fileClosed``,
  ///   ``AIOError/Code/fileSizeLimit``, or ``AIOError/Code/system``, for example for a block
  ///   device.
  public func truncate(to size: Int64) throws(AIOError) {
    let subject = subject(.truncate, offset: size)
    guard size >= 0 else {
      throw AIOError(
        .invalidOffset, subject, .text("a size of \(size) bytes; 0 or more can be set"))
    }
    try call(subject, writes: true) { Int64(ckernel_ftruncate($0, size)) }
  }

  /// Closes the file: refuses new requests, completes the accepted ones, then closes the
  /// descriptor. Corresponds to `close(2)`, whose answer is not reported. Never blocks, and may be
  /// called from any thread.
  ///
  /// The descriptor is closed on another thread, unless the file was open for reading only, is on a
  /// file system of this machine, and still has a name: then in place, as that is short.
  ///
  /// `close(2)` does not make data durable: ``AIOContext/fdatasync(_:queue:completion:)`` does.
  ///
  /// - Parameters:
  ///   - queue: The queue to call back on; unless given, one that has nothing else to do.
  ///   - completion: Called once the descriptor has been closed; also if the file was closed
  ///     before.
  public func close(queue: DispatchQueue? = nil, completion: (@Sendable () -> Void)? = nil) {
    file.close()
    guard let completion else { return }
    isOpen.notify(queue: queue ?? DispatchQueue(label: "DispatchAIO.closed"), execute: completion)
  }

  /// Whether the file has been closed; its descriptor may still be in use by accepted requests.
  public var isClosed: Bool { file.isClosed }

  /// Whether the descriptor has been closed.
  var isDescriptorClosed: Bool { isOpen.wait(timeout: .now()) == .success }

  func subject(
    _ operation: AIOError.Operation, offset: Int64? = nil, length: Int? = nil
  ) -> AIOError.Subject {
    AIOError.Subject(
      operation: operation, path: file.path, descriptor: file.descriptor, offset: offset,
      length: length)
  }
}

extension ckernel_status {
  /// What the kernel says of an open file, or of what a descriptor with `O_PATH` names.
  init(of descriptor: Int32, _ subject: AIOError.Subject) throws(AIOError) {
    do throws(Errno) {
      try self.init(of: descriptor)
    } catch {
      throw AIOError(errno: error.rawValue, subject)
    }
  }

  fileprivate var atomicWriteUnit: ClosedRange<Int>? {
    atomic_unit_minimum > 0 && atomic_unit_maximum >= atomic_unit_minimum
      ? Int(atomic_unit_minimum)...Int(atomic_unit_maximum) : nil
  }
}

extension OpenFile.Traits {
  /// The traits of an open regular file or block device.
  fileprivate init(_ opened: FileOpening.Opened) {
    let (descriptor, flags, status) = (opened.descriptor.rawValue, opened.flags, opened.status)
    let isBlockDevice = AIOFile.Kind(mode: status.mode) == .blockDevice
    let alignment =
      flags & ckernel_o_direct == 0
      ? nil
      : BlockAlignment.of(
        descriptor, status, isBlockDevice: isBlockDevice, fileSystem: opened.mount.kind)
    let access = flags & O_ACCMODE
    self.init(
      isReadable: access != O_WRONLY, isWritable: access != O_RDONLY, isDirect: alignment != nil,
      isMemory: opened.mount.kind == .memory, isBlockDevice: isBlockDevice,
      appends: flags & O_APPEND != 0,
      syncsWrites: flags & O_DSYNC != 0 || opened.mount.isSynchronous,
      alignment: alignment ?? .none,
      device: isBlockDevice ? status.represented_device : status.device,
      fileSystem: opened.mount.kind)
  }
}
