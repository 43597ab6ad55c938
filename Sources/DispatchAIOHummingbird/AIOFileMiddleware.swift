// SPDX-License-Identifier: Apache-2.0
//
// Hummingbird's file middleware, with the conditions and ranges of RFC 9110. FileMiddleware finds
// the file of a path, and makes its header fields; what a request asks of the file is decided here.
// Most of what FileMiddleware costs is text: the date, the media type. So what it made is kept for
// as long as the file is kept open.

#if Hummingbird
internal import DispatchAIO
internal import HTTPRules
internal import HTTPTypes
public import Hummingbird
internal import NIOConcurrencyHelpers
internal import NIOCore

/// Hummingbird's `FileMiddleware` over an ``AIOFileProvider``, with the conditions and ranges of
/// RFC 9110, and a short way for what is asked for often: 4 KiB of a cached file take 1.1 times the
/// processor time of an answer that is in memory, where Hummingbird's own files take 2.9 times (see
/// the README of hummingbird-files).
///
/// ```swift
/// let files = try AIOFileProvider("/srv/www", context: AIOContext())
/// router.middlewares.add(AIOFileMiddleware(files, searchForIndexHtml: true))
/// ```
///
/// `FileMiddleware` finds the file of a path and makes its header fields, which are kept while the
/// file is kept open. The rest is this middleware's own:
///
/// - The entity tag is a strong one, so that a client may ask with it for parts (`If-Range`), and
///   for the replacement of what it has seen (`If-Match`; see
///   ``AIOFileProvider/store(_:at:limit:permissions:)``).
/// - `If-Match`, `If-None-Match`, `If-Modified-Since`, `If-Unmodified-Since` and `If-Range` are
///   obeyed, by 304 and 412.
/// - A range is answered by 206, or by 416 if the file has none of it. What is no range, several
///   ranges at once, and any range of a `HEAD` are answered by the whole.
public struct AIOFileMiddleware<Context: RequestContext>: RouterMiddleware {
  let files: AIOFileProvider
  private let urlBasePath: String
  /// Hummingbird's middleware, to find one file.
  private let finder: @Sendable (FoundFile) -> FileMiddleware<Context, FoundFile>

  /// - Parameters:
  ///   - files: The files. Those that are kept open are this middleware's own.
  ///   - urlBasePath: What to remove from the beginning of the request's path.
  ///   - cacheControl: The `Cache-Control` fields.
  ///   - searchForIndexHtml: Whether a directory's `index.html` is served for the directory.
  ///   - mediaTypes: Media types beside those that Hummingbird knows, by file extension.
  public init(
    _ files: AIOFileProvider, urlBasePath: String? = nil, cacheControl: CacheControl = .init([]),
    searchForIndexHtml: Bool = false, mediaTypes: [String: MediaType] = [:]
  ) {
    // The fields of a kept file depend on these options.
    let files = AIOFileProvider(directory: files.directory, context: files.context)
    self.files = files
    let base = urlBasePath ?? ""
    self.urlBasePath = base.last == "/" ? String(base.dropLast()) : base
    finder = { found in
      FileMiddleware(
        fileProvider: found, urlBasePath: urlBasePath, cacheControl: cacheControl,
        searchForIndexHtml: searchForIndexHtml
      ).withAdditionalMediaTypes(forFileExtensions: mediaTypes)
    }
  }

  /// Answers what no route has.
  public func handle(
    _ request: Request, context: Context, next: (Request, Context) async throws -> Response
  ) async throws -> Response {
    do {
      return try await next(request, context)
    } catch {
      guard (error as? any HTTPResponseError)?.status == .notFound,
        request.method == .get || request.method == .head
      else { throw error }
      let path = simplePath(request)
      if let path, let (file, fields) = files.openFiles.find(path), let fields {
        context.coreContext.endpointPath.value = "FileMiddleware"
        return try await answer(request, file, fields)
      }
      let found = FoundFile(files)
      let response = try await finder(found).handle(Self.question(request), context: context) {
        _, _ in throw error
      }
      // A directory's path without its slash is answered by where to go.
      guard response.status == .ok, let file = found.file else { return response }
      let fields = Self.fields(response.headers, of: file)
      if let path { files.openFiles.setFields(fields, of: file, path) }
      return try await answer(request, file, fields)
    }
  }

