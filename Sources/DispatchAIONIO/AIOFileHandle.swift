// SPDX-License-Identifier: Apache-2.0
//
// A file handle with the shape of NIO's: what reads and writes goes through the library's context,
// and the rest (permissions, attributes, times, files that appear when they are closed) is asked of
// a handle of NIO's own.

#if NIO
public import DispatchAIO
internal import Glibc
public import NIOCore
internal import NIOPosix
public import SystemPackage
public import _NIOFileSystem

/// A handle for reading, in place of NIO's `ReadFileHandle`.
public typealias AIOReadFileHandle = AIOFileHandle<ReadFileHandle>
/// A handle for writing, in place of NIO's `WriteFileHandle`.
public typealias AIOWriteFileHandle = AIOFileHandle<WriteFileHandle>
/// A handle for both, in place of NIO's `ReadWriteFileHandle`.
public typealias AIOReadWriteFileHandle = AIOFileHandle<ReadWriteFileHandle>

/// A file handle from an ``AIOFileSystem``. It conforms to NIO's protocols for file handles, so
/// that code written for those (`readToEnd`, `bufferedReader`, `withBufferedWriter` and its like)
/// takes it as it is, and it throws what they throw: `FileSystemError`, whose cause is the
/// `AIOError`, and `CancellationError`.
///
/// The parameter is the handle of NIO's that it stands for.
public struct AIOFileHandle<Base: FileHandleProtocol & Sendable>: FileHandleProtocol, Sendable {
  /// Where the handle of NIO's comes from.
  enum Source {
    /// It opened the file.
    case opened(Base)
    /// It is made of the file's descriptor when it is needed, and closed after.
    case onDemand(@Sendable (FileDescriptor) async throws -> Base)
  }

  /// The context that makes the requests.
  public let context: AIOContext
  /// The file, for what the library has beyond NIO's calls. Closing the handle closes it.
  public let file: AIOFile
  let source: Source

  /// What is known of the file. Corresponds to `fstat(2)`.
  public func info() async throws -> FileInfo {
    guard file.isLocal else { return try await base { try await $0.info() } }
    do throws(AIOError) {
      return FileInfo(platformSpecificStatus: try file.statusNow())
    } catch {
      throw error.forFileSystem()
    }
  }

  /// Makes the file's data and metadata durable. Corresponds to `fsync(2)`.
  public func synchronize() async throws {
    try await mappingErrors { () async throws(AIOError) in try await context.fsync(file) }
  }

  /// Closes the file once its accepted requests have completed.
  public func close() async throws {
    await file.close()
    if case .opened(let base) = source { try await base.close() }
  }

  // MARK: As NIO's handle does it

  /// Sets the file's permissions. Corresponds to `fchmod(2)`.
  public func replacePermissions(_ permissions: FilePermissions) async throws {
    try await base { try await $0.replacePermissions(permissions) }
  }

  /// Adds to the file's permissions, and returns the new ones. Corresponds to `fchmod(2)`.
  @discardableResult
  public func addPermissions(_ permissions: FilePermissions) async throws -> FilePermissions {
    try await base { try await $0.addPermissions(permissions) }
  }

  /// Takes from the file's permissions, and returns the new ones. Corresponds to `fchmod(2)`.
  @discardableResult
  public func removePermissions(_ permissions: FilePermissions) async throws -> FilePermissions {
    try await base { try await $0.removePermissions(permissions) }
  }

  /// The names of the file's extended attributes. Corresponds to `flistxattr(2)`.
  public func attributeNames() async throws -> [String] {
    try await base { try await $0.attributeNames() }
  }

  /// The value of an extended attribute. Corresponds to `fgetxattr(2)`.
  public func valueForAttribute(_ name: String) async throws -> [UInt8] {
    try await base { try await $0.valueForAttribute(name) }
  }

  /// Sets an extended attribute. Corresponds to `fsetxattr(2)`.
  public func updateValueForAttribute(
    _ bytes: some (Sendable & RandomAccessCollection<UInt8>), attribute name: String
  ) async throws {
    try await base { try await $0.updateValueForAttribute(bytes, attribute: name) }
  }

  /// Removes an extended attribute. Corresponds to `fremovexattr(2)`.
  public func removeValueForAttribute(_ name: String) async throws {
    try await base { try await $0.removeValueForAttribute(name) }
  }

  /// Calls `execute` with a descriptor of the file, on a thread of NIO's, which may wait.
  public func withUnsafeDescriptor<R: Sendable>(
    _ execute: @Sendable @escaping (FileDescriptor) throws -> R
  ) async throws -> R {
    try await base { try await $0.withUnsafeDescriptor(execute) }
  }

  /// Sets the file's times. Corresponds to `futimens(2)`.
  public func setTimes(
    lastAccess: FileInfo.Timespec?, lastDataModification: FileInfo.Timespec?
  ) async throws {
    try await base {
      try await $0.setTimes(lastAccess: lastAccess, lastDataModification: lastDataModification)
    }
  }

