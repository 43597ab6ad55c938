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
