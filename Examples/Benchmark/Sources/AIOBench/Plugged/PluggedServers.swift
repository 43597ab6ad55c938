// SPDX-License-Identifier: Apache-2.0
//
// The servers that `plugged` compares, and how each is started.

import ArgumentParser
import CServers
import Foundation

enum PluggedServer: String, CaseIterable {
  case dispatchPread = "dispatch-pread"
  case plugged
  case aioHTTPD = "aio-httpd"
  case cRing = "c-ring"
  case nginx
  case concurrent = "dispatch-pread-concurrent"
  case dispatchIO = "dispatch-io"
  case hummingbirdMemory = "hummingbird-memory"
  case hummingbird
  case hummingbirdAIO = "hummingbird-aio"
  case flyingFoxMemory = "flyingfox-memory"
  case flyingFoxMemoryAIO = "flyingfox-memory-aio"
  case flyingFox = "flyingfox"
  case flyingFoxAIO = "flyingfox-aio"

  static var names: String { allCases.map(\.rawValue).joined(separator: ",") }

  /// Those of Hummingbird, which are compared with each other.
  var isHummingbird: Bool { rawValue.hasPrefix("hummingbird") }

  /// Those of FlyingFox, which are compared with each other.
  var isFlyingFox: Bool { rawValue.hasPrefix("flyingfox") }

  /// Those of a framework, which are built with a trait.
  var isPlug: Bool { isHummingbird || isFlyingFox }

  /// The ways of reading of which the best is measured; one is the only one.
  var modes: [String] {
    switch self {
    case .cRing: CRingMode.allCases.map(\.rawValue)
    case .nginx: ["sendfile", "threads", "directio"]
    default: [""]
    }
  }
}

/// How the server in C reads.
enum CRingMode: String, CaseIterable {
  case auto, sendfile, buffered, direct, pread

  var number: Int32 {
    switch self {
    case .auto: Int32(cservers_ring_auto)
    case .sendfile: Int32(cservers_ring_sendfile)
    case .buffered: Int32(cservers_ring_buffered)
    case .direct: Int32(cservers_ring_direct)
    case .pread: Int32(cservers_ring_pread)
    }
  }
}

/// A server as it was asked for: with the best of its modes, unless one is named.
struct PluggedCandidate: Equatable {
  var server: PluggedServer
  var mode: String?

  var modes: [String] { mode.map { [$0] } ?? server.modes }
}

struct PluggedServers: ExpressibleByArgument {
  var all: [PluggedCandidate]

  init(_ all: [PluggedCandidate]) { self.all = all }

  init?(argument: String) {
    all = []
    for name in argument.split(separator: ",") {
      let parts = name.split(separator: ":").map(String.init)
      guard let server = PluggedServer(rawValue: parts[0]), parts.count <= 2 else { return nil }
      let mode = parts.count == 2 ? parts[1] : nil
      if let mode, !server.modes.contains(mode) { return nil }
      all.append(PluggedCandidate(server: server, mode: mode))
    }
    guard !all.isEmpty else { return nil }
  }

  var defaultValueDescription: String { "all but Hummingbird's and FlyingFox's" }
}

// MARK: Starting

/// Starts the servers of a run.
struct PluggedStarter {
  let directory: String
  let work: PluggedWork
  let aioHTTPD: String?
  let quota: ProcessorQuota?
  let interruption: Interruption

  func start(_ server: PluggedServer, _ mode: String) throws -> ServerProcess {
    let port = server == .nginx ? try LocalPort.free() : nil
    let log = "\(directory)/\(server.rawValue)\(mode).log"
    return try ServerProcess(
      command(server, mode, port ?? 0, log), log: log, port: port,
      answers: { port in
        guard let socket = LocalPort.connected(port) else { return false }
        close(socket)
        return true
      }, quota: quota, interruption)
  }

