// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// An echo-to-disk process.
final class EchoServer: ServerProcess, @unchecked Sendable {
  let data: FilePath

  /// Starts a server and waits until it is ready.
  ///
  /// - Parameter under: another program to run it, and that one's arguments.
  init(
    _ data: FilePath, _ options: [String] = [], address: [String] = ["--port", "0"],
    under: [String] = []
  ) throws {
    self.data = data
    try super.init(
      "echo-to-disk", ["serve", "--data", data.string] + address + options,
      log: FilePath(data.string + ".log"), under: under)
  }

  // MARK: What its journal says

  struct Row: Decodable, Equatable {
    var connection: UInt64
    var peer: String?
    var bytes: Int
    var opened: String?
  }

  func list() throws -> [Row] {
    let (run, rows) = try Self.list(data)
    guard run.status == 0 else { throw Failure(description: run.errors) }
    return rows
  }

  /// What `list` gives, also of a damaged journal.
  static func list(_ data: FilePath) throws -> (run: ChildProcess, rows: [Row]) {
    let run = try command("list", data.string, "--json")
    let rows = try? JSONDecoder().decode([Row].self, from: Data(run.output.utf8))
    return (run, rows ?? [])
  }

  func verify() throws -> ChildProcess { try Self.command("verify", data.string) }

  /// The bytes of a connection, as `replay` gives them.
  func replay(_ connection: UInt64) throws -> [UInt8] {
    let (status, bytes) = try Self.replay(data, connection)
    XCTAssertEqual(status, 0)
    return bytes
  }

  /// What `replay` gives, and its exit status.
  static func replay(_ data: FilePath, _ connection: UInt64) throws -> (Int32, [UInt8]) {
    // Not in the data's directory, whose disk may be full.
    let directory = try TemporaryDirectory()
    let file = directory.path.appending("replay").string
    let output = open(file, O_CREAT | O_TRUNC | O_RDWR, 0o600)
    defer { close(output) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try ChildProcess.built("echo-to-disk"))
    process.arguments = ["replay", data.string, "--connection", "\(connection)"]
    process.standardOutput = FileHandle(fileDescriptor: output)
    // What it says of damage, `verify` says, too.
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitForEnd()
    let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: file)))
    return (process.terminationStatus, bytes)
  }

  static func command(_ arguments: String...) throws -> ChildProcess {
    try ChildProcess.run(ChildProcess.built("echo-to-disk"), arguments)
  }
}

/// A client's end of a connection: sends and receives at once.
final class EchoClient {
  let socket: Int32
  /// `127.0.0.1:PORT`, as the server sees this end.
  let name: String
  private(set) var received: [UInt8] = []
  private(set) var sentCount = 0
  /// The other end closed, or is gone.
  private(set) var isClosed = false

  init(port: UInt16) throws {
    socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var own = sockaddr_in()
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let socket = socket
    let connected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(socket, $0, length) }
    }
    guard connected == 0 else { throw Errno(rawValue: errno) }
    _ = withUnsafeMutablePointer(to: &own) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(socket, $0, &length) }
    }
    name = "127.0.0.1:\(UInt16(bigEndian: own.sin_port))"
    Self.setUp(socket)
  }

  init(unix path: String) throws {
    socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    name = "unix"
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let socket = socket
    let connected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard connected == 0 else { throw Errno(rawValue: errno) }
    Self.setUp(socket)
  }

  private static func setUp(_ socket: Int32) {
    _ = fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK)
  }

  deinit { close(socket) }

  /// Sends `bytes` in pieces of the sizes that `chunk` says, receives what comes, until `count`
  /// bytes in all have come or the other end has closed.
  ///
  /// - Returns: whether they have.
  @discardableResult
  func exchange(
    _ bytes: [UInt8], until count: Int, seconds: Double = 120, chunk: () -> Int = { 1 << 20 },
    progress: (Int) -> Void = { _ in }
  ) -> Bool {
    let end = Date().addingTimeInterval(seconds)
    received.reserveCapacity(count)
    var next = 0
    var piece = 0
    while received.count < count && !isClosed {
      var poll = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
      if next < bytes.count { poll.events |= Int16(POLLOUT) }
      guard Glibc.poll(&poll, 1, 1000) >= 0, Date() < end else { return false }
      if poll.revents & Int16(POLLOUT) != 0, next < bytes.count {
        if piece == 0 { piece = max(1, min(chunk(), bytes.count - next)) }
        let sent = bytes.withUnsafeBytes {
          send(socket, $0.baseAddress! + next, piece, Int32(MSG_NOSIGNAL))
        }
        if sent > 0 {
          next += sent
          sentCount += sent
          piece -= sent
        } else if errno != EAGAIN {
          isClosed = true
        }
      }
      if poll.revents & Int16(POLLIN | POLLHUP | POLLERR) != 0 {
        let before = received.count
        receive()
        progress(received.count - before)
      }
    }
    return received.count >= count
  }

  /// Takes what has come.
  private func receive() {
    withUnsafeTemporaryAllocation(byteCount: 1 << 16, alignment: 8) { buffer in
      while true {
        let count = recv(socket, buffer.baseAddress, buffer.count, 0)
        if count > 0 {
          received.append(contentsOf: UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        } else {
          if count == 0 || errno != EAGAIN { isClosed = true }
          return
        }
      }
    }
  }

  /// Sends without receiving until the socket takes no more for `patience` seconds.
  func sendUntilStuck(_ bytes: [UInt8], patience: Double) -> Int {
    var next = 0
    while next < bytes.count {
      var poll = pollfd(fd: socket, events: Int16(POLLOUT), revents: 0)
      guard Glibc.poll(&poll, 1, Int32(patience * 1000)) == 1 else { break }
      let sent = bytes.withUnsafeBytes {
        send(socket, $0.baseAddress! + next, min(bytes.count - next, 1 << 16), Int32(MSG_NOSIGNAL))
      }
      if sent > 0 { next += sent }
    }
    return next
  }

  func endInput() { shutdown(socket, Int32(SHUT_WR)) }

  /// Ends with a reset rather than politely.
  func reset() {
    var linger = linger(l_onoff: 1, l_linger: 0)
    setsockopt(socket, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout<Glibc.linger>.size))
  }
}

/// Random bytes, quickly.
func randomBytes(_ count: Int) -> [UInt8] {
  [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
    let file = open("/dev/urandom", O_RDONLY)
    defer { close(file) }
    while initialized < count {
      initialized += read(file, buffer.baseAddress! + initialized, count - initialized)
    }
  }
}

/// Whether `bytes` begins with `prefix`; quickly, also in a debug build.
func isPrefix(_ prefix: [UInt8], of bytes: [UInt8]) -> Bool {
  prefix.count <= bytes.count && memcmp(prefix, bytes, prefix.count) == 0
}
