// SPDX-License-Identifier: Apache-2.0
//
// FlyingFox's servers that `plugged` compares. They run on Swift's threads, one for each processor.

import ArgumentParser
import Foundation

#if FlyingFox
import DispatchAIO
import DispatchAIOFlyingFox
import FlyingFox
import FlyingSocks
#endif

/// A FlyingFox server as a process of its own.
struct FlyingFoxServer: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "flyingfox-server", abstract: "A FlyingFox server that `plugged` compares.",
    shouldDisplay: false)

  @Option(help: ArgumentHelp("What to serve.", valueName: "path"))
  var directory: String

  @Option(help: "Which server, by its name in `plugged`.")
  var files: String

  func run() throws {
    #if FlyingFox
    runTask { try await serve() }
    #else
    throw BenchError("aio-bench was built without FlyingFox: build it with --traits FlyingFox")
    #endif
  }

  #if FlyingFox
  private func serve() async throws {
    let address = try sockaddr_in.inet(ip4: "127.0.0.1", port: 0)
    let context = try AIOContext(queueDepth: 128)
    let server =
      switch PluggedServer(rawValue: files) {
      case .flyingFoxMemory:
        HTTPServer(address: address, logger: .disabled, handler: MemoryHandler(directory))
      case .flyingFoxMemoryAIO:
        // With TCP's delay, as FlyingFox's own pool has it.
        HTTPServer(
          address: address, pool: AIOSocketPool(context, delaysSmallSegments: true),
          logger: .disabled, handler: MemoryHandler(directory))
      case .flyingFox:
        HTTPServer(
          address: address, logger: .disabled,
          handler: DirectoryHTTPHandler(root: URL(fileURLWithPath: directory)))
      default:
        HTTPServer(
          address: address, pool: AIOSocketPool(context), logger: .disabled,
          handler: AIODirectoryHTTPHandler(
            try AIODirectory.open(.init(directory)), context: context))
      }
    async let end: Void = server.run()
    try await server.waitUntilListening(timeout: 20)
    guard case .ip4(_, let port) = await server.listeningAddress else { return }
    print("listening on 127.0.0.1:\(port)")
    fflush(nil)
    try await end
  }

  /// Answers with files that it keeps in memory.
  ///
  /// - Safety: `@unchecked Sendable` because what changes is under the lock.
  private final class MemoryHandler: HTTPHandler, @unchecked Sendable {
    private let directory: String
    private let lock = NSLock()
    /// Under the lock.
    private var files: [String: Data] = [:]

    init(_ directory: String) { self.directory = directory }

    func handleRequest(_ request: HTTPRequest) async throws -> HTTPResponse {
      HTTPResponse(statusCode: .ok, body: try file(request.path))
    }

    private func file(_ path: String) throws -> Data {
      if let data = lock.withLock({ files[path] }) { return data }
      let data = try Data(contentsOf: URL(fileURLWithPath: directory + path))
      lock.withLock { files[path] = data }
      return data
    }
  }
  #endif
}