  /// A descriptor of the file, which the caller closes. The handle is closed for all other uses.
  public func detachUnsafeFileDescriptor() throws -> FileDescriptor {
    if case .opened(let base) = source {
      let descriptor = try base.detachUnsafeFileDescriptor()
      file.close()
      return descriptor
    }
    do throws(AIOError) {
      let descriptor = try file.withDescriptor(.adopt) { (own) throws(Errno) in
        try own.copyClosingOnExec()
      }
      file.close()
      return descriptor
    } catch {
      throw error.forFileSystem()
    }
  }

  private func base<Result>(_ body: (Base) async throws -> Result) async throws -> Result {
    switch source {
    case .opened(let base): return try await body(base)
    case .onDemand(let open):
      let base: Base
      do {
        base = try await file.withDescriptor(.open) { try await open($0) }
      } catch let error as AIOError {
        throw error.forFileSystem()
      }
      do {
        let result = try await body(base)
        try await base.close()
        return result
      } catch {
        try? await base.close()
        throw error
      }
    }
  }
}

extension AIOFileHandle: ReadableFileHandleProtocol where Base: ReadableFileHandleProtocol {
  /// Reads a range of the file, in place if the page cache has it: see
  /// ``DispatchAIO/AIOContext/readByteBuffer(_:from:count:allocator:isolation:)``.
  ///
  /// - Returns: The bytes: fewer than asked for only if the file ends there.
  public func readChunk(
    fromAbsoluteOffset offset: Int64, length: ByteCount
  ) async throws -> ByteBuffer {
    try await mappingErrors { () async throws(AIOError) in
      try await context.readByteBuffer(file, from: offset, count: Int(length.bytes))
    }
  }

  /// Reads a range of the file in chunks: those that the page cache has in place, and from the
  /// first that it has not three at a time, ahead of the consumer. The file may end before the
  /// range does.
  public func readChunks(in range: Range<Int64>, chunkLength: ByteCount) -> FileChunks {
    guard chunkLength.bytes > 0 else {
      fatalError(
        "AIOFileHandle.readChunks: a chunkLength of \(chunkLength.bytes); it must be 1 or more")
    }
    return FileChunks(
      wrapping: AIOByteBufferChunks(
        context: context, file: file, range: range, chunkLength: Int(chunkLength.bytes),
        mapsErrors: true))
  }
}

extension AIOFileHandle: WritableFileHandleProtocol where Base: WritableFileHandleProtocol {
  /// Writes bytes, which are copied first unless they are contiguous.
  ///
  /// - Returns: The number of bytes written, which is all of them.
  @discardableResult
  public func write(
    contentsOf bytes: some (Sequence<UInt8> & Sendable), toAbsoluteOffset offset: Int64
  ) async throws -> Int64 {
    try await write(contentsOf: ByteBuffer(bytes: bytes), toAbsoluteOffset: offset)
  }

  /// Writes the readable bytes of a buffer, without a copy.
  ///
  /// - Returns: The number of bytes written, which is all of them.
  @discardableResult
  public func write(
    contentsOf buffer: ByteBuffer, toAbsoluteOffset offset: Int64
  ) async throws -> Int64 {
    try await mappingErrors { () async throws(AIOError) in
      try await context.writeByteBuffers([buffer], to: file, at: offset)
    }
    return Int64(buffer.readableBytes)
  }

  /// Sets the file's size. Corresponds to `ftruncate(2)`.
  public func resize(to size: ByteCount) async throws {
    try await mappingErrors { () async throws(AIOError) in try await file.truncate(to: size.bytes) }
  }

  /// Closes the file. One that is being created appears under its name now, unless
  /// `makeChangesVisible` is `false`.
  public func close(makeChangesVisible: Bool) async throws {
    await file.close()
    if case .opened(let base) = source {
      try await base.close(makeChangesVisible: makeChangesVisible)
    }
  }
}

extension AIOFile {
  /// The file's status; waits only if the file system asks another machine or process.
  fileprivate func statusNow() throws(AIOError) -> stat {
    try withDescriptor(.size) { (descriptor) throws(Errno) in
      var status = stat()
      // The structure is filled during the call.
      guard unsafe fstat(descriptor.rawValue, &status) == 0 else {
        throw Errno(rawValue: Glibc.errno)
      }
      return status
    }
  }
}

extension FileDescriptor {
  /// A descriptor of the same open file that no program gets which this one starts. Corresponds to
  /// `fcntl(2)` with `F_DUPFD_CLOEXEC`.
  func copyClosingOnExec() throws(Errno) -> FileDescriptor {
    let copy = fcntl(rawValue, F_DUPFD_CLOEXEC, 0)
    guard copy >= 0 else { throw Errno(rawValue: Glibc.errno) }
    return FileDescriptor(rawValue: copy)
  }
}
#endif
