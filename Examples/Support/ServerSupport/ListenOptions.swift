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
  var port: Int?

  @Option(help: ArgumentHelp("Listen on a Unix socket instead.", valueName: "path"))
  var unix: PathArgument?

  public init() {}

  public mutating func validate() throws {
    if let port { try require("port", port, in: 0...Int(UInt16.max)) }
    if unix != nil && (host != nil || port != nil) {
      throw ValidationError("--unix \(unix?.description ?? ""): either that, or --host and --port")
    }
  }

  /// Whether any of the options was given.
  public var isGiven: Bool { unix != nil || host != nil || port != nil }

  public var address: Listener.Address {
    unix.map { .unix(path: $0.path) }
      // In its range: see `validate`.
      ?? .tcp(host: host ?? "127.0.0.1", port: port.map { UInt16($0) } ?? Defaults.port)
  }
}
