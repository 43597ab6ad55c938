// SPDX-License-Identifier: Apache-2.0

import CServers
import Foundation

/// A server as a process of its own.
final class ServerProcess {
  private(set) var port: UInt16
  let id: Int32
  private let process = Process()
  private let log: String
  private let interruption: Interruption

  /// Starts a server, and waits until it serves.
  ///
  /// - Parameters:
  ///   - command: The program's path, and its arguments.
  ///   - log: The path of a file for what it says.
  ///   - port: The port that it was told; `nil` if it is to say `listening on ADDRESS` itself.
  ///   - answers: Whether a server that was told its port serves already.
  ///   - quota: The quota that it runs in.
  init(
    _ command: [String], log: String, port: UInt16? = nil,
    answers: (UInt16) -> Bool = { _ in true }, quota: ProcessorQuota? = nil,
    _ interruption: Interruption
  ) throws {
    (self.log, self.interruption, self.port) = (log, interruption, port ?? 0)
    let command = quota?.command(command) ?? command
    process.executableURL = URL(fileURLWithPath: command[0])
    process.arguments = Array(command.dropFirst())
    process.standardInput = FileHandle.nullDevice
    _ = FileManager.default.createFile(atPath: log, contents: nil)
    let logFile = try FileHandle(forWritingTo: URL(fileURLWithPath: log))
    process.standardError = logFile
    let output = Pipe()
    process.standardOutput = port == nil ? output : logFile
    do {
      try process.run()
    } catch {
      throw BenchError("\(command[0]): \(error)")
    }
    id = process.processIdentifier
    interruption.started(id)
    if port == nil {
      guard let port = try Self.announcedPort(output.fileHandleForReading) else {
        stop()
        throw BenchError("it does not serve; \(lastWords)")
      }
      self.port = port
    } else {
      let deadline = Date().addingTimeInterval(20)
      while !answers(self.port) {
        guard process.isRunning, Date() < deadline else {
          stop()
          throw BenchError("it does not serve; \(lastWords)")
        }
        usleep(20_000)
      }
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

  /// The last line of its log.
  var lastWords: String {
    let text = (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
    return text.split(separator: "\n").last.map { "its log ends with: \($0)" } ?? "its log is empty"
  }

  /// The processor time of all its threads since its start.
  var processorSeconds: (user: Double, system: Double) {
    guard let text = try? String(contentsOfFile: "/proc/\(id)/stat", encoding: .utf8),
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

  /// The memory that it has, in bytes.
  var residentBytes: Double {
    guard let text = try? String(contentsOfFile: "/proc/\(id)/statm", encoding: .utf8),
      let pages = text.split(separator: " ").dropFirst().first.flatMap({ Double($0) })
    else { return .nan }
    return pages * Double(sysconf(Int32(_SC_PAGESIZE)))
  }

  /// Ends the server. Nobody needs its data, so it need not end in order.
  func stop() {
    if process.isRunning { kill(id, SIGKILL) }
    process.waitUntilExit()
    interruption.ended(id)
  }
}

/// A port of the loopback.
enum LocalPort {
  /// A port that is free now, for servers that cannot choose one themselves.
  static func free() throws -> UInt16 {
    let socket = cservers_listen()
    defer { if socket >= 0 { close(socket) } }
    let port = socket < 0 ? socket : cservers_port(socket)
    guard let port = UInt16(exactly: port) else {
      throw BenchError("no free port: \(String(cString: strerror(-port)))")
    }
    return port
  }

  /// A socket that is connected to it; `nil` if nobody listens there.
  static func connected(_ port: UInt16) -> Int32? {
    let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    guard socket >= 0 else { return nil }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let answer = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    if answer == 0 { return socket }
    close(socket)
    return nil
  }
}

/// The programs that are measured.
enum Programs {
  /// This program.
  static var own: URL { URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath() }

  /// A program of the package that this one is in: the release build, unless an option gives it.
  static func ofPackage(_ name: String, given: String?) throws -> String {
    if let given {
      guard FileManager.default.isExecutableFile(atPath: given) else {
        throw BenchError("--\(name) \(given): there is no such program")
      }
      return given
    }
    // This program is in Examples/Benchmark/.build/TRIPLE/release.
    var package = own
    while package.path != "/", package.lastPathComponent != ".build" {
      package.deleteLastPathComponent()
    }
    let path = package.appendingPathComponent("../../../.build/release/\(name)")
      .standardizedFileURL.path
    guard FileManager.default.isExecutableFile(atPath: path) else {
      throw BenchError(
        "there is no \(path): `swift build -c release --product \(name)` makes it, or give its "
          + "path by --\(name)")
    }
    return path
  }

  /// A program of the system's.
  static func installed(_ name: String, package: String) throws -> String {
    let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
    // Where Debian has servers, also for who is not root.
    for directory in "\(path):/usr/sbin".split(separator: ":") {
      let program = "\(directory)/\(name)"
      if FileManager.default.isExecutableFile(atPath: program) { return program }
    }
    throw BenchError("\(name) is not installed: apt-get install \(package)")
  }
}
