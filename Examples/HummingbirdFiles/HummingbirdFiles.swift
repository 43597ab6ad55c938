// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

#if Hummingbird
import DispatchAIOHummingbird
import Glibc
import HTTPTypes
import Hummingbird
import Logging

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

  func validate() throws {
    guard (0...65535).contains(port) else {
      throw ValidationError("--port \(port): it must be from 0 to 65535")
    }
    guard limit >= 0 else { throw ValidationError("--limit \(limit): it must be 0 or more") }
  }

  func run() async throws {
    let files = try AIOFileProvider(directory, context: AIOContext())
    let app = Application(
      router: Self.router(files, limit: limit),
      configuration: .init(address: .hostname(host, port: port)),
      onServerRunning: { channel in
        print("listening on \(host):\(channel.localAddress?.port ?? 0)")
        fflush(nil)
      }, logger: Logger(label: "hummingbird-files"))
    try await app.runService()
  }

  /// Serves and takes files.
  static func router(_ files: AIOFileProvider, limit: Int64) -> Router<BasicRequestContext> {
    let router = Router()
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
