// SPDX-License-Identifier: Apache-2.0
//
// Hummingbird's file middleware, with a short way for what is asked for most: a file, or one range
// of it, that is open and in the page cache. Most of what FileMiddleware costs is text: the entity
// tag, the date, the media type. That is made once for each version of a file, by FileMiddleware
// itself, so that the answers are its own.

#if Hummingbird
internal import DispatchAIO
internal import DispatchAIONIO
internal import HTTPTypes
public import Hummingbird
internal import NIOCore

/// Hummingbird's `FileMiddleware` over an ``AIOFileProvider``, with a short way for what is asked
/// for often and is in the page cache: 4 KiB of a file take 1.06 times the instructions of an
/// answer that is in memory, where `FileMiddleware` with the same provider takes 1.61 times.
///
/// ```swift
/// let files = try AIOFileProvider("/srv/www", context: AIOContext())
/// router.middlewares.add(AIOFileMiddleware(files, searchForIndexHtml: true))
/// ```
///
/// The answers are those of `FileMiddleware`, which gives most of them. A `GET` without conditions
/// of a file that was asked for often of late, whole or one range of it, of up to 128 KiB, is
/// answered without it, with the header fields that it made for the file as it is now.
public struct AIOFileMiddleware<Context: RequestContext>: RouterMiddleware {
  let files: AIOFileProvider
  private let urlBasePath: String
  private let fallback: FileMiddleware<Context, AIOFileProvider>
  /// Makes the header fields of a file.
  private let describe: @Sendable (AIOFile) -> FileMiddleware<Context, FileDescription>

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
    fallback = FileMiddleware(
      fileProvider: files, urlBasePath: urlBasePath, cacheControl: cacheControl,
      searchForIndexHtml: searchForIndexHtml
    ).withAdditionalMediaTypes(forFileExtensions: mediaTypes)
    describe = { file in
      FileMiddleware(
        fileProvider: FileDescription(file: file), urlBasePath: urlBasePath,
        cacheControl: cacheControl
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
      guard (error as? any HTTPResponseError)?.status == .notFound else { throw error }
      if let response = try await answerNow(request, context) { return response }
      return try await fallback.handle(request, context: context) { _, _ in throw error }
    }
  }

  /// The answer, if that is a simple one.
  private func answerNow(_ request: Request, _ context: Context) async throws -> Response? {
    guard request.method == .get, let path = simplePath(request),
      request.headers[.ifNoneMatch] == nil, request.headers[.ifModifiedSince] == nil,
      let (file, known) = files.openFiles.find(path)
    else { return nil }
    let size = file.status.size
    var (status, range) = (HTTPResponse.Status.ok, 0..<size)
    if let field = request.headers[.range] {
      guard request.headers[.ifRange] == nil, let part = Self.range(field, size) else { return nil }
      (status, range) = (.partialContent, part)
    }
    guard range.count <= AIOFileProvider.chunkLength,
      let buffer = try? file.readByteBufferNow(from: range.lowerBound, count: range.count),
      buffer.readableBytes == range.count
    else { return nil }
    var fields: HTTPFields
    if let known {
      fields = known
    } else {
      guard let made = try await describe(file, request, context) else { return nil }
      files.openFiles.setFields(made, of: file, path)
      fields = made
    }
    fields[.contentLength] = String(range.count)
    if status == .partialContent {
      fields[.contentRange] = "bytes \(range.lowerBound)-\(range.upperBound - 1)/\(size)"
    }
    context.coreContext.endpointPath.value = "FileMiddleware"
    return Response(
      status: status, headers: fields,
      body: range.isEmpty ? ResponseBody() : ResponseBody(byteBuffer: buffer))
  }

  /// The header fields that `FileMiddleware` gives a file.
  private func describe(
    _ file: AIOFile, _ request: Request, _ context: Context
  ) async throws -> HTTPFields? {
    var head = request.head
    head.method = .head
    head.headerFields = [:]
    let response = try await describe(file).handle(
      Request(head: head, body: .init(buffer: ByteBuffer())), context: context
    ) { _, _ in throw HTTPError(.notFound) }
    return response.status == .ok ? response.headers : nil
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

  /// The range that a field asks for, of a file of so many bytes; `nil` if it takes more than
  /// reading two numbers.
  static func range(_ field: String, _ size: Int64) -> Range<Int64>? {
    let field = field.utf8
    guard field.starts(with: "bytes=".utf8), let dash = field.firstIndex(of: UInt8(ascii: "-")),
      let first = number(field[..<dash].dropFirst(6)),
      let last = number(field[field.index(after: dash)...]), first <= last, first < size
    else { return nil }
    return first..<min(last, size - 1) + 1
  }

  /// - Returns: `nil` if it is not digits, 1 to 18 of them.
  private static func number(_ digits: Substring.UTF8View) -> Int64? {
    guard (1...18).contains(digits.count) else { return nil }
    var number: Int64 = 0
    for digit in digits {
      guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(digit) else { return nil }
      number = number * 10 + Int64(digit - UInt8(ascii: "0"))
    }
    return number
  }
}

/// One file, of which `FileMiddleware` says what it would say.
private struct FileDescription: FileProvider {
  let file: AIOFile

  func getFileIdentifier(_ path: String) -> AIOFile? { file }

  func getAttributes(id: AIOFile) async throws -> AIOFileProvider.FileAttributes? {
    .init(id.status)
  }

  func loadFile(id: AIOFile, context: some RequestContext) async throws -> ResponseBody {
    ResponseBody()
  }

  func loadFile(
    id: AIOFile, range: ClosedRange<Int>, context: some RequestContext
  ) async throws -> ResponseBody { ResponseBody() }
}
#endif
