// SPDX-License-Identifier: Apache-2.0
//
// A request's body into a file: an AIOReplacement, so that at each moment the name has all of one
// version or of the other, also after a crash.

#if Hummingbird
internal import DispatchAIO
internal import DispatchAIONIO
internal import Glibc
internal import HTTPRules
internal import HTTPTypes
public import Hummingbird
public import NIOCore
public import SystemPackage

extension AIOFileProvider {
  /// A file that has been stored.
  public struct StoredFile: Sendable, Hashable {
    /// The number of bytes.
    public let size: Int64
    /// Whether there was a file of this name before: the status is 204 then, and else 201.
    public let replaced: Bool
  }

  /// What the names of files that are not complete begin with, where they have names: those of
  /// `AIOReplacement`. They are not served. What a crash leaves of them may be removed.
  public static var temporaryPrefix: String { ".aio-" }

  /// Stores the body of a request, if its conditions hold (RFC 9110, 13): before the body is taken,
  /// and again when the file gets its name. Everything else is as for
  /// ``store(contentsOf:at:limit:permissions:)``.
  ///
  /// Between the last look at the conditions and the new name no other upload of this provider is
  /// stored there, so that of two with the same `If-Match` one fails. Others who write to the
  /// directory are not kept off; but `If-None-Match: *` replaces nothing, whoever made it.
  ///
  /// - Parameter path: The file's path; that of the request's URI, decoded, unless given.
  /// - Throws: Also `HTTPError` with the status 412 if a condition does not hold, and 400 if the
  ///   body is shorter than its `Content-Length`, or is a part of a file (`Content-Range`).
  public func store(
    _ request: Request, at path: String? = nil, limit: Int64 = .max,
    permissions: FilePermissions? = nil
  ) async throws -> StoredFile {
    guard let path = path ?? StoragePath.decoded(request.uri.path) else {
      throw HTTPError(.badRequest, message: "Invalid percent encoding in URL")
    }
    // The part would take the place of the whole (RFC 9110, 14.5).
    guard !request.headers.contains(.contentRange) else {
      throw HTTPError(.badRequest, message: "A part of a file is not taken")
    }
    let announced = request.headers[.contentLength].flatMap { Int64($0) }
    if let announced, announced > limit { throw HTTPError(.contentTooLarge) }
    return try await store(
      contentsOf: request.body, at: path, limit: limit, announced: announced,
      permissions: permissions, RequestConditions(request.headers))
  }

  /// Stores buffers as a file beneath the directory, in place of the one that may be there. When it
  /// returns, the file and its name are durable; if it throws, or the task is cancelled, what was
  /// there is there. One failure is between the two, that of the last step, the `fsync(2)` of the
  /// directory: the new file has the name then, and may lose it in a crash. See `AIOReplacement`.
  ///
  /// The buffers are written as they are, without a copy, some 256 KiB at a time, and no more are
  /// taken meanwhile.
  ///
  /// - Parameters:
  ///   - contents: The buffers.
  ///   - path: The file's path. Its directory must exist.
  ///   - limit: The most bytes to take.
  ///   - permissions: The permissions of the file, less the process's umask. If `nil`, those of the
  ///     file that is replaced, and where there is none, `rw-r--r--` less the umask.
  /// - Throws: What `contents` throws; `CancellationError`; `HTTPError` with the status 400 for a
  ///   path that cannot name a file, 403 if the permission was denied, 404 if there is no such
  ///   directory, 409 if the path names a directory, 413 beyond the limit, 503 if the process has
  ///   too many files open, 507 if the file system is full; `AIOError` otherwise.
  public func store<Contents: AsyncSequence>(
    contentsOf contents: Contents, at path: String, limit: Int64 = .max,
    permissions: FilePermissions? = nil
  ) async throws -> StoredFile where Contents.Element == ByteBuffer {
    try await store(
      contentsOf: contents, at: path, limit: limit, announced: nil, permissions: permissions,
      RequestConditions([:]))
  }

