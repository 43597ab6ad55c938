// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

#if Hummingbird
import DispatchAIOHummingbird
import Glibc
import HTTPTypes
import Hummingbird
import Logging
import NIOCore
import ServerSupport
import ServiceLifecycle

@main
struct HummingbirdFiles: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hummingbird-files",
    abstract: "A Hummingbird server that serves and takes the files of a directory.",
    discussion: """
      GET and HEAD serve a file, with ranges and conditions; PUT stores one, and answers once it is \
      durable.
      """)

  @Argument(help: "The directory.")
  var directory: String

  @Option(help: "The address to listen on.")
  var host = "127.0.0.1"

  @Option(help: "The port to listen on; 0 takes a free one.")
  var port = 8080

  @Option(help: "The largest file to take, in bytes.")
  var limit: Int64 = 1 << 30

  @Option(
    help: ArgumentHelp(
      "How long a connection may send nothing, between requests or within one.",
      valueName: "seconds"))
  var idleTimeout = 60.0

  @Option(
    help: ArgumentHelp(
      "How long the last requests may take after SIGTERM or SIGINT.", valueName: "seconds"))
  var drainTimeout = 10.0

  func validate() throws {
    guard (0...65535).contains(port) else {
      throw ValidationError("--port \(port): it must be from 0 to 65535")
    }
    guard limit >= 0 else { throw ValidationError("--limit \(limit): it must be 0 or more") }
    try require(seconds: idleTimeout, for: "idle-timeout")
    try require(seconds: drainTimeout, for: "drain-timeout", allowsZero: true)
  }

  func run() async throws {
    try await server { channel in
      print("listening on \(host):\(channel.localAddress?.port ?? 0)")
      fflush(nil)
    }.run()
  }

  /// The server, which ends at SIGTERM and SIGINT: when the requests under way have been answered,
  /// or are cancelled because they take too long.
  func server(
    onServerRunning: @escaping @Sendable (any Channel) async -> Void
  ) throws -> ServiceGroup {
    let files = try AIOFileProvider(directory, context: AIOContext())
    let logger = Logger(label: "hummingbird-files")
    let app = Application(
      router: Self.router(files, limit: limit),
      server: .http1(
        configuration: .init(idleTimeout: .nanoseconds(Int64(idleTimeout * 1e9)))),
      configuration: .init(address: .hostname(host, port: port)),
      onServerRunning: onServerRunning, logger: logger)
    var configuration = ServiceGroupConfiguration(
      services: [app], gracefulShutdownSignals: [.sigterm, .sigint], logger: logger)
    configuration.maximumGracefulShutdownDuration = .seconds(drainTimeout)
    return ServiceGroup(configuration: configuration)
  }

  /// Serves and takes files.
  static func router(_ files: AIOFileProvider, limit: Int64) -> Router<ConnectionContext> {
    let router = Router(context: ConnectionContext.self)
    router.middlewares.add(ContinueMiddleware())
    router.middlewares.add(AIOFileMiddleware(files, searchForIndexHtml: true))
    router.put("**") { request, _ -> Response in
      let stored = try await files.store(request, limit: limit)
      return Response(status: stored.replaced ? .noContent : .created)
    }
    return router
  }
}
#else
@main
struct HummingbirdFiles: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hummingbird-files",
    abstract: "A Hummingbird server of files; it has to be built with the trait Hummingbird.")

  func run() throws {
    throw ValidationError(
      "built without Hummingbird; build it with: swift build --traits Hummingbird")
  }
}
#endif
