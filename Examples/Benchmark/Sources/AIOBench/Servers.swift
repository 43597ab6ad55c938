// SPDX-License-Identifier: Apache-2.0
//
// The servers that `serve` compares, as processes.

import Foundation

enum ServerKind: String, CaseIterable {
  case echoToDisk = "echo-to-disk"
  case redis
  case cServer = "c-server"

  static var names: String { allCases.map(\.rawValue).joined(separator: ",") }
}

/// A server with its options.
struct Candidate {
  let kind: ServerKind
  var options: [String] = []
  /// The path of another build of echo-to-disk.
  var before: String?

  var name: String {
    ([kind.rawValue] + (before == nil ? [] : ["before"]) + options).joined(separator: " ")
  }
}

/// A running server, in an empty directory of its own.
final class RunningServer {
  private let server: ServerProcess
  private let directory: String

  var port: UInt16 { server.port }
  var lastWords: String { server.lastWords }
  var processorSeconds: (user: Double, system: Double) { server.processorSeconds }

  /// Starts a server, and waits until it answers.
  init(
    _ candidate: Candidate, directory: String, messageSize: Int, echoToDisk: String?,
    _ interruption: Interruption
  ) throws {
    self.directory = directory
    try? FileManager.default.removeItem(atPath: directory)
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
    let redisPort = candidate.kind == .redis ? try LocalPort.free() : nil
    let command = try Self.command(
      candidate, directory: directory, messageSize: messageSize, echoToDisk: echoToDisk,
      redisPort: redisPort)
    server = try ServerProcess(
      command, log: "\(directory).log", port: redisPort, answers: Self.answersPing, interruption)
  }

  private static func command(
    _ candidate: Candidate, directory: String, messageSize: Int, echoToDisk: String?,
    redisPort: UInt16?
  ) throws -> [String] {
    switch candidate.kind {
    case .echoToDisk:
      [
        try Programs.ofPackage("echo-to-disk", given: candidate.before ?? echoToDisk), "serve",
        "--port", "0", "--data",
      ]
        + [directory] + candidate.options
    case .cServer:
      [Programs.own.path, "c-server", "--directory", directory, "--size", "\(messageSize)"]
    case .redis:
      [
        try Programs.installed("redis-server", package: "redis-server"), "--port",
        "\(redisPort ?? 0)",
        "--bind", "127.0.0.1", "--dir", directory, "--appendonly", "yes", "--appendfsync", "always",
        "--save", "", "--auto-aof-rewrite-percentage", "0",
      ]
    }
  }

  /// Whether Redis answers a PING, which it does not while it loads its data.
  private static func answersPing(_ port: UInt16) -> Bool {
    guard let socket = LocalPort.connected(port) else { return false }
    defer { close(socket) }
    guard write(socket, "PING\r\n", 6) == 6 else { return false }
    var answer = [UInt8](repeating: 0, count: 5)
    return recv(socket, &answer, 5, Int32(MSG_WAITALL)) == 5
      && answer == Array("+PONG".utf8)
  }

  /// Ends the server, and removes the files that it has written.
  func stop() {
    server.stop()
    try? FileManager.default.removeItem(atPath: directory)
  }
}
