// SPDX-License-Identifier: Apache-2.0

#if Hummingbird
import DispatchAIOHummingbird
import Foundation
import Hummingbird
import NIOCore
import SystemPackage
import XCTest

@testable import HummingbirdFiles

/// Files that are stored, through the example.
final class StoringTests: XCTestCase {
  private func start(limit: Int64 = 1 << 30) async throws -> ServedDirectory {
    try await ServedDirectory.start(self) { HummingbirdFiles.router($0, limit: limit) }
  }

  private func upload(_ bytes: [UInt8]) throws -> String {
    let path = "/var/tmp/dispatch-aio-body-\(UInt64.random(in: 0 ... .max))"
    try Data(bytes).write(to: URL(fileURLWithPath: path))
    addTeardownBlock { try? FileManager.default.removeItem(atPath: path) }
    return path
  }

  private func contents(_ served: ServedDirectory) throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: served.root).sorted()
  }

  /// A body becomes a file, and replaces one; nothing else is left.
  func testStoring() async throws {
    let served = try await start()
    for (count, status) in [(0, 201), (1, 204), (3_000_001, 204), (10, 204)] {
      let bytes = testBytes(count)
      let body = try upload(bytes)
      // curl sends no chunked body without bytes.
      for arguments in count == 0 ? [[]] : [[], ["-H", "Transfer-Encoding: chunked"]] {
        let answer = try await served.curl("/file", ["-T", body, "-H", "Expect:"] + arguments)
        XCTAssertEqual(answer.status, arguments.isEmpty ? status : 204)
        let back = try await served.curl("/file")
        XCTAssert(back.body == bytes, "\(count) bytes")
      }
    }
    let client = try RawClient(served.port)
    try client.send(
      "PUT /a%20b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    let answer = try await client.receive(12)
    XCTAssertEqual(String(decoding: answer, as: UTF8.self), "HTTP/1.1 201")
    XCTAssertEqual(try contents(served), ["a b", "file"])
  }

  /// A body that breaks off changes nothing, whether its length was announced or not.
  func testBodyThatBreaksOff() async throws {
    let served = try await start()
    try served.file("file", Array("before".utf8))
    for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
      let client = try RawClient(served.port)
      let part = framing.hasPrefix("Content") ? "half" : "4\r\nhalf\r\n"
      try client.send("PUT /file HTTP/1.1\r\nHost: h\r\n\(framing)\r\n\r\n\(part)")
      client.finish()
      let answer = String(decoding: try await client.receive(.max), as: UTF8.self)
      XCTAssertFalse(answer.hasPrefix("HTTP/1.1 2"), "\(framing): \(answer)")
      let back = try await served.curl("/file")
      XCTAssertEqual(back.body, Array("before".utf8), framing)
      XCTAssertEqual(try contents(served), ["file"], framing)
    }
  }

  /// A client that goes away in the middle of a body leaves nothing behind, neither a name nor an
  /// open file, which needs no name.
  func testClientThatGoesAway() async throws {
    let served = try await start()
    try served.file("file", Array("before".utf8))
    do {
      let client = try RawClient(served.port)
      // More than is gathered before it is written.
      try client.send("PUT /file HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n")
      for _ in 0..<16 { try client.send(String(repeating: "x", count: 32 << 10)) }
      try await eventually("the new file is open") { served.openFiles == 1 }
    }
    try await eventually("the new file is closed") { served.openFiles == 0 }
    XCTAssertEqual(try contents(served), ["file"])
    let back = try await served.curl("/file")
    XCTAssertEqual(back.body, Array("before".utf8))
  }

  /// A cancelled task stores nothing, even where the sequence just ends for it.
  func testCancelledTask() async throws {
    let served = try await start()
    try served.file("file", Array("before".utf8))
    let provider = served.provider
    // Of an empty part no write is made, which would be refused.
    for part in ["half", ""] {
      let (buffers, continuation) = AsyncStream.makeStream(of: ByteBuffer.self)
      continuation.yield(ByteBuffer(string: part))
      let storing = Task { try await provider.store(contentsOf: buffers, at: "/file") }
      try await eventually("the new file is open") { served.openFiles == 1 }
      storing.cancel()
      switch await storing.result {
      case .success(let stored): XCTFail("stored \(stored.size) bytes")
      case .failure(let error): XCTAssert(error is CancellationError, "\(error)")
      }
      try await eventually("the new file is closed") { served.openFiles == 0 }
    }
    XCTAssertEqual(try contents(served), ["file"])
    let back = try await served.curl("/file")
    XCTAssertEqual(back.body, Array("before".utf8))
  }

  /// A file that is replaced hands its permissions on, unless others are given.
  func testPermissions() async throws {
    let served = try await start()
    let path = try served.file("file", Array("before".utf8))
    func mode() -> mode_t {
      var status = stat()
      XCTAssertEqual(stat(path, &status), 0)
      return status.st_mode & 0o777
    }
    XCTAssertEqual(chmod(path, 0o640), 0)
    for (permissions, expected) in [(nil, 0o640), (FilePermissions.ownerReadWrite, 0o600)] {
      let buffers = AsyncStream { $0.finish() } as AsyncStream<ByteBuffer>
      let stored = try await served.provider.store(
        contentsOf: buffers, at: "/file", permissions: permissions)
      XCTAssert(stored.replaced)
      XCTAssertEqual(mode(), mode_t(expected))
    }
  }

  // MARK: Conditions

  /// What the client asks for must hold (RFC 9110, 13), and a part is not the whole (14.5).
  func testConditions() async throws {
    let served = try await start()
    try served.file("file", Array("before".utf8))
    let body = try upload(Array("after".utf8))
    let head = try await served.curl("/file", "--head").fields
    let tag = try XCTUnwrap(head["etag"])
    let modified = try XCTUnwrap(head["last-modified"])
    let rows: [(path: String, field: String, status: Int)] = [
      ("/file", "If-None-Match: *", 412), ("/file", "If-None-Match: \(tag)", 412),
      ("/file", "If-Match: \"x\"", 412), ("/file", "If-Match: W/\(tag)", 412),
      ("/file", "If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT", 412),
      ("/file", "Content-Range: bytes 3-5/6", 400), ("/new", "If-Match: *", 412),
      ("/new", "If-Match: \(tag)", 412),
    ]
    for (path, field, status) in rows {
      let answer = try await served.curl(path, "-T", body, "-H", field)
      XCTAssertEqual(answer.status, status, field)
      XCTAssertEqual(try contents(served), ["file"], field)
      let back = try await served.curl("/file")
      XCTAssertEqual(back.body, Array("before".utf8), field)
    }
    let accepted: [(path: String, field: String, status: Int)] = [
      ("/file", "If-Unmodified-Since: \(modified)", 204), ("/new", "If-None-Match: *", 201),
      ("/file", "If-None-Match: \(tag)", 204), ("/file", "If-Match: *", 204),
    ]
    for (path, field, status) in accepted {
      let answer = try await served.curl(path, "-T", body, "-H", field)
      XCTAssertEqual(answer.status, status, field)
    }
    let now = try await served.curl("/file", "--head").fields
    XCTAssertNotEqual(now["etag"], tag)
    let matches = "If-Match: \(now["etag"] ?? "")"
    let answer = try await served.curl("/file", "-T", body, "-H", matches)
    XCTAssertEqual(answer.status, 204)
  }

  /// Begins an upload of four bytes, and sends all but the last.
  private func begin(_ served: ServedDirectory, _ field: String) throws -> RawClient {
    let client = try RawClient(served.port)
    try client.send(
      "PUT /file HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\(field)\r\n\r\nlat")
    return client
  }

  private func status(_ client: RawClient) async throws -> String {
    String(decoding: try await client.receive(12).suffix(3), as: UTF8.self)
  }

  /// A file that appears while the body arrives is not replaced, whoever made it.
  func testNewFileThatAppears() async throws {
    let served = try await start()
    for rounds in 0..<2 {
      let client = try begin(served, "If-None-Match: *")
      try await eventually("the new file is open") { served.openFiles == 1 }
      if rounds == 0 {
        let body = try upload(Array("first".utf8))
        let answer = try await served.curl("/file", "-T", body)
        XCTAssertEqual(answer.status, 201)
      } else {
        try served.file("file", Array("first".utf8))
      }
      try client.send("e")
      let late = try await status(client)
      XCTAssertEqual(late, "412")
      let back = try await served.curl("/file")
      XCTAssertEqual(back.body, Array("first".utf8))
      try FileManager.default.removeItem(atPath: "\(served.root)/file")
    }
  }

  /// Of several uploads that replace the same version, or none, one is stored.
  func testUploadsAtOnce() async throws {
    let served = try await start()
    for round in 0..<10 {
      var field = "If-None-Match: *"
      if round % 2 == 1 {
        field = "If-Match: \(try await served.curl("/file", "--head").fields["etag"] ?? "")"
      } else if round > 0 {
        try FileManager.default.removeItem(atPath: "\(served.root)/file")
      }
      let clients = try (0..<8).map { _ in try begin(served, field) }
      try await eventually("the new files are open") { served.openFiles >= 8 }
      for client in clients { try client.send("e") }
      var answers: [String] = []
      for client in clients { answers.append(try await status(client)) }
      let stored = field.hasPrefix("If-None") ? "201" : "204"
      XCTAssertEqual(answers.sorted(), [stored] + Array(repeating: "412", count: 7), field)
    }
  }

  // MARK: Clients that wait, or have others wait

  /// A client that asks whether to send its body is told so, or gets its refusal at once.
  func testContinue() async throws {
    let served = try await start()
    let client = try RawClient(served.port)
    let head = "PUT /file HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n"
    try client.send("\(head)\r\n")
    let interim = "HTTP/1.1 100 Continue\r\n\r\n"
    let told = try await client.receive(interim.utf8.count)
    XCTAssertEqual(String(decoding: told, as: UTF8.self), interim)
    try client.send("body")
    let stored = try await status(client)
    XCTAssertEqual(stored, "201")
    let other = try RawClient(served.port)
    try other.send("\(head)If-None-Match: *\r\n\r\n")
    let refused = try await status(other)
    XCTAssertEqual(refused, "412")
  }

  /// Starts the example as a process would.
  private func startExample(
    _ arguments: String...
  ) async throws -> (root: String, port: Int, shutDown: @Sendable () async throws -> Void) {
    let root = "/var/tmp/dispatch-aio-hummingbird-files-\(UInt64.random(in: 0 ... .max))"
    try FileManager.default.createDirectory(atPath: root, withIntermediateDirectories: true)
    addTeardownBlock { try? FileManager.default.removeItem(atPath: root) }
    let (ports, continuation) = AsyncStream.makeStream(of: Int.self)
    let server = try HummingbirdFiles.parse([root, "--port", "0"] + arguments).server {
      continuation.yield($0.localAddress?.port ?? 0)
    }
    let running = Task { try await server.run() }
    addTeardownBlock { running.cancel() }
    var iterator = ports.makeAsyncIterator()
    let port = await iterator.next() ?? 0
    return (
      root, port,
      {
        await server.triggerGracefulShutdown()
        // A server that does not end must not stop the tests.
        let watchdog = Task {
          try await Task.sleep(for: .seconds(20))
          running.cancel()
        }
        try await running.value
        watchdog.cancel()
      }
    )
  }

  /// A client that sends no more of its body is not waited for for ever, and nothing is stored.
  func testStalledBody() async throws {
    let (root, port, shutDown) = try await startExample("--idle-timeout", "0.3")
    for framing in ["Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n4\r\n"] {
      let client = try RawClient(port)
      try client.send("PUT /file HTTP/1.1\r\nHost: h\r\n\(framing)half")
      if framing.hasPrefix("Transfer") { try client.send("\r\n") }
      let answer = String(decoding: try await client.receive(.max), as: UTF8.self)
      XCTAssertFalse(answer.hasPrefix("HTTP/1.1 2"), answer)
    }
    try await shutDown()
    XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: root), [])
  }

  /// A shutdown waits for the last requests, but not for ever.
  func testShutdown() async throws {
    let (root, port, shutDown) = try await startExample("--drain-timeout", "0.5")
    try Data(count: 32 << 20).write(to: URL(fileURLWithPath: "\(root)/large"))
    let clients = try [
      "PUT /file HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf",
      "GET /large HTTP/1.1\r\nHost: h\r\n\r\n", "GET /la",
    ].map { text in
      let client = try RawClient(port)
      try client.send(text)
      return client
    }
    try await Task.sleep(for: .milliseconds(200))
    let start = ContinuousClock.now
    try await shutDown()
    XCTAssertLessThan(ContinuousClock.now - start, .seconds(10))
    XCTAssertEqual(clients.count, 3)
    XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: root), ["large"])
  }

  /// The first program stops for what is wrong.
  func testFirstProgram() async throws {
    do {
      try await serve("/nonexistent")
      XCTFail("served")
    } catch {
      XCTAssertEqual((error as? AIOError)?.code, .notFound)
    }
  }

  func testRefusals() async throws {
    let served = try await start(limit: 1000)
    try served.file("directory/file", [])
    try served.file("../outside/file", [])
    try FileManager.default.createSymbolicLink(
      atPath: "\(served.root)/link", withDestinationPath: "../outside")
    let (small, large) = (try upload(testBytes(100)), try upload(testBytes(1001)))
    for (path, body, status) in [
      ("/directory", small, 409), ("/none/file", small, 404), ("/link/file", small, 404),
      ("/a%00b", small, 400), ("/a%ff", small, 400), ("/a%2", small, 400),
      ("/../outside/x", small, 404), ("/%2e%2e/outside/x", small, 404), ("/directory/", small, 400),
      ("/.aio-1", small, 400), ("/directory/file/x", small, 404),
      ("/\(String(repeating: "n", count: 300))", small, 400), ("/large", large, 413),
    ] {
      // With a path of its own, curl -T appends no name to one that ends with a slash.
      let answer = try await served.curl(
        path, ["-X", "PUT", "--data-binary", "@\(body)", "-H", "Expect:"])
      XCTAssertEqual(answer.status, status, path)
    }
    let chunked = try await served.curl(
      "/large", ["-T", large, "-H", "Transfer-Encoding: chunked"])
    XCTAssertEqual(chunked.status, 413)
    XCTAssertEqual(try contents(served), ["directory", "link"])
    XCTAssertEqual(
      try Data(contentsOf: URL(fileURLWithPath: "\(served.root)/../outside/file")), Data())
  }
}
#endif
