// SPDX-License-Identifier: Apache-2.0
//
// Files for Hummingbird's FileMiddleware. A file is opened once for a request, where the middleware
// asks for its attributes, and what is sent is read from that same file: its size and its entity
// tag belong to the bytes, whatever happens to the path meanwhile.

#if Hummingbird
public import DispatchAIO
internal import DispatchAIONIO
public import FoundationEssentials
internal import HTTPTypes
public import Hummingbird
internal import NIOCore
internal import SystemPackage

/// The files beneath a directory, for ``AIOFileMiddleware``, and for Hummingbird's `FileMiddleware`
/// in place of its `LocalFileSystem`.
///
/// ```swift
/// let files = try AIOFileProvider("/srv/www", context: AIOContext())
/// router.middlewares.add(AIOFileMiddleware(files))
/// ```
///
/// `FileMiddleware` itself reads some ranges otherwise than RFC 9110 has it (`bytes=-2` as the
/// first three bytes, a range of a `HEAD`), has weak entity tags, and does not know `If-Match`.
///
/// - What the kernel's caches have is answered in place, on the caller's thread: opening, the
///   attributes, and the whole of an answer of up to 128 KiB. The rest is read asynchronously, and
///   no thread waits for it. Larger answers are read in chunks of 128 KiB, up to three ahead of
///   what the client takes.
/// - Up to 256 files that are asked for often stay open, for a second at the most. One that was
///   changed, removed or replaced is opened anew.
/// - The kernel does not leave the directory, whatever a path says (see `AIODirectory`): symbolic
///   links are followed where they stay inside.
/// - Only regular files are served. A pipe, a socket or a device is not found, and not opened.
/// - Nothing is sent of a range that begins beyond the end of the file: the answer is 416. A file
///   that shrinks while it is sent ends the connection, so that the client notices.
public struct AIOFileProvider: FileProvider {
  /// What `FileMiddleware` asks of a file.
  public struct FileAttributes: Sendable, FileMiddlewareFileAttributes {
    /// Whether it is a directory.
    public let isFolder: Bool
    /// The size in bytes.
    public let size: Int
    /// The time of the last modification, as exact as the file system has it, so that the entity
    /// tags of two versions within a second differ.
    public let modificationDate: Date

    init(_ status: AIOFile.Status) {
      let time = status.modificationTime
      isFolder = status.kind == .directory
      size = Int(status.size)
      modificationDate = Date(
        timeIntervalSince1970: Double(time.seconds) + Double(time.nanoseconds) / 1e9)
    }
  }

  /// A path beneath the directory, and the file once it has been opened. It belongs to one request.
  public final class FileIdentifier {
    /// The path, relative to the directory.
    public let path: String
    var file: AIOFile?

    fileprivate init(path: String) { self.path = path }
  }

  /// The largest answer that is read at once, and the size of the chunks of larger ones, in bytes.
  static var chunkLength: Int { 128 << 10 }

  /// The context that makes the requests.
  public let context: AIOContext
  /// The directory whose files are served.
  public let directory: AIODirectory
  let openFiles: OpenFiles
  let commits = CommitQueues()

  /// Opens a directory. Blocks the calling thread.
  ///
  /// - Parameters:
  ///   - root: The directory's path.
  ///   - context: The context that makes the requests.
  /// - Throws: `AIOError`, as where there is no such directory.
  public init(_ root: String, context: AIOContext) throws(AIOError) {
    self.init(directory: try AIODirectory.open(FilePath(root)), context: context)
  }

  /// Makes a provider of the files beneath a directory.
  public init(directory: AIODirectory, context: AIOContext) {
    openFiles = OpenFiles(capacity: 256)
    self.directory = directory
    self.context = context
  }

  /// The identifier of a path; `nil` for one that cannot name a file.
  public func getFileIdentifier(_ path: String) -> FileIdentifier? {
    // A path in the file system ends at a NUL, and what the middleware has looked at does not.
    guard !path.utf8.contains(0) else { return nil }
    let relative = path.utf8.drop { $0 == UInt8(ascii: "/") }
    guard !Self.hasTemporaryName(relative) else { return nil }
    return FileIdentifier(path: relative.isEmpty ? "." : String(Substring(relative)))
  }

  /// Opens the file, and says what it is.
  ///
  /// - Returns: `nil` if there is no such regular file or directory that may be read.
  /// - Throws: `HTTPError` with the status 503 if the process has too many files open, and
  ///   `AIOError` for everything else that is not the path's fault, as a disk that fails, or a
  ///   kernel without `openat2(2)`.
  public func getAttributes(id: FileIdentifier) async throws -> FileAttributes? {
    do throws(AIOError) {
      return try await status(id).map { FileAttributes($0) }
    } catch {
      guard error.namesNoFile else { throw error.forHTTP }
      return nil
    }
  }

