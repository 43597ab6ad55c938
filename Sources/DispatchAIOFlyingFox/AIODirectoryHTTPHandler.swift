// SPDX-License-Identifier: Apache-2.0

#if FlyingFox
public import DispatchAIO
public import FlyingFox
internal import Foundation
internal import HTTPRules
internal import SystemPackage

/// Serves the files beneath a directory, in place of FlyingFox's `DirectoryHTTPHandler`.
///
/// ```swift
/// let root = try AIODirectory.open("/srv/www")
/// await server.appendRoute("GET /files/*", to: AIODirectoryHTTPHandler(
///   root, serverPath: "/files", context: context))
/// ```
///
/// - No path leaves the directory, whatever it is made of: see ``DispatchAIO/AIODirectory``. It
///   may be reached through symbolic links that stay inside.
/// - A range of bytes is answered by `206`, `416` if the file has none of it; several ranges at
///   once by the whole file. `If-Match`, `If-None-Match`, `If-Modified-Since`,
///   `If-Unmodified-Since` and `If-Range` are obeyed as RFC 9110 says.
/// - Nothing blocks a thread of Swift's in the disk. A file that the kernel's caches know is
///   opened and read in place, by the task that answers; anything else by the context, past the
///   page cache (see ``DispatchAIO/AIOFile/Caching/automatic``), two chunks of 128 KiB ahead of
///   the socket at the most, however large the file is.
/// - What does not exist, may not be read, is no regular file, or leaves the directory is answered
///   by `404`; another method than GET and HEAD by `405`. Anything else that goes wrong before the
///   answer has begun is thrown, which FlyingFox logs and answers by `500`; what goes wrong later
///   ends the connection.
/// - A request whose task is cancelled, as by the server's timeout, ends at once; a read that the
///   kernel has is waited for.
public struct AIODirectoryHTTPHandler: HTTPHandler {
  private let root: AIODirectory
  private let context: AIOContext
  private let serverPath: [Substring]
  private let cacheControl: String

  /// Makes a handler.
  ///
  /// - Parameters:
  ///   - root: The directory.
  ///   - serverPath: The beginning of the paths of requests that stands for the directory.
  ///   - cacheControl: The directives of the answers' `Cache-Control`.
  ///   - context: The context that reads what the page cache does not have.
  public init(
    _ root: AIODirectory, serverPath: String = "/",
    cacheControl: [HTTPCacheControl.ResponseDirective] = [.private], context: AIOContext
  ) {
    self.root = root
    self.context = context
    self.serverPath = serverPath.split(separator: "/")
    self.cacheControl = cacheControl.map(\.description).joined(separator: ", ")
  }

  /// Answers a request; called by FlyingFox.
  ///
  /// - Throws: ``DispatchAIO/AIOError``.
  public func handleRequest(_ request: HTTPRequest) async throws -> HTTPResponse {
    guard request.method == .GET || request.method == .HEAD else {
      return HTTPResponse(
        statusCode: .methodNotAllowed, headers: HTTPHeaders([.allow: "GET, HEAD"]))
    }
    guard let (path, name) = path(request.path), let file = try await open(path) else {
      return HTTPResponse(statusCode: .notFound)
    }
    let now = Int64(Date().timeIntervalSince1970)
    let facts = FileFacts(file.status, now: now)
    var headers = HTTPHeaders([
      .acceptRanges: "bytes", .date: HTTPDate.text(now),
      .eTag: facts.eTag, .lastModified: HTTPDate.text(facts.modified),
    ])
    if !cacheControl.isEmpty { headers[.cacheControl] = cacheControl }
    switch facts.condition(request.headers) {
    case .notModified: return HTTPResponse(statusCode: .notModified, headers: headers)
    case .failed: return HTTPResponse(statusCode: .preconditionFailed, headers: headers)
    case .proceed: break
    }
    headers[.contentType] = MediaType.of(name)
    // A range is one of what GET gives (RFC 9110, 14.2).
    let extent = request.method == .GET ? facts.extent(request.headers) : .whole
    switch extent {
    case .unsatisfiable:
      headers[.contentRange] = "bytes */\(facts.size)"
      return HTTPResponse(statusCode: .rangeNotSatisfiable, headers: headers)
    case .one(let range):
      headers[.contentRange] = "bytes \(range.lowerBound)-\(range.upperBound - 1)/\(facts.size)"
      return HTTPResponse(
        statusCode: .partialContent, headers: headers, body: try await body(file, range))
    case .whole, .several:
      if request.method == .HEAD {
        headers[.contentLength] = String(facts.size)
        return HTTPResponse(statusCode: .ok, headers: headers)
      }
      return HTTPResponse(
        statusCode: .ok, headers: headers, body: try await body(file, 0..<facts.size))
    }
  }

  private func body(_ file: AIOFile, _ range: Range<Int64>) async throws -> HTTPBodySequence {
    guard !range.isEmpty else { return HTTPBodySequence() }
    let bytes = try await FileBody(file, range, context: context)
    return HTTPBodySequence(
      from: bytes, count: range.count, suggestedBufferSize: FileBody.chunkSize)
  }

  /// The path beneath the directory that a request's path stands for, and the file's name.
  private func path(_ requested: String) -> (FilePath, Substring)? {
    // The kernel's paths end at a zero.
    guard !requested.utf8.contains(0) else { return nil }
    let components = requested.split(separator: "/")
    guard components.starts(with: serverPath) else { return nil }
    let rest = components[serverPath.count...]
    guard let name = rest.last else { return nil }
    return (FilePath(rest.joined(separator: "/")), name)
  }

  /// - Returns: `nil` if there is no file to serve.
  private func open(_ path: FilePath) async throws(AIOError) -> AIOFile? {
    do throws(AIOError) {
      let file = try await AIOFile.open(path, .readOnly, beneath: root, caching: .automatic)
      return file
    } catch {
      guard error.namesNoFile else { throw error }
      return nil
    }
  }
}
#endif
