// SPDX-License-Identifier: Apache-2.0

#if Hummingbird
import DispatchAIOHummingbird
import Foundation
import Hummingbird
import Logging
import Synchronization
import SystemPackage
import XCTest

/// A Hummingbird application on a port, serving a directory of its own.
final class ServedDirectory: Sendable {
  let root: String
  let provider: AIOFileProvider
  let context: AIOContext
  let port: Int
  private let server: Task<Void, any Error>

  /// Starts it, and has the test stop it and remove the directory.
  static func start<Context: RequestContext>(
    _ test: XCTestCase, _ router: (AIOFileProvider) -> Router<Context>
  ) async throws -> ServedDirectory where Context.Source == ApplicationRequestContextSource {
    // Not in /tmp, which may be a tmpfs. What is beside `root` must not be served.
    let outer = "/var/tmp/dispatch-aio-hummingbird-\(getpid())-\(UInt32.random(in: 0 ... .max))"
    let root = "\(outer)/root"
    try FileManager.default.createDirectory(atPath: root, withIntermediateDirectories: true)
    let context = try AIOContext(queueDepth: 16)
    let provider = try AIOFileProvider(root, context: context)
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    let (ports, continuation) = AsyncStream.makeStream(of: Int.self)
    let app = Application(
      router: router(provider), configuration: .init(address: .hostname("127.0.0.1", port: 0)),
      onServerRunning: { channel in continuation.yield(channel.localAddress?.port ?? 0) },
      logger: logger)
    let server = Task { try await app.run() }
    var iterator = ports.makeAsyncIterator()
    let port = await iterator.next() ?? 0
    let served = ServedDirectory(root, provider, context, port, server)
    test.addTeardownBlock {
      server.cancel()
      _ = await server.result
      await context.close()
      try? FileManager.default.removeItem(atPath: outer)
    }
    return served
  }

  /// Starts it with Hummingbird's file middleware alone, or the plug's.
  static func start(
    _ test: XCTestCase, searchForIndexHtml: Bool = true, plugs: Bool = false
  ) async throws -> ServedDirectory {
    try await start(test) { provider in
      let router = Router()
      if plugs {
        router.middlewares.add(
          AIOFileMiddleware(provider, searchForIndexHtml: searchForIndexHtml))
      } else {
        router.middlewares.add(
          FileMiddleware(fileProvider: provider, searchForIndexHtml: searchForIndexHtml))
      }
      return router
    }
  }

  private init(
    _ root: String, _ provider: AIOFileProvider, _ context: AIOContext, _ port: Int,
    _ server: Task<Void, any Error>
  ) {
    (self.root, self.provider, self.context) = (root, provider, context)
    (self.port, self.server) = (port, server)
  }

  @discardableResult
  func file(_ name: String, _ bytes: [UInt8]) throws -> String {
    let path = "\(root)/\(name)"
    try FileManager.default.createDirectory(
      at: URL(fileURLWithPath: path).deletingLastPathComponent(),
      withIntermediateDirectories: true)
    try Data(bytes).write(to: URL(fileURLWithPath: path))
    return path
  }

  /// Drops a file from the page cache.
  func evict(_ name: String) throws {
    let file = try FileDescriptor.open(FilePath("\(root)/\(name)"), .readOnly)
    defer { try? file.close() }
    fsync(file.rawValue)
    posix_fadvise(file.rawValue, 0, 0, POSIX_FADV_DONTNEED)
  }

  /// The number of this process's open files that are beneath the directory, with a name or not.
  var openFiles: Int {
    let links = "/proc/self/fd"
    let descriptors = (try? FileManager.default.contentsOfDirectory(atPath: links)) ?? []
    return descriptors.count {
      let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(links)/\($0)")
      return target?.hasPrefix("\(root)/") ?? false
    }
  }

  /// Asks with curl.
  func curl(_ path: String, _ arguments: String...) async throws -> Answer {
    try await curl(path, arguments)
  }

