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
  let options: [String]

  var name: String { ([kind.rawValue] + options).joined(separator: " ") }
}

/// A running server, in an empty directory of its own.
final class RunningServer {
  let port: UInt16
  private let process = Process()
  private let directory: String
  private let log: String
  private let interruption: Interruption

  /// Starts a server, and waits until it answers.
  init(
    _ candidate: Candidate, directory: String, messageSize: Int, echoToDisk: String?,
    _ interruption: Interruption
  ) throws {
    self.directory = directory
    self.interruption = interruption
    log = "\(directory).log"
    try? FileManager.default.removeItem(atPath: directory)
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
    let redisPort = candidate.kind == .redis ? try Self.freePort() : nil
    let command = try Self.command(
      candidate, directory: directory, messageSize: messageSize, echoToDisk: echoToDisk,
      redisPort: redisPort)
    process.executableURL = URL(fileURLWithPath: command[0])
    process.arguments = Array(command.dropFirst())
    process.standardInput = FileHandle.nullDevice
    _ = FileManager.default.createFile(atPath: log, contents: nil)
    let logFile = try FileHandle(forWritingTo: URL(fileURLWithPath: log))
    process.standardError = logFile
    let output = Pipe()
    process.standardOutput = redisPort == nil ? output : logFile
    do {
      try process.run()
    } catch {
      throw BenchError("\(command[0]): \(error)")
    }
    interruption.started(process.processIdentifier)
    if let redisPort {
      port = redisPort
      try waitForRedis()
    } else {
      guard let port = try Self.announcedPort(output.fileHandleForReading) else {
        port = 0
        stop()
        throw BenchError("it does not serve; \(lastWords)")
      }
      self.port = port
    }
  }

  private static func command(
    _ candidate: Candidate, directory: String, messageSize: Int, echoToDisk: String?,
    redisPort: UInt16?
  ) throws -> [String] {
    switch candidate.kind {
    case .echoToDisk:
      [try daemon(echoToDisk), "serve", "--port", "0", "--data", directory] + candidate.options
    case .cServer:
      [ownProgram.path, "c-server", "--directory", directory, "--size", "\(messageSize)"]
    case .redis:
      [
        try installed("redis-server", package: "redis-server"), "--port", "\(redisPort ?? 0)",
        "--bind", "127.0.0.1", "--dir", directory, "--appendonly", "yes", "--appendfsync", "always",
        "--save", "", "--auto-aof-rewrite-percentage", "0",
      ]
    }
  }

  /// The port in the line `listening on ADDRESS`, the first that a server of ours prints. `nil` if
  /// it ends instead.
  private static func announcedPort(_ output: FileHandle) throws -> UInt16? {
    var line = Data()
    while let byte = try output.read(upToCount: 1), !byte.isEmpty, byte[0] != UInt8(ascii: "\n") {
      line.append(byte)
    }
    let text = String(decoding: line, as: UTF8.self)
    guard text.hasPrefix("listening on ") else { return nil }
    return text.split(separator: ":").last.flatMap { UInt16($0) }
  }

  /// Waits until Redis answers a PING, which it does not while it loads its data.
  private func waitForRedis() throws {
    let deadline = Date().addingTimeInterval(20)
    while process.isRunning, Date() < deadline {
      if Self.answers(port) { return }
      usleep(20_000)
    }
    stop()
    throw BenchError("it does not serve; \(lastWords)")
  }

  private static func answers(_ port: UInt16) -> Bool {
    let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(socket) }
    guard with(port, { connect(socket, $0, $1) }) == 0, write(socket, "PING\r\n", 6) == 6 else {
      return false
    }
    var answer = [UInt8](repeating: 0, count: 5)
    return recv(socket, &answer, 5, Int32(MSG_WAITALL)) == 5
      && answer == Array("+PONG".utf8)
  }

  private static func freePort() throws -> UInt16 {
    let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(socket) }
    var address = sockaddr_in()
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let answer = withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { own in
        with(0) { bind(socket, $0, $1) } == 0 ? getsockname(socket, own, &length) : -1
      }
    }
    guard answer == 0 else {
      throw BenchError("no free port: \(String(cString: strerror(errno)))")
    }
    return UInt16(bigEndian: address.sin_port)
  }

  /// Calls `body` with the loopback address of a port.
  private static func with(
    _ port: UInt16, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) -> Int32 {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    return withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
  }

  private static var ownProgram: URL {
    URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
  }

  private static func daemon(_ given: String?) throws -> String {
    if let given {
      guard FileManager.default.isExecutableFile(atPath: given) else {
        throw BenchError("--echo-to-disk \(given): there is no such program")
      }
      return given
    }
    // This program is in Examples/Benchmark/.build/TRIPLE/release.
    var package = ownProgram
    while package.path != "/", package.lastPathComponent != ".build" {
      package.deleteLastPathComponent()
    }
    let path = package.appendingPathComponent("../../../.build/release/echo-to-disk")
      .standardizedFileURL.path
    guard FileManager.default.isExecutableFile(atPath: path) else {
      throw BenchError(
        "there is no \(path): `swift build -c release --product echo-to-disk` makes it, or give "
          + "its path by --echo-to-disk")
    }
    return path
  }

  private static func installed(_ name: String, package: String) throws -> String {
    let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
    for directory in path.split(separator: ":") {
      let program = "\(directory)/\(name)"
      if FileManager.default.isExecutableFile(atPath: program) { return program }
    }
    throw BenchError("\(name) is not installed: apt-get install \(package)")
  }

  /// The last line of its log.
  var lastWords: String {
    let text = (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
    return text.split(separator: "\n").last.map { "its log ends with: \($0)" } ?? "its log is empty"
  }

  /// The processor time of all its threads since its start.
  var processorSeconds: (user: Double, system: Double) {
    let path = "/proc/\(process.processIdentifier)/stat"
    guard let text = try? String(contentsOfFile: path, encoding: .utf8),
      let name = text.lastIndex(of: ")")
    else { return (.nan, .nan) }
    // After the name: state is field 3, utime field 14, stime field 15.
    let fields = text[name...].split(separator: " ")
    guard fields.count > 13, let user = Double(fields[12]), let system = Double(fields[13]) else {
      return (.nan, .nan)
    }
    let ticks = Double(sysconf(Int32(_SC_CLK_TCK)))
    return (user / ticks, system / ticks)
  }

  /// Ends the server, and removes the files that it has written.
  func stop() {
    // Nobody needs its data, so it need not end in order.
    if process.isRunning { kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
    interruption.ended()
    try? FileManager.default.removeItem(atPath: directory)
  }
}
