// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// An aio-httpd process with a directory of files.
final class HTTPServer: ServerProcess, @unchecked Sendable {
  /// What is served.
  let root: FilePath
  private var socketsAtFirst = 0

  var url: String { "http://\(address)" }

  /// Starts a server and waits until it is ready.
  ///
  /// - Parameter under: another program to run it, and that one's arguments.
  convenience init(
    _ directory: TemporaryDirectory, _ options: [String] = [],
    address: [String] = ["--port", "0"], under: [String] = []
  ) throws {
    try self.init(
      root: directory.path.appending("www"), options, address: address,
      log: directory.path.appending("log"), under: under)
  }

  init(
    root: FilePath, _ options: [String] = [], address: [String] = ["--port", "0"], log: FilePath,
    under: [String] = []
  ) throws {
    self.root = root
    try FileManager.default.createDirectory(atPath: root.string, withIntermediateDirectories: true)
    try super.init(
      "aio-httpd", [root.string] + address + options, log: log, under: under)
    socketsAtFirst = sockets
  }

  /// Makes a file that is served.
  func make(_ name: String, _ bytes: [UInt8]) throws {
    let path = root.appending(name)
    try FileManager.default.createDirectory(
      atPath: path.removingLastComponent().string, withIntermediateDirectories: true)
    try Data(bytes).write(to: URL(fileURLWithPath: path.string))
  }

  func make(_ name: String, _ text: String) throws { try make(name, Array(text.utf8)) }

  func contents(_ name: String) throws -> [UInt8] {
    [UInt8](try Data(contentsOf: URL(fileURLWithPath: root.appending(name).string)))
  }

  /// How many connections it has open: its sockets, but for those that it had at the beginning.
  var connections: Int { sockets - socketsAtFirst }

  /// Runs curl, and returns its output; fails the test if it fails.
  func curl(_ arguments: [String], file: StaticString = #filePath, line: UInt = #line) throws
    -> String
  {
    let run = try ChildProcess.run(
      ChildProcess.installed("curl", package: "curl"), ["-s", "-S", "--max-time", "30"] + arguments)
    XCTAssertEqual(run.status, 0, run.errors, file: file, line: line)
    return run.output
  }
}

/// A client that says exactly what a test wants it to.
final class HTTPClient {
  let socket: Int32
  private var received: [UInt8] = []

  struct Closed: Error {}

  struct Answer {
    var status: Int
    /// By name in lower case.
    var fields: [String: String]
    var body: [UInt8]
    var text: String { String(decoding: body, as: UTF8.self) }
  }

  init(_ server: HTTPServer, receiveBuffer: Int32? = nil) throws {
    socket = try Self.connect(port: server.port, receiveBuffer: receiveBuffer)
  }

  /// To a server that listens on a Unix socket, into which less goes than into one of TCP.
  init(unix server: HTTPServer) throws {
    socket = try NBDClient.connect(server.address)
  }

  /// A socket that is connected.
  static func connect(port: UInt16, receiveBuffer: Int32? = nil) throws -> Int32 {
    let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    if var size = receiveBuffer {
      setsockopt(socket, SOL_SOCKET, SO_RCVBUF, &size, socklen_t(MemoryLayout<Int32>.size))
    }
    var patience = timeval(tv_sec: 30, tv_usec: 0)
    let length = socklen_t(MemoryLayout<timeval>.size)
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, length)
    setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, length)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let answer = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    guard answer == 0 else {
      close(socket)
      throw Errno(rawValue: errno)
    }
    return socket
  }

  deinit { close(socket) }

  func send(_ text: String) throws { try send(Array(text.utf8)) }

  func send(_ bytes: [UInt8]) throws {
    var sent = 0
    while sent < bytes.count {
      let count = bytes.withUnsafeBytes {
        Glibc.send(socket, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
      }
      guard count > 0 else { throw Closed() }
      sent += count
    }
  }

  private func receive() throws {
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    let count = recv(socket, &buffer, buffer.count, 0)
    guard count > 0 else { throw Closed() }
    received += buffer[..<count]
  }

  /// The next answer. That to a HEAD has no body.
  func answer(toHead: Bool = false) throws -> Answer {
    var end: Int?
    while end == nil {
      for index in 0..<max(0, received.count - 3)
      where received[index..<index + 4].elementsEqual("\r\n\r\n".utf8) {
        end = index
        break
      }
      if end == nil { try receive() }
    }
    let lines = String(decoding: received[..<(end ?? 0)], as: UTF8.self).components(
      separatedBy: "\r\n")
    received.removeFirst((end ?? 0) + 4)
    var answer = Answer(status: Int(lines[0].split(separator: " ")[1]) ?? 0, fields: [:], body: [])
    for line in lines.dropFirst() {
      let parts = line.components(separatedBy: ": ")
      XCTAssertNil(answer.fields.updateValue(parts[1], forKey: parts[0].lowercased()), line)
    }
    guard !toHead, let length = answer.fields["content-length"].flatMap(Int.init) else {
      return answer
    }
    while received.count < length { try receive() }
    answer.body = Array(received[..<length])
    received.removeFirst(length)
    return answer
  }

  /// Sends a request without a body and waits for its answer.
  func get(_ target: String, _ fields: String..., method: String = "GET") throws -> Answer {
    let fields = fields.map { "\($0)\r\n" }.joined()
    try send("\(method) \(target) HTTP/1.1\r\nHost: a\r\n\(fields)\r\n")
    return try answer(toHead: method == "HEAD")
  }

  /// Waits until the server has closed, and passes over what comes before; `false`: it has not.
  func isClosedSoon() -> Bool {
    while true {
      do {
        try receive()
      } catch {
        return errno != EAGAIN
      }
    }
  }
}

/// So many bytes, which tell where they are.
func pattern(_ count: Int) -> [UInt8] {
  [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
    for index in 0..<min(count, 65521) {
      buffer[index] = UInt8(truncatingIfNeeded: index &* 31 &+ index >> 8)
    }
    // The rest repeats that, by copying, which is fast also where nothing is optimized.
    var done = min(count, 65521)
    while done < count {
      let part = min(65521, count - done)
      memcpy(buffer.baseAddress! + done, buffer.baseAddress!, part)
      done += part
    }
    filled = count
  }
}
