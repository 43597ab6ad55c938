// SPDX-License-Identifier: Apache-2.0

internal import CLinux
public import Dispatch
internal import Glibc
public import SystemPackage

/// An open regular file or block device, for the requests of any number of contexts.
///
/// Opening, ``size()`` and ``preallocate(_:)`` are plain system calls: they can sleep in the disk,
/// so call them off the loop. ``close(queue:completion:)`` returns at once.
///
/// A file stays open until it has been closed, or its last reference is gone, and every accepted
/// request on it has completed.
public final class AIOFile: Sendable {
  /// How reads and writes reach the disk.
  public enum Caching: Sendable, Hashable {
    /// Straight to the device (`O_DIRECT`): asynchronous all the way, with an ``AIOFile/alignment``
    /// to keep.
    case direct
    /// Through the page cache, at any alignment.
    case buffered
  }

  let file: OpenFile

  /// Entered while the descriptor is open.
  private let isOpen = DispatchGroup()

  /// Opens a file. `open(2)` with `O_CLOEXEC`, and with `O_DIRECT` unless buffered.
  ///
  /// What is no file is not opened at all, so that nothing happens to a tape, and nobody waits for the
  /// other end of a pipe. Where the filesystem has no direct I/O, no file is left behind that was not
  /// there before. As long as somebody else holds a lease on the file, the call waits.
  ///
  /// - Parameters:
  ///   - path: The file's path.
  ///   - mode: To read, to write, or both.
  ///   - options: As for `FileDescriptor.open`: `.create`, `.truncate`, `.exclusiveCreate`, …. With
  ///     `.append`, every write goes to the end of the file, whatever its offset.
  ///   - permissions: Of the file, where it is created; less the process's umask.
  ///   - caching: ``Caching/direct`` unless told otherwise.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/notFound``,
  ///   ``AIOError/Code/permissionDenied``, ``AIOError/Code/exists``,
  ///   ``AIOError/Code/directUnsupported`` where the filesystem has no direct I/O,
  ///   ``AIOError/Code/unsupportedFile`` for a directory, pipe, socket, terminal or other character
  ///   device, and for a symbolic link with `.noFollow`,
  ///   ``AIOError/Code/wrongAccessMode`` where a file to be read only was to be truncated,
  ///   ``AIOError/Code/descriptorLimit`` (two descriptors are needed for the moment), or
  ///   ``AIOError/Code/system``.
  public static func open(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode,
    options: FileDescriptor.OpenOptions = [],
    permissions: FilePermissions = [.ownerReadWrite, .groupRead, .otherRead],
    caching: Caching = .direct
  ) throws(AIOError) -> AIOFile {
    let subject = AIOError.Subject(operation: .open, path: path)
    if options.contains(.truncate), mode == .readOnly {
      throw AIOError(
        .wrongAccessMode, subject,
        .text("to truncate is to write, and the file was to be opened for reading only"))
    }
    var opening = FileOpening(
      path, mode, options: options, permissions: permissions, isDirect: caching == .direct,
      subject: subject)
    let descriptor = try opening.run()
    do {
      return try AIOFile(descriptor, path: path, operation: .open)
    } catch {
      try? descriptor.close()
      throw error
    }
  }

  /// Takes over an open file descriptor, and closes it in the end.
  ///
  /// How the file was opened decides: with `O_DIRECT` its requests are direct.
  ///
  /// - Parameters:
  ///   - descriptor: Of a regular file or a block device.
  ///   - path: A name for error messages.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/unsupportedFile``,
  ///   ``AIOError/Code/wrongAccessMode`` for one of `O_PATH`, or ``AIOError/Code/system``; the
  ///   descriptor is then still the caller's.
  public convenience init(
    adopting descriptor: FileDescriptor, path: FilePath? = nil
  ) throws(AIOError) {
    try self.init(descriptor, path: path, operation: .adopt)
  }

  private init(
    _ descriptor: FileDescriptor, path: FilePath?, operation: AIOError.Operation
  ) throws(AIOError) {
    let subject = AIOError.Subject(
      operation: operation, path: path, descriptor: descriptor.rawValue)
    var status = stat()
    guard unsafe fstat(descriptor.rawValue, &status) == 0 else {
      throw AIOError(errno: Glibc.errno, subject)
    }
    let kind = FileKind(status)
    guard kind.isSupported else { throw kind.refusal(subject) }
    let flags = fcntl(descriptor.rawValue, F_GETFL)
    guard flags >= 0 else { throw AIOError(errno: Glibc.errno, subject) }
    guard flags & clinux_o_path == 0 else {
      throw AIOError(
        .wrongAccessMode, subject,
        .text("it was opened with O_PATH, neither to read nor to write; open it without"))
    }
    // Asked for by the caller of `open`; nothing that an open file needs.
    if operation == .open, flags & O_NONBLOCK != 0 {
      _ = fcntl(descriptor.rawValue, F_SETFL, flags & ~O_NONBLOCK)
    }
    let isOpen = isOpen
    isOpen.enter()
    let traits = OpenFile.Traits(descriptor.rawValue, flags, status)
    file = OpenFile(
      descriptor: descriptor.rawValue, path: path,
      traits: traits,
      size: kind.isBlockDevice ? .max : Int64(status.st_size)
    ) { descriptor in
      // The last close of a file can take long (an unlinked file is freed by it; NFS and FUSE flush),
      // and it may be a completion on the loop that releases last.
      BlockingCalls.run(on: traits.device) {
        Glibc.close(descriptor)
        isOpen.leave()
      }
    }
  }

  deinit {
    file.close()
  }

  /// The file's path, as it was opened or adopted.
  public var path: FilePath? { file.path }

