// SPDX-License-Identifier: Apache-2.0
//
// A request's body into a file: written under a temporary name beside it, made durable, and renamed
// over it, so that at each moment the name has all of one version or of the other, also after a
// crash. The directory that holds it is opened once, and everything happens beneath that.

#if Hummingbird
internal import CLinux
internal import DispatchAIO
internal import DispatchAIONIO
internal import Glibc
internal import HTTPTypes
public import Hummingbird
public import NIOCore
internal import NIOPosix
public import SystemPackage

extension AIOFileProvider {
  /// A file that has been stored.
  public struct StoredFile: Sendable, Hashable {
    /// The number of bytes.
    public let size: Int64
    /// Whether there was a file of this name before: the status is 204 then, and else 201.
    public let replaced: Bool
  }

  /// What the names of files that are not complete begin with. They are not served. What a crash
  /// leaves of them may be removed.
  public static var temporaryPrefix: String { ".upload-" }

  /// Stores the body of a request. Everything else is as for
  /// ``store(contentsOf:at:limit:permissions:)``.
  ///
  /// - Parameter path: The file's path; that of the request's URI, decoded, unless given.
  /// - Throws: Also `HTTPError` with the status 400 if the body is shorter than its
  ///   `Content-Length`.
  public func store(
    _ request: Request, at path: String? = nil, limit: Int64 = .max,
    permissions: FilePermissions = [.ownerReadWrite, .groupRead, .otherRead]
  ) async throws -> StoredFile {
    guard let path = path ?? StorageTarget.decoded(request.uri.path) else {
      throw HTTPError(.badRequest, message: "Invalid percent encoding in URL")
    }
    let announced = request.headers[.contentLength].flatMap { Int64($0) }
    if let announced, announced > limit { throw HTTPError(.contentTooLarge) }
    return try await store(
      contentsOf: request.body, at: path, limit: limit, announced: announced,
      permissions: permissions)
  }

  /// Stores buffers as a file beneath the directory, in place of the one that may be there. When it
  /// returns, the file's contents and its name are durable: `fdatasync(2)`, `rename(2)`, and
  /// `fsync(2)` of the directory. If it throws, what was there is there.
  ///
  /// The buffers are written as they are, without a copy, some 256 KiB at a time, and no more are
  /// taken meanwhile.
  ///
  /// - Parameters:
  ///   - contents: The buffers.
  ///   - path: The file's path. Its directory must exist.
  ///   - limit: The most bytes to take.
  ///   - permissions: The permissions of the file, less the process's umask.
  /// - Throws: What `contents` throws; `HTTPError` with the status 400 for a path that cannot name
  ///   a file, 403 if the permission was denied, 404 if there is no such directory, 409 if the path
  ///   names a directory, 413 beyond the limit, 503 if the process has too many files open, 507 if
  ///   the file system is full; `AIOError` otherwise.
  public func store<Contents: AsyncSequence>(
    contentsOf contents: Contents, at path: String, limit: Int64 = .max,
    permissions: FilePermissions = [.ownerReadWrite, .groupRead, .otherRead]
  ) async throws -> StoredFile where Contents.Element == ByteBuffer {
    try await store(
      contentsOf: contents, at: path, limit: limit, announced: nil, permissions: permissions)
  }

  private func store<Contents: AsyncSequence>(
    contentsOf contents: Contents, at path: String, limit: Int64, announced: Int64?,
    permissions: FilePermissions
  ) async throws -> StoredFile where Contents.Element == ByteBuffer {
    guard let target = StorageTarget(path) else {
      throw HTTPError(.badRequest, message: "The path names no file")
    }
    do {
      let parent = try await open(target.parent)
      let temporary = "\(Self.temporaryPrefix)\(UInt64.random(in: 0 ... .max))"
      let file = try await AIOFile.open(
        FilePath(temporary), .writeOnly, beneath: parent, options: [.create, .exclusiveCreate],
        permissions: permissions, caching: .buffered)
      do {
        let size = try await write(contents, to: file, limit)
        guard size == announced ?? size else {
          throw HTTPError(
            .badRequest, message: "The body has \(size) of the \(announced ?? 0) bytes announced")
        }
        try await context.fdatasync(file)
        let replaced = try await NIOThreadPool.singleton.runIfActive {
          try publish(temporary, target.name, parent)
        }
        await file.close()
        return StoredFile(size: size, replaced: replaced)
      } catch {
        await file.close()
        _ = try? await NIOThreadPool.singleton.runIfActive {
          // The path's bytes are read during the call.
          unsafe unlinkat(parent.fileDescriptor.rawValue, temporary, 0)
        }
        throw error
      }
    } catch let error as AIOError {
      throw error.forHTTP
    } catch let error as Errno {
      throw error.forHTTP
    }
  }