  private func store<Contents: AsyncSequence>(
    contentsOf contents: Contents, at path: String, limit: Int64, announced: Int64?,
    permissions: FilePermissions?, _ conditions: RequestConditions
  ) async throws -> StoredFile where Contents.Element == ByteBuffer {
    guard let target = StoragePath.target(path), let name = target.lastComponent else {
      throw HTTPError(.badRequest, message: "The path names no file")
    }
    do {
      if conditions.areThere {
        _ = try await commits.run(name) { try check(conditions, target) }
      }
      let replacement = try await AIOReplacement.begin(
        target, beneath: directory, existing: conditions.areForNewFile ? .keep : .replace,
        permissions: permissions, caching: .buffered)
      // After the commit there is nothing to abandon.
      defer { replacement.abandon() }
      let size = try await write(contents, to: replacement.file, limit)
      guard size == announced ?? size else {
        throw HTTPError(
          .badRequest, message: "The body has \(size) of the \(announced ?? 0) bytes announced")
      }
      // A sequence may end early, and without an error, where its task is cancelled.
      try Task.checkCancellation()
      let replaced = try await commits.run(name) {
        let exists = try check(conditions, target)
        try replacement.commit()
        return exists
      }
      await replacement.file.close()
      return StoredFile(size: size, replaced: replaced)
    } catch let error as AIOError {
      // There was none a moment ago: somebody else was faster.
      if conditions.areForNewFile, error.code == .exists { throw HTTPError(.preconditionFailed) }
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

  /// Blocks the calling thread.
  ///
  /// - Returns: Whether there is something of this name.
  /// - Throws: `HTTPError` with the status 412 if a condition does not hold.
  private func check(_ conditions: RequestConditions, _ path: FilePath) throws -> Bool {
    let exists = try status(path, followsLink: false) != nil
    guard conditions.areThere else { return exists }
    // The version that a GET would give.
    let file = try exists ? status(path, followsLink: true) : nil
    let validator = file?.kind == .regular ? file.map { Validator($0) } : nil
    guard Conditions.evaluate(conditions, isRead: false, validator) == .proceed else {
      throw HTTPError(.preconditionFailed)
    }
    return exists
  }

  /// - Returns: `nil` if there is nothing of this name.
  private func status(_ path: FilePath, followsLink: Bool) throws(AIOError) -> AIOFile.Status? {
    do throws(AIOError) {
      return try directory.status(of: path, followsLink: followsLink)
    } catch {
      guard error.namesNoFile else { throw error }
      return nil
    }
  }
}

/// Paths to store at.
enum StoragePath {
  /// The path of a file to store, relative to the provider's directory.
  ///
  /// - Returns: `nil` if it cannot name a file.
  static func target(_ path: String) -> FilePath? {
    guard !path.utf8.contains(0), path.last != "/" else { return nil }
    let relative = FilePath(String(path.drop { $0 == "/" }))
    guard let name = relative.lastComponent, name.kind == .regular,
      name.string.utf8.count <= Int(NAME_MAX),
      !name.string.hasPrefix(AIOFileProvider.temporaryPrefix)
    else { return nil }
    return relative
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
  var forHTTP: any Error {
    switch code {
    case .noSpace: HTTPError(.init(code: 507, reasonPhrase: "Insufficient Storage"))
    case .fileSizeLimit: HTTPError(.contentTooLarge)
    case .permissionDenied: HTTPError(.forbidden)
    case .descriptorLimit: HTTPError(.serviceUnavailable)
    case .cancelled: CancellationError()
    case .exists: HTTPError(.conflict)
    default:
      switch errno {
      case .isDirectory, .directoryNotEmpty: HTTPError(.conflict)
      default: namesNoFile ? HTTPError(.notFound) : self
      }
    }
  }
}
#endif
