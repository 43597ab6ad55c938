// SPDX-License-Identifier: Apache-2.0
//
// Hummingbird's servers that `plugged` compares: one thread for the sockets, and one more for
// Swift's tasks, which Hummingbird has on other threads than NIO's.

import ArgumentParser
import Foundation

#if Hummingbird
import DispatchAIOHummingbird
import HTTPTypes
import Hummingbird
import Logging
import NIOCore
import NIOPosix
#endif

/// A Hummingbird server as a process of its own.
struct HummingbirdServer: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hummingbird-server", abstract: "A Hummingbird server that `plugged` compares.",
    shouldDisplay: false)

  @Option(help: ArgumentHelp("What to serve.", valueName: "path"))
  var directory: String

  @Option(help: "Which server, by its name in `plugged`.")
  var files: String

  func run() throws {
    #if Hummingbird
    runTask { try await serve() }
    #else
    throw BenchError("aio-bench was built without Hummingbird: build it with --traits Hummingbird")
    #endif
  }

  #if Hummingbird
  private func serve() async throws {
    let router = Router()
    switch PluggedServer(rawValue: files) {
    case .hummingbirdMemory:
      let bytes = ByteBuffer(
        bytes: try Data(contentsOf: URL(fileURLWithPath: "\(directory)/cached")))
      router.get("cached") { request, _ in try Self.answer(request, bytes) }
    case .hummingbird: router.middlewares.add(FileMiddleware(directory))
    default:
      router.middlewares.add(
        AIOFileMiddleware(try AIOFileProvider(directory, context: AIOContext(queueDepth: 128))))
    }
    var logger = Logger(label: "hummingbird")
    logger.logLevel = .critical
    let app = Application(
      router: router, configuration: .init(address: .hostname("127.0.0.1", port: 0)),
      onServerRunning: { channel in
        print("listening on 127.0.0.1:\(channel.localAddress?.port ?? 0)")
        fflush(nil)
      },
      eventLoopGroupProvider: .shared(MultiThreadedEventLoopGroup(numberOfThreads: 1)),
      logger: logger)
    try await app.run()
  }

  /// The range that is asked for, from memory.
  private static func answer(_ request: Request, _ bytes: ByteBuffer) throws -> Response {
    guard let range = request.headers[.range], range.hasPrefix("bytes=") else {
      return Response(status: .ok, body: .init(byteBuffer: bytes))
    }
    let bounds = range.dropFirst(6).split(separator: "-").compactMap { Int($0) }
    guard bounds.count == 2, bounds[0] <= bounds[1],
      let part = bytes.getSlice(at: bounds[0], length: bounds[1] - bounds[0] + 1)
    else { throw HTTPError(.rangeNotSatisfiable) }
    return Response(
      status: .partialContent,
      headers: [.contentRange: "bytes \(bounds[0])-\(bounds[1])/\(bytes.readableBytes)"],
      body: .init(byteBuffer: part))
  }
  #endif
}