  /// The whole of a file.
  public func loadFile(
    id: FileIdentifier, context: some RequestContext
  ) async throws -> ResponseBody {
    let file = try await opened(id)
    return try await body(file, 0..<file.status.size)
  }

  /// A part of a file.
  ///
  /// - Throws: `HTTPError` with the status 416 if the file ends before the range begins.
  public func loadFile(
    id: FileIdentifier, range: ClosedRange<Int>, context: some RequestContext
  ) async throws -> ResponseBody {
    let file = try await opened(id)
    let size = file.status.size
    guard range.lowerBound >= 0, range.lowerBound < size else {
      throw HTTPError.unsatisfiable(size)
    }
    return try await body(
      file, Int64(range.lowerBound)..<min(size - 1, Int64(range.upperBound)) + 1)
  }

  // MARK: Beneath

  /// Whether a name in a path is that of a file that is not complete. Bytes: a search for text
  /// costs more than all else that this plug does for an answer.
  private static func hasTemporaryName(_ path: Substring.UTF8View) -> Bool {
    var rest = path
    while !rest.starts(with: temporaryPrefix.utf8) {
      guard let slash = rest.firstIndex(of: UInt8(ascii: "/")) else { return false }
      rest = rest[rest.index(after: slash)...]
    }
    return true
  }

  private func open(_ id: FileIdentifier) async throws(AIOError) -> AIOFile {
    if let (file, _) = openFiles.find(id.path) {
      id.file = file
      return file
    }
    let file = try await AIOFile.open(
      FilePath(id.path), .readOnly, beneath: directory, caching: .automatic)
    // Each request for an open file asks for its status.
    if file.isLocal { openFiles.opened(id.path, file) }
    id.file = file
    return file
  }

  /// The file that was opened for its attributes.
  private func opened(_ id: FileIdentifier) async throws -> AIOFile {
    if let file = id.file { return file }
    do throws(AIOError) {
      return try await open(id)
    } catch {
      throw error.namesNoFile ? HTTPError(.notFound) : error.forHTTP
    }
  }

  /// The status of a file, which is then open, or of a directory; `nil` if the path names neither.
  private func status(_ id: FileIdentifier) async throws(AIOError) -> AIOFile.Status? {
    guard id.path.utf8.last != UInt8(ascii: "/"), id.path != "." else {
      return try await folder(id.path)
    }
    do throws(AIOError) {
      return try await open(id).status
    } catch {
      guard error.code == .unsupportedFile else { throw error }
    }
    return try await folder(id.path)
  }

  /// The status of a directory; `nil` if the path names something else.
  private func folder(_ path: String) async throws(AIOError) -> AIOFile.Status? {
    let path = FilePath(path)
    var status = directory.cachedStatus(of: path)
    if status == nil { status = try await directory.status(of: path, followsLink: true) }
    return status?.kind == .directory ? status : nil
  }

  /// A range of an open file.
  func body(_ file: AIOFile, _ range: Range<Int64>) async throws -> ResponseBody {
    guard !range.isEmpty else { return ResponseBody() }
    if range.count <= Self.chunkLength {
      let buffer = try await context.readByteBuffer(
        file, from: range.lowerBound, count: range.count)
      guard buffer.readableBytes == range.count else { throw FileShrank(file, range) }
      return ResponseBody(byteBuffer: buffer)
    }
    let chunks = AIOByteBufferChunks(
      context: context, file: file, range: range, chunkLength: Self.chunkLength)
    return ResponseBody(contentLength: range.count) { writer in
      var left = range.count
      for try await chunk in chunks {
        left -= chunk.readableBytes
        try await writer.write(chunk)
      }
      guard left == 0 else { throw FileShrank(file, range) }
      try await writer.finish(nil)
    }
  }
}

extension HTTPError {
  /// - Parameter size: The size of the file, which has nothing of the range.
  static func unsatisfiable(_ size: Int64) -> HTTPError {
    HTTPError(.rangeNotSatisfiable, headers: [.contentRange: "bytes */\(size)"])
  }
}

/// A file became shorter after its size had been announced.
struct FileShrank: Error, CustomStringConvertible {
  let description: String

  init(_ file: AIOFile, _ range: Range<Int64>) {
    description =
      "\(file.path?.string ?? "the file") ended before byte \(range.upperBound) while it was sent"
  }
}
#endif