  private func command(
    _ server: PluggedServer, _ mode: String, _ port: UInt16, _ log: String
  ) throws -> [String] {
    let files = "\(directory)/www"
    var own = [Programs.own.path, "file-server", "--directory", files]
    if work.openEach { own.append("--open-each") }
    switch server {
    case .dispatchPread: return own + ["--reading", "pread"]
    case .concurrent: return own + ["--reading", "concurrent"]
    case .dispatchIO: return own + ["--reading", "dispatch-io"]
    case .plugged: return own + ["--reading", "plugged", "--caching", work.caching]
    case .cRing: return own + ["--reading", "c-ring", "--mode", mode]
    case .hummingbirdMemory, .hummingbird, .hummingbirdAIO:
      return [
        Programs.own.path, "hummingbird-server", "--directory", files, "--files", server.rawValue,
      ]
    case .flyingFoxMemory, .flyingFoxMemoryAIO, .flyingFox, .flyingFoxAIO:
      return [
        Programs.own.path, "flyingfox-server", "--directory", files, "--files", server.rawValue,
      ]
    case .aioHTTPD:
      return [
        try Programs.ofPackage("aio-httpd", given: aioHTTPD), files, "--port", "0",
        "--loops", "\(work.loops)",
        "--max-connections", "\(max(4096, work.idleConnections + 100))",
      ]
    case .nginx:
      let program = try Programs.installed("nginx", package: "nginx")
      let path = "\(directory)/nginx-\(mode).conf"
      try nginxConfiguration(mode, port, log).write(
        toFile: path, atomically: false, encoding: .utf8)
      return [program, "-p", directory, "-e", log, "-c", path]
    }
  }

  private func nginxConfiguration(_ mode: String, _ port: UInt16, _ log: String) -> String {
    let reading =
      switch mode {
      case "threads": "sendfile on; aio threads;"
      case "directio": "directio 512; aio threads; output_buffers 1 128k;"
      default: "sendfile on; tcp_nopush on;"
      }
    // Not with directio, which nginx switches on and off for each request of a descriptor: answers
    // fail that share one.
    let keeping =
      work.openEach || mode == "directio"
      ? "" : "open_file_cache max=16 inactive=1h; open_file_cache_valid 1h;"
    let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map {
      "\($0)_temp_path \(directory)/nginx-\($0);"
    }
    return """
      daemon off; master_process off; pid \(directory)/nginx-\(mode).pid;
      error_log \(log);
      events { worker_connections 32768; }
      http {
        access_log off; keepalive_requests 1000000000; keepalive_timeout 3600;
        \(folders.joined(separator: " "))
        \(reading)
        server {
          listen 127.0.0.1:\(port) backlog=4096;
          root \(directory)/www;
          location / { \(keeping) }
          location /small/ { open_file_cache off; }
        }
      }

      """
  }
}

/// A file server as a process of its own.
struct FileServer: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "file-server", abstract: "A file server that `plugged` compares.",
    shouldDisplay: false)

  enum Reading: String, ExpressibleByArgument {
    case pread, concurrent, plugged
    case dispatchIO = "dispatch-io"
    case cRing = "c-ring"
  }

  @Option(help: ArgumentHelp("What to serve.", valueName: "path"))
  var directory: String

  @Option(help: "Which server.")
  var reading: Reading

  @Option(help: "How c-ring reads.")
  var mode = "auto"

  @Option(help: "How plugged opens files.")
  var caching = ""

  @Flag(help: "Open all files for each request.")
  var openEach = false

  func run() throws {
    switch reading {
    case .pread: try activate(.pread)
    case .concurrent: try activate(.concurrent)
    case .dispatchIO: try activate(.dispatchIO)
    case .plugged:
      guard let way = pluggedCachings.first(where: { $0.name == caching }) else {
        throw ValidationError("--caching \(caching): no such way")
      }
      let server = try PluggedFileServer(directory, way.caching, opensEach: openEach)
      server.activate()
      withExtendedLifetime(server) { dispatchMain() }
    case .cRing:
      guard let mode = CRingMode(rawValue: mode) else {
        throw ValidationError("--mode \(mode): no such mode")
      }
      let error = cservers_ring(mode.number, directory, openEach ? 1 : 0)
      throw BenchError("c-ring: \(String(cString: strerror(error)))")
    }
  }

  private func activate(_ reading: DispatchFileServer.Reading) throws {
    let server = try DispatchFileServer(directory, reading, opensEach: openEach)
    server.activate()
    withExtendedLifetime(server) { dispatchMain() }
  }
}
