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
  ///   ``AIOError/Code/unsupportedFile`` for a directory, pipe, socket or terminal,
  ///   ``AIOError/Code/wrongAccessMode`` where a file to be read only was to be truncated, or
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
    var options = options.union(.closeOnExec)
    if caching == .direct { options.insert(.init(rawValue: clinux_o_direct)) }
    let descriptor: FileDescriptor
    do {
      // Non-blocking, because to open a FIFO would wait for its other end; it is refused below.
      descriptor = try FileDescriptor.open(
        path, mode, options: options.union(.nonBlocking), permissions: permissions)
    } catch let errno as Errno {
      var status = stat()
      if errno == .invalidArgument, unsafe stat(path.string, &status) == 0,
        status.st_mode & S_IFMT == S_IFDIR
      {
        throw unsupported(S_IFDIR, subject)
      }
      if errno == .invalidArgument && caching == .direct {
        throw AIOError(.directUnsupported, errno: errno, subject, .errno)
      }
      throw AIOError(errno: errno.rawValue, subject)
    } catch {
      // `FileDescriptor.open` throws nothing else.
      throw AIOError(.system, subject, .text("\(error)"))
    }
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
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/unsupportedFile`` or
  ///   ``AIOError/Code/system``; the descriptor is then still the caller's.
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
    let type = status.st_mode & S_IFMT
    guard type == S_IFREG || type == S_IFBLK else {
      throw Self.unsupported(type, subject)
    }
    let flags = fcntl(descriptor.rawValue, F_GETFL)
    guard flags >= 0 else { throw AIOError(errno: Glibc.errno, subject) }
    let access = flags & O_ACCMODE
    let alignment =
      flags & clinux_o_direct == 0
      ? nil : AIOAlignment.ask(descriptor.rawValue, isBlockDevice: type == S_IFBLK)
    if operation == .open { _ = fcntl(descriptor.rawValue, F_SETFL, flags & ~O_NONBLOCK) }
    let device = UInt64(status.st_dev)
    let isOpen = isOpen
    isOpen.enter()
    file = OpenFile(
      descriptor: descriptor.rawValue, path: path,
      traits: OpenFile.Traits(
        isReadable: access != O_WRONLY, isWritable: access != O_RDONLY,
        isDirect: alignment != nil, isMemory: clinux_is_on_tmpfs(descriptor.rawValue) == 1,
        isBlockDevice: type == S_IFBLK, appends: flags & O_APPEND != 0,
        alignment: alignment ?? .none),
      size: type == S_IFBLK ? .max : Int64(status.st_size)
    ) { descriptor in
      // The last close of a file can take long (an unlinked file is freed by it; NFS and FUSE flush),
      // and it may be a completion on the loop that releases last.
      BlockingCalls.run(on: device) {
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
  ///   ``AIOError/Code/invalidOffset``, ``AIOError/Code/fileClosed``, or ``AIOError/Code/system`` where the filesystem cannot.
  public func preallocate(_ range: Range<Int64>) throws(AIOError) {
    let subject = subject(.preallocate, offset: range.lowerBound, length: range.count)
    guard range.lowerBound >= 0 else { throw .negative(subject) }
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
    while ftruncate(file.descriptor, off_t(size)) != 0 {
      guard Glibc.errno == EINTR else { throw AIOError(errno: Glibc.errno, subject) }
    }
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

  private static func unsupported(_ type: mode_t, _ subject: AIOError.Subject) -> AIOError {
    AIOError(
      .unsupportedFile, subject,
      .text(
        """
        \(words(type)); asynchronous file I/O is for regular files and block devices\
        \(type == S_IFDIR ? "" : ": use a DispatchSource for pipes, sockets and terminals")
        """))
  }

  private static func words(_ type: mode_t) -> String {
    switch type {
    case S_IFDIR: "it is a directory"
    case S_IFIFO: "it is a pipe"
    case S_IFSOCK: "it is a socket"
    case S_IFCHR: "it is a character device"
    default: "it is no regular file"
    }
  }
}