  /// What to ask `FileMiddleware`, so that it says what the file is.
  private static func question(_ request: Request) -> Request {
    var head = request.head
    head.method = .head
    head.headerFields = [:]
    return Request(head: head, body: .init(buffer: ByteBuffer()))
  }

  /// The header fields of an answer with all of a file.
  ///
  /// - Parameter fields: What `FileMiddleware` has made: its entity tag is a weak one.
  private static func fields(_ fields: HTTPFields, of file: AIOFile) -> HTTPFields {
    let validator = Validator(file.status)
    var fields = fields
    fields[.eTag] = validator.eTag
    fields[.lastModified] = HTTPDate.text(validator.modified)
    return fields
  }

  /// - Parameter fields: The header fields of an answer with all of the file.
  private func answer(
    _ request: Request, _ file: AIOFile, _ fields: HTTPFields
  ) async throws -> Response {
    let conditions = RequestConditions(request.headers)
    if conditions.areThere {
      switch Conditions.evaluate(conditions, isRead: true, Validator(file.status)) {
      case .proceed: break
      case .notModified: return Response(status: .notModified, headers: fields)
      case .failed: throw HTTPError(.preconditionFailed)
      }
    }
    // A range is one of what GET gives (RFC 9110, 14.2).
    guard request.method == .get else { return Response(status: .ok, headers: fields) }
    let size = file.status.size
    switch conditions.extent(of: file) {
    case .unsatisfiable: throw HTTPError.unsatisfiable(size)
    case .one(let range):
      var fields = fields
      fields[.contentLength] = String(range.count)
      fields[.contentRange] = "bytes \(range.lowerBound)-\(range.upperBound - 1)/\(size)"
      return Response(
        status: .partialContent, headers: fields, body: try await files.body(file, range))
    case .whole, .several:
      return Response(status: .ok, headers: fields, body: try await files.body(file, 0..<size))
    }
  }

  /// The path of a file beneath the directory, as `files` has it; `nil` if it takes more than
  /// dropping what comes before it and after it.
  private func simplePath(_ request: Request) -> String? {
    guard let path = request.head.path?.utf8, path.starts(with: urlBasePath.utf8) else {
      return nil
    }
    var rest = path.dropFirst(urlBasePath.utf8.count)
    guard rest.popFirst() == UInt8(ascii: "/"), rest.first != UInt8(ascii: "/") else { return nil }
    // A file's name may have dots, but "..", which FileMiddleware refuses, is not kept.
    let name = rest.prefix { $0 != UInt8(ascii: "?") && $0 != UInt8(ascii: "#") }
    guard !name.contains(UInt8(ascii: "%")) else { return nil }
    return String(Substring(name))
  }
}

/// The file that `FileMiddleware` finds for one request.
private final class FoundFile: FileProvider {
  private let files: AIOFileProvider
  private let found = NIOLockedValueBox<AIOFile?>(nil)

  init(_ files: AIOFileProvider) { self.files = files }

  /// The last that it asked for: that of a directory is its index.html.
  var file: AIOFile? { found.withLockedValue { $0 } }

  func getFileIdentifier(_ path: String) -> AIOFileProvider.FileIdentifier? {
    files.getFileIdentifier(path)
  }

  func getAttributes(
    id: AIOFileProvider.FileIdentifier
  ) async throws -> AIOFileProvider.FileAttributes? {
    let attributes = try await files.getAttributes(id: id)
    found.withLockedValue { $0 = id.file }
    return attributes
  }

  // It is asked by HEAD only, for which nothing is loaded.

  func loadFile(
    id: AIOFileProvider.FileIdentifier, context: some RequestContext
  ) async throws -> ResponseBody { ResponseBody() }

  func loadFile(
    id: AIOFileProvider.FileIdentifier, range: ClosedRange<Int>, context: some RequestContext
  ) async throws -> ResponseBody { ResponseBody() }
}
#endif