  /// The descriptor, for calls this library does not have. It stays the file's: do not close it.
  public var fileDescriptor: FileDescriptor { FileDescriptor(rawValue: file.descriptor) }

  /// Whether requests go straight to the device. A file that was opened direct says buffered where
  /// its filesystem takes `O_DIRECT` and then does buffered I/O, as ext4 does with `data=journal`.
  public var caching: Caching { file.traits.isDirect ? .direct : .buffered }

  /// What requests on this file must be aligned to; 1 and 1 for a buffered file.
  public var alignment: AIOAlignment { file.traits.alignment }

  /// The file's size in bytes: `fstat(2)`, or `BLKGETSIZE64` for a block device. Blocks the calling
  /// thread.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/fileClosed`` or ``AIOError/Code/system``.
  public func size() throws(AIOError) -> Int64 {
    let subject = subject(.size)
    guard file.retain() else { throw .closed(subject) }
    defer { file.release() }
    var status = stat()
    guard unsafe fstat(file.descriptor, &status) == 0 else {
      throw AIOError(errno: Glibc.errno, subject)
    }
    guard status.st_mode & S_IFMT == S_IFBLK else { return Int64(status.st_size) }
    let size = clinux_block_device_size(file.descriptor)
    guard size >= 0 else { throw AIOError(errno: Int32(-size), subject) }
    return size
  }

  /// Takes room on the disk for the bytes of `range`, and grows the file to cover it:
  /// `fallocate(2)`. What was not written reads as zeros. Blocks the calling thread, for long.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/noSpace``,
  ///   ``AIOError/Code/fileSizeLimit``, ``AIOError/Code/wrongAccessMode``,
  ///   ``AIOError/Code/invalidOffset``, ``AIOError/Code/fileClosed``, or ``AIOError/Code/system``
  ///   where the filesystem cannot.
  public func preallocate(_ range: Range<Int64>) throws(AIOError) {
    guard range.lowerBound >= 0 else {
      throw .negative(subject(.preallocate, offset: range.lowerBound))
    }
    let subject = subject(.preallocate, offset: range.lowerBound, length: range.count)
    guard file.traits.isWritable else { throw .notWritable(subject) }
    guard file.retain() else { throw .closed(subject) }
    defer { file.release() }
    guard !range.isEmpty else { return }
    let answer = clinux_fallocate(file.descriptor, range.lowerBound, Int64(range.count))
    guard answer == 0 else { throw AIOError(errno: -answer, subject) }
    file.predictor.extended(to: range.upperBound)
  }

  /// Sets the file's size: `ftruncate(2)`. What is cut off is lost; what is added is a hole, and
  /// reads as zeros. Blocks the calling thread.
  ///
  /// - Parameter size: In bytes, 0 or more.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/invalidOffset``,
  ///   ``AIOError/Code/wrongAccessMode``, ``AIOError/Code/fileClosed``,
  ///   ``AIOError/Code/fileSizeLimit``, or ``AIOError/Code/system``, as for a block device.
  public func truncate(to size: Int64) throws(AIOError) {
    let subject = subject(.truncate, offset: size)
    guard size >= 0 else { throw .negative(subject) }
    guard file.traits.isWritable else { throw .notWritable(subject) }
    guard file.retain() else { throw .closed(subject) }
    defer { file.release() }
    let answer = clinux_ftruncate(file.descriptor, size)
    guard answer == 0 else { throw AIOError(errno: -answer, subject) }
  }

  /// Closes the file: refuses new requests, lets accepted ones complete, then closes the
  /// descriptor. Never blocks. Closing again changes nothing.
  ///
  /// `close(2)` tells nothing of data that has not reached the disk: `fdatasync` first, where it
  /// matters.
  ///
  /// - Parameters:
  ///   - queue: Where to call back; a global queue unless given.
  ///   - completion: Called once the descriptor has been closed.
  public func close(queue: DispatchQueue? = nil, completion: (@Sendable () -> Void)? = nil) {
    file.close()
    if let completion { isOpen.notify(queue: queue ?? .global(), execute: completion) }
  }

  /// Whether the file has been closed; its descriptor may still be in use by accepted requests.
  public var isClosed: Bool { file.isClosed }

  private func subject(
    _ operation: AIOError.Operation, offset: Int64? = nil, length: Int? = nil
  ) -> AIOError.Subject {
    AIOError.Subject(
      operation: operation, path: file.path, descriptor: file.descriptor, offset: offset,
      length: length)
  }
}

extension OpenFile.Traits {
  /// - Parameters:
  ///   - flags: what `fcntl(2)` says the descriptor was opened with.
  ///   - status: what `fstat(2)` says, of a regular file or a block device.
  fileprivate init(_ descriptor: Int32, _ flags: Int32, _ status: stat) {
    let isBlockDevice = FileKind(status).isBlockDevice
    let fileSystem = FileSystemKind.ask(descriptor, isBlockDevice: isBlockDevice)
    let alignment =
      flags & clinux_o_direct == 0
      ? nil
      : AIOAlignment.ask(descriptor, isBlockDevice: isBlockDevice, fileSystem: fileSystem.kind)
    let access = flags & O_ACCMODE
    self.init(
      isReadable: access != O_WRONLY, isWritable: access != O_RDONLY, isDirect: alignment != nil,
      isMemory: fileSystem.kind == .memory, isBlockDevice: isBlockDevice,
      appends: flags & O_APPEND != 0,
      syncsWrites: flags & O_DSYNC != 0 || fileSystem.isSynchronous,
      alignment: alignment ?? .none,
      device: UInt64(isBlockDevice ? status.st_rdev : status.st_dev),
      fileSystem: fileSystem.kind)
  }
}
