// SPDX-License-Identifier: Apache-2.0

#if NIO
public import DispatchAIO
internal import NIOCore
internal import NIOPosix
public import SystemPackage
public import _NIOFileSystem

/// The file system, in place of NIO's `FileSystem` for opening, reading and writing files: the
/// handles conform to NIO's protocols.
///
/// ```swift
/// let files = AIOFileSystem(try AIOContext())
/// let text = try await files.withFileHandle(forReadingAt: "/etc/hostname") { handle in
///   try await handle.readToEnd(maximumSizeAllowed: .mebibytes(1))
/// }
/// ```
///
/// Files are opened `automatic`: reads that the page cache answers are made in place, on the
/// caller's thread, and the others go to the disk with no thread waiting for them. What is neither
/// a regular file nor a block device cannot be opened.
public struct AIOFileSystem: Sendable {
  /// The context that makes the requests.
  public let context: AIOContext
  private let base: FileSystem

  /// - Parameters:
  ///   - context: The context that makes the requests.
  ///   - base: What creates files, and does the rest.
  public init(_ context: AIOContext, base: FileSystem = .shared) {
    self.context = context
    self.base = base
  }

  /// Opens a file for reading: on the caller's thread if that takes no waiting.
  public func openFile(
    forReadingAt path: FilePath, options: OpenOptions.Read = .init()
  ) async throws -> AIOReadFileHandle {
    let flags = FileDescriptor.OpenOptions(options)
    let base = base
    return try await mappingErrors { () async throws(AIOError) in
      AIOFileHandle(
        context: context,
        file: try await AIOFile.open(path, .readOnly, options: flags, caching: .automatic),
        source: .onDemand {
          try await base.openFile(
            forReadingAt: FilePath("/proc/self/fd/\($0.rawValue)"))
        })
    }
  }

  /// Opens a file for writing. As with NIO, one that is created by default appears under its name
  /// when the handle is closed.
  public func openFile(
    forWritingAt path: FilePath, options: OpenOptions.Write = .newFile(replaceExisting: false)
  ) async throws -> AIOWriteFileHandle {
    try await handle(base.openFile(forWritingAt: path, options: options), path)
  }

  /// Opens a file for reading and writing, as ``openFile(forWritingAt:options:)`` does.
  public func openFile(
    forReadingAndWritingAt path: FilePath,
    options: OpenOptions.Write = .newFile(replaceExisting: false)
  ) async throws -> AIOReadWriteFileHandle {
    try await handle(base.openFile(forReadingAndWritingAt: path, options: options), path)
  }

  /// Opens a file for reading, and closes it after `execute`.
  public func withFileHandle<Result>(
    forReadingAt path: FilePath, options: OpenOptions.Read = .init(),
    execute: (_ read: AIOReadFileHandle) async throws -> Result
  ) async throws -> Result {
    let handle = try await openFile(forReadingAt: path, options: options)
    do {
      let result = try await execute(handle)
      try await handle.close()
      return result
    } catch {
      try? await handle.close()
      throw error
    }
  }

  /// Opens a file for writing, and closes it after `execute`: a new one does not appear if that
  /// throws.
  public func withFileHandle<Result>(
    forWritingAt path: FilePath, options: OpenOptions.Write = .newFile(replaceExisting: false),
    execute: (_ write: AIOWriteFileHandle) async throws -> Result
  ) async throws -> Result {
    try await closing(openFile(forWritingAt: path, options: options), execute)
  }

  /// Opens a file for reading and writing, and closes it after `execute`: a new one does not appear
  /// if that throws.
  public func withFileHandle<Result>(
    forReadingAndWritingAt path: FilePath,
    options: OpenOptions.Write = .newFile(replaceExisting: false),
    execute: (_ readWrite: AIOReadWriteFileHandle) async throws -> Result
  ) async throws -> Result {
    try await closing(openFile(forReadingAndWritingAt: path, options: options), execute)
  }

  private func closing<Base: WritableFileHandleProtocol & Sendable, Result>(
    _ handle: AIOFileHandle<Base>, _ execute: (AIOFileHandle<Base>) async throws -> Result
  ) async throws -> Result {
    do {
      let result = try await execute(handle)
      try await handle.close(makeChangesVisible: true)
      return result
    } catch {
      try? await handle.close(makeChangesVisible: false)
      throw error
    }
  }

  /// The handle for a file that NIO has opened: with a descriptor of its own.
  private func handle<Base: WritableFileHandleProtocol & Sendable>(
    _ base: Base, _ path: FilePath
  ) async throws -> AIOFileHandle<Base> {
    do {
      let file = try await base.withUnsafeDescriptor { descriptor in
        do throws(AIOError) {
          return try AIOFile.adopt(copyOf: descriptor, path)
        } catch {
          throw error.forFileSystem()
        }
      }
      return AIOFileHandle(context: context, file: file, source: .opened(base))
    } catch {
      try? await base.close(makeChangesVisible: false)
      throw error
    }
  }
}

extension AIOFile {
  /// A file with a descriptor of its own, of a file that is open.
  fileprivate static func adopt(
    copyOf descriptor: FileDescriptor, _ path: FilePath
  ) throws(AIOError) -> AIOFile {
    let own: FileDescriptor
    do throws(Errno) {
      own = try descriptor.copyClosingOnExec()
    } catch {
      throw AIOError(error, .adopt, path: path)
    }
    do throws(AIOError) {
      return try AIOFile(adopting: own, path: path, isAutomatic: true)
    } catch {
      try? own.close()
      throw error
    }
  }
}
#endif