  /// Writes buffers, in batches.
  ///
  /// - Returns: The number of bytes.
  private func write<Contents: AsyncSequence>(
    _ contents: Contents, to file: AIOFile, _ limit: Int64
  ) async throws -> Int64 where Contents.Element == ByteBuffer {
    var offset: Int64 = 0
    var batch: [ByteBuffer] = []
    var gathered = 0
    for try await buffer in contents where buffer.readableBytes > 0 {
      gathered += buffer.readableBytes
      guard Int64(gathered) <= limit - offset else { throw HTTPError(.contentTooLarge) }
      batch.append(buffer)
      guard gathered >= 256 << 10 || batch.count == AIOContext.maximumBuffers else { continue }
      try await context.writeByteBuffers(batch, to: file, at: offset)
      offset += Int64(gathered)
      gathered = 0
      batch.removeAll(keepingCapacity: true)
    }
    if !batch.isEmpty { try await context.writeByteBuffers(batch, to: file, at: offset) }
    return offset + Int64(gathered)
  }

  /// Opens a directory beneath the provider's.
  private func open(_ path: String) async throws -> AIODirectory {
    try await NIOThreadPool.singleton.runIfActive {
      // The path's bytes are read during the call.
      let descriptor = unsafe clinux_openat2(
        directory.fileDescriptor.rawValue, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0,
        clinux_resolve_beneath | clinux_resolve_no_magic_links)
      guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
      do {
        return try AIODirectory(adopting: FileDescriptor(rawValue: descriptor))
      } catch {
        Glibc.close(descriptor)
        throw error
      }
    }
  }

  /// Gives a complete file its name, durably. Blocks the calling thread.
  ///
  /// - Returns: Whether another file had the name.
  private func publish(
    _ temporary: String, _ name: String, _ parent: AIODirectory
  ) throws -> Bool {
    let descriptor = parent.fileDescriptor.rawValue
    // The paths' bytes are read during the calls.
    let replaced = unsafe faccessat(descriptor, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0
    guard unsafe renameat(descriptor, temporary, descriptor, name) == 0 else {
      throw Errno(rawValue: Glibc.errno)
    }
    guard fsync(descriptor) == 0 else { throw Errno(rawValue: Glibc.errno) }
    return replaced
  }
}

/// A path to store at: its directory, relative to the provider's, and the name in that.
struct StorageTarget {
  let parent: String
  let name: String

  /// - Returns: `nil` if it cannot name a file.
  init?(_ path: String) {
    guard !path.utf8.contains(0) else { return nil }
    let parts = path.split(separator: "/", omittingEmptySubsequences: true)
    guard let name = parts.last, path.last != "/", name.utf8.count <= Int(NAME_MAX),
      name != ".", name != "..", !name.hasPrefix(AIOFileProvider.temporaryPrefix)
    else { return nil }
    self.name = String(name)
    parent = parts.count == 1 ? "." : parts.dropLast().joined(separator: "/")
  }

  /// The path of a URI without its percent encoding.
  ///
  /// - Returns: `nil` if it is not UTF-8, or a `%` begins no number.
  static func decoded(_ path: String) -> String? {
    var bytes: [UInt8] = []
    var rest = Substring(path).utf8
    while let byte = rest.popFirst() {
      guard byte == UInt8(ascii: "%") else {
        bytes.append(byte)
        continue
      }
      guard let high = rest.popFirst().flatMap(digit), let low = rest.popFirst().flatMap(digit)
      else { return nil }
      bytes.append(high << 4 | low)
    }
    return String(validating: bytes, as: UTF8.self)
  }

  private static func digit(_ byte: UInt8) -> UInt8? {
    Character(UnicodeScalar(byte)).hexDigitValue.map { UInt8($0) }
  }
}

extension AIOError {
  /// The answer to a request that failed so; the error itself where the server is to blame.
  fileprivate var forHTTP: any Error {
    switch code {
    case .noSpace: HTTPError(.init(code: 507, reasonPhrase: "Insufficient Storage"))
    case .fileSizeLimit: HTTPError(.contentTooLarge)
    case .permissionDenied: HTTPError(.forbidden)
    case .descriptorLimit: HTTPError(.serviceUnavailable)
    case .notFound: HTTPError(.notFound)
    default: self
    }
  }
}

extension Errno {
  /// The answer to a request that failed so; the error itself where the server is to blame.
  fileprivate var forHTTP: any Error {
    switch self {
    case .noSuchFileOrDirectory, .notDirectory, .tooManySymbolicLinkLevels, .fileNameTooLong,
      .improperLink:
      HTTPError(.notFound)
    case .permissionDenied, .notPermitted, .readOnlyFileSystem: HTTPError(.forbidden)
    case .isDirectory, .directoryNotEmpty, .fileExists: HTTPError(.conflict)
    case .tooManyOpenFiles, .tooManyOpenFilesInSystem: HTTPError(.serviceUnavailable)
    case .noSpace, .diskQuotaExceeded:
      HTTPError(.init(code: 507, reasonPhrase: "Insufficient Storage"))
    default: self
    }
  }
}
#endif
