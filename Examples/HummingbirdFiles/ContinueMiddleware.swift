// SPDX-License-Identifier: Apache-2.0
//
// The 100 that a client waits for before it sends a body (RFC 9110, 10.1.1): Hummingbird has none.
// It is sent when the body is asked for. A request that is refused before gets its answer in place
// of it.

#if Hummingbird
import HTTPTypes
import Hummingbird
import NIOCore
import NIOHTTPTypes

/// A request's context that knows the request's connection.
struct ConnectionContext: RequestContext {
  var coreContext: CoreRequestContextStorage
  let channel: any Channel

  init(source: ApplicationRequestContextSource) {
    coreContext = .init(source: source)
    channel = source.channel
  }
}

struct ContinueMiddleware: RouterMiddleware {
  func handle(
    _ request: Request, context: ConnectionContext,
    next: (Request, ConnectionContext) async throws -> Response
  ) async throws -> Response {
    guard request.headers[.expect]?.lowercased() == "100-continue" else {
      return try await next(request, context)
    }
    var request = request
    request.body = RequestBody(
      asyncSequence: AwaitedBody(body: request.body, channel: context.channel))
    return try await next(request, context)
  }
}

/// A body that the client sends once it is told to.
private struct AwaitedBody: AsyncSequence, Sendable {
  let body: RequestBody
  let channel: any Channel

  func makeAsyncIterator() -> AsyncIterator {
    AsyncIterator(body: body.makeAsyncIterator(), channel: channel)
  }

  struct AsyncIterator: AsyncIteratorProtocol {
    var body: RequestBody.AsyncIterator
    /// `nil` once the client has been told.
    var channel: (any Channel)?

    mutating func next() async throws -> ByteBuffer? {
      if let channel = channel.take() {
        try await channel.writeAndFlush(HTTPResponsePart.head(HTTPResponse(status: .continue)))
      }
      return try await body.next()
    }
  }
}
#endif