  func curl(_ path: String, _ arguments: [String]) async throws -> Answer {
    let base = "/var/tmp/dispatch-aio-curl-\(UInt64.random(in: 0 ... .max))"
    let (head, body) = ("\(base).head", "\(base).body")
    defer {
      for file in [head, body] { try? FileManager.default.removeItem(atPath: file) }
    }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments =
      ["curl", "-s", "--path-as-is", "--max-time", "30", "-D", head, "-o", body] + arguments
      + ["http://127.0.0.1:\(port)\(path)"]
    process.standardInput = FileHandle.nullDevice
    let status: Int32 = try await withCheckedThrowingContinuation { continuation in
      process.terminationHandler = { continuation.resume(returning: $0.terminationStatus) }
      do { try process.run() } catch { continuation.resume(throwing: error) }
    }
    func written(_ path: String) -> [UInt8] {
      [UInt8]((try? Data(contentsOf: URL(fileURLWithPath: path))) ?? Data())
    }
    let fields = written(head)
    var content = written(body)
    // With `--head` curl writes the head, the date of which differs, where the body goes.
    if arguments.contains("--head"), content.starts(with: fields) {
      content.removeFirst(fields.count)
    }
    return Answer(
      exitStatus: status, head: String(decoding: fields, as: UTF8.self), body: content)
  }
}

struct Answer {
  let exitStatus: Int32
  let status: Int
  let fields: [String: String]
  let body: [UInt8]

  init(exitStatus: Int32, head: String, body: [UInt8]) {
    self.exitStatus = exitStatus
    self.body = body
    let lines = head.split(whereSeparator: \.isNewline)
    // The last head: one with the status 100 may be before it.
    let first = lines.lastIndex { $0.hasPrefix("HTTP/") } ?? 0
    status =
      lines.isEmpty ? 0 : Int(lines[first].split(separator: " ").dropFirst().first ?? "") ?? 0
    fields = lines.dropFirst(first + 1).reduce(into: [:]) { fields, line in
      guard let colon = line.firstIndex(of: ":") else { return }
      fields[line[..<colon].lowercased()] = line[colon...].dropFirst()
        .trimmingCharacters(in: .whitespaces)
    }
  }
}

/// A connection on which a test sends what it wants.
final class RawClient: Sendable {
  private let socket: Int32

  init(_ port: Int) throws {
    socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = in_port_t(port).bigEndian
    address.sin_addr.s_addr = in_addr_t(0x7f00_0001).bigEndian
    let answer = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    guard answer == 0 else { throw Errno(rawValue: errno) }
    // A server that does not answer must not stop the tests.
    var time = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
  }

  deinit { close(socket) }

  func send(_ text: String) throws {
    let bytes = Array(text.utf8)
    guard Glibc.send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count else {
      throw Errno(rawValue: errno)
    }
  }

  /// Sends no more.
  func finish() { shutdown(socket, Int32(SHUT_WR)) }

  /// Receives so many bytes, or those until the server closes the connection.
  func receive(_ count: Int) async throws -> [UInt8] {
    try await withCheckedThrowingContinuation { continuation in
      DispatchQueue.global().async { [self] in
        var received: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while received.count < count {
          let part = recv(socket, &buffer, min(buffer.count, count - received.count), 0)
          if part < 0, errno != ECONNRESET {
            return continuation.resume(throwing: Errno(rawValue: errno))
          }
          if part <= 0 { break }
          received += buffer[..<part]
        }
        continuation.resume(returning: received)
      }
    }
  }
}

/// Waits until something holds; for half a minute at the most.
func eventually(_ what: String, _ condition: () -> Bool) async throws {
  let deadline = ContinuousClock.now + .seconds(30)
  while !condition() {
    guard ContinuousClock.now < deadline else { return XCTFail("in vain: \(what)") }
    try await Task.sleep(for: .milliseconds(5))
  }
}

/// Bytes of which no two ranges are alike.
func testBytes(_ count: Int) -> [UInt8] {
  var state: UInt64 = 1
  return (0..<count).map { _ in
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return UInt8(truncatingIfNeeded: state >> 56)
  }
}
#endif
