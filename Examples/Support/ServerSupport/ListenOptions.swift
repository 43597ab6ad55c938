// SPDX-License-Identifier: Apache-2.0
//
// `--host`, `--port` and `--unix` of the servers.

import ArgumentParser

/// The defaults of a server's listening options.
public protocol ListenDefaults {
  static var port: UInt16 { get }
}

/// The options that say where a server listens.
public struct ListenOptions<Defaults: ListenDefaults>: ParsableArguments {
  @Option(help: "Where to listen. (default: 127.0.0.1)")
  var host: String?

  @Option(help: "The port; 0 picks a free one. (default: \(Defaults.port))")
  var port: UInt16?

  @Option(help: ArgumentHelp("Listen on a Unix socket instead.", valueName: "path"))
  var unix: PathArgument?

  public init() {}

  public mutating func validate() throws {
    if unix != nil && (host != nil || port != nil) {
      throw ValidationError("--unix \(unix?.description ?? ""): either that, or --host and --port")
    }
  }

  /// Whether any of the options was given.
  public var isGiven: Bool { unix != nil || host != nil || port != nil }

  public var address: Listener.Address {
    unix.map { .unix(path: $0.path) }
      ?? .tcp(host: host ?? "127.0.0.1", port: port ?? Defaults.port)
  }
}
