// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import FileServer

/// Clients of aio-httpd that say what no client should: a healthy one is served exactly meanwhile,
/// nothing of the others stays, and nobody gets what is not served.
final class HTTPFuzzTests: XCTestCase {
  /// What is in the files that must not be served.
  private static let secret = "7Hq-this-is-not-served-Zx1"

  func testHostileClients() throws {
    Fuzzing.limitQuarantine()
    let directory = try temporaryDirectory()
    let server = try HTTPServer(
      directory,
      ["--writable", "--max-upload", "1MiB", "--request-timeout", "2", "--open-files", "2"])
    try makeFiles(server, directory)
    let files = try HealthyFiles(server)
    let fuzzed = FuzzedServer(server, directory, pools: 0, keptFiles: 2, healthy: files.use)
    Fuzzing.rounds(of: "HTTP", in: self) { try round(fuzzed, server, &$0, $1) }
    fuzzed.stop()
    try files.check()
  }

  private func makeFiles(_ server: HTTPServer, _ directory: TemporaryDirectory) throws {
    try server.make("files/small.txt", "small")
    try server.make("files/large", pattern(3 << 20))
    try server.make("files/deep/er/index.html", "<p>deep</p>")
    try server.make("files/.hidden", Self.secret)
    _ = try directory.makeFile("outside", size: Self.secret.utf8.count) {
      Array(Self.secret.utf8)[$0]
    }
    XCTAssertEqual(
      symlink(
        directory.path.appending("outside").string, server.root.appending("files/link").string), 0)
    XCTAssertEqual(symlink("../../outside", server.root.appending("files/up").string), 0)
  }

  private func round(
    _ fuzzed: FuzzedServer, _ server: HTTPServer, _ generator: inout SeededGenerator, _ what: String
  ) throws {
    try fuzzed.round(what) {
      try (0..<Int.random(in: 1...24, using: &generator)).map { _ in
        FuzzClient(
          try HTTPClient.connect(port: server.port), FuzzScript(Self.bytes(&generator), &generator))
      }
    } checkReceived: {
      Self.checkReceived($0, what)
    }
    XCTAssertTrue(
      eventually(within: 10) { Self.unfinishedUploads(server).isEmpty },
      "\(Self.unfinishedUploads(server)): \(what)")
  }

  private static func unfinishedUploads(_ server: HTTPServer) -> [String] {
    let names = FileManager.default.enumerator(atPath: server.root.string)?.compactMap {
      $0 as? String
    }
    return (names ?? []).filter { name in
      let last = name.split(separator: "/").last ?? ""
      return last.hasPrefix(".") && last != ".hidden"
    }
  }

  /// Whatever a client says, it is answered in the protocol, and told no secret.
  private static func checkReceived(_ client: FuzzClient, _ what: String) {
    let start = Array("HTTP/1.1 ".utf8)
    XCTAssertTrue(
      client.received.prefix(9).elementsEqual(start.prefix(client.received.count)),
      "\(String(decoding: client.received.prefix(200), as: UTF8.self)): \(what)")
    XCTAssertNil(
      Data(client.received).range(of: Data(secret.utf8)), "what is not served was: \(what)")
  }

  // MARK: What is said

  private static func bytes(_ generator: inout SeededGenerator) -> [UInt8] {
    var bytes: [UInt8] = []
    let count = generator.oneIn(8) ? 200 : Int.random(in: 1...8, using: &generator)
    for _ in 0..<count {
      let more: [UInt8] =
        switch Int.random(in: 0..<10, using: &generator) {
        case 0: upload(&generator)
        case 1: chunkedUpload(&generator)
        case 2: bodyOfTwoLengths(&generator)
        case 3: oversized(&generator)
        default: request(&generator)
        }
      bytes += more
    }
    return generator.oneIn(2) ? bytes : Message.mutated(bytes, &generator)
  }

  private static func pick(_ list: [String], _ generator: inout SeededGenerator) -> String {
    list.randomElement(using: &generator) ?? ""
  }

  private static let targets = [
    "/files/small.txt", "/files/large", "/files/large", "/files/", "/files", "/files/deep/er/",
    "/files/none", "/", "*", "/files/.hidden", "/files/%2ehidden", "/files/link", "/files/up",
    "/files/up/x", "/../outside", "/files/../../outside", "/%2e%2e/outside",
    "/files/%2e%2e%2f%2e%2e%2foutside", "/files/..%5coutside", "/files//../..//outside",
    "/files/deep/./../small.txt", "/files/small.txt?x=%00", "/files/small%00.txt", "/%", "/%z1",
    "/%c0%ae%c0%ae/outside", "/files/%ff%fe", "http://a/files/small.txt", "http://", "//outside",
    "/files/small.txt/", "/files/small.txt/../..", "/\u{7f}", "/a b",
  ]

  private static let versions = [
    "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.",
    "HTTP/1.10", "http/1.1", "",
  ]

  private static let fields = [
    "Range: bytes=0-0", "Range: bytes=-1", "Range: bytes=5-", "Range: bytes=0-,0-,0-,-1",
    "Range: bytes=18446744073709551615-", "Range: bytes=9223372036854775807-9223372036854775808",
    "Range: bytes=-9223372036854775808", "Range: bytes=5-3", "Range: bytes=,,", "Range: lines=1-2",
    "Range: bytes=" + (0..<300).map { "\($0 * 9)-\($0 * 9 + 4)" }.joined(separator: ","),
    "If-Range: \"x\"", "If-Match: *", "If-None-Match: W/\"a\", \"", "If-Modified-Since: tomorrow",
    "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
    "If-Unmodified-Since: Fri, 31 Feb 99999 25:61:61 GMT", "Connection: close",
    "Connection: keep-alive, close, ,", "Accept-Encoding: gzip;q=2, br;q=, *;q=0.0001",
    "Expect: 100-continue", "Expect: tea", "Host: b", "X: \u{0}", " folded: yes", "\tfolded",
    "no colon", ": no name", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked",
    "Content-Length: 0", "Content-Length: -1", "Content-Length: 5", "Content-Length: 0x5",
    "Content-Length: 99999999999999999999", "Content-Length: 5, 5",
  ]

  private static func request(_ generator: inout SeededGenerator) -> [UInt8] {
    let methods = ["GET", "GET", "GET", "HEAD", "OPTIONS", "PUT", "POST", "get", "G\u{0}T", ""]
    var text = "\(pick(methods, &generator)) \(pick(targets, &generator)) "
    text += generator.oneIn(3) ? pick(versions, &generator) : "HTTP/1.1"
    text += "\r\nHost: a\r\n"
    for _ in 0..<Int.random(in: 0...3, using: &generator) {
      text += pick(fields, &generator) + (generator.oneIn(15) ? "\n" : "\r\n")
    }
    return Array((text + "\r\n").utf8)
  }

  private static func upload(_ generator: inout SeededGenerator) -> [UInt8] {
    let counts = [0, 1, 5, 4096, 131_072, 131_073, 400_000, 1 << 20, 1 << 20 + 1]
    let count = counts.randomElement(using: &generator) ?? 0
    let expects = generator.oneIn(3) ? "Expect: 100-continue\r\n" : ""
    let condition = generator.oneIn(4) ? "If-None-Match: *\r\n" : ""
    let head =
      "PUT /files/new-\(Int.random(in: 0..<6, using: &generator)) HTTP/1.1\r\nHost: a\r\n"
      + "Content-Length: \(count)\r\n\(expects)\(condition)\r\n"
    return Array(head.utf8) + pattern(count)
  }

  private static func chunkedUpload(_ generator: inout SeededGenerator) -> [UInt8] {
    var bytes = Array(
      "PUT /files/new-c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".utf8)
    for _ in 0..<Int.random(in: 0...30, using: &generator) {
      let count = Int.random(in: 1...9000, using: &generator)
      let sizes = [
        "ffffffffffffffff", "8000000000000000", "7fffffffffffffff", "-1", "", " 5", "0x5", "g",
        "00000000000000000000005", "5;name=\"", "5;\r\n",
      ]
      let size = generator.oneIn(15) ? pick(sizes, &generator) : String(count, radix: 16)
      let end = generator.oneIn(25) ? pick(["", "\n", "\rX"], &generator) : "\r\n"
      bytes += Array("\(size)\r\n".utf8) + pattern(count) + Array(end.utf8)
    }
    if !generator.oneIn(4) { bytes += Array("0\r\n".utf8) }
    if generator.oneIn(4) { bytes += Array("Trailer: x\r\n".utf8) }
    return bytes + Array("\r\n".utf8)
  }

  /// Bodies that are longer to one reader than to another.
  private static func bodyOfTwoLengths(_ generator: inout SeededGenerator) -> [UInt8] {
    let lengths = [
      "Content-Length: 5", "Content-Length: 6", "Content-Length: +5", "Content-Length: 05",
      "Transfer-Encoding: chunked", "Transfer-Encoding: \u{b}chunked",
      "Transfer-Encoding: identity", "Transfer-Encoding : chunked", "Content-Length:\r\n 5",
    ]
    let method = pick(["PUT", "GET", "POST"], &generator)
    let head =
      "\(method) /files/new-t HTTP/1.1\r\nHost: a\r\n\(pick(lengths, &generator))\r\n"
      + "\(pick(lengths, &generator))\r\n\r\n"
    return Array(
      (head + "5\r\nhello\r\n0\r\n\r\nGET /files/small.txt HTTP/1.1\r\nHost: a\r\n\r\n").utf8)
  }

  private static func oversized(_ generator: inout SeededGenerator) -> [UInt8] {
    let long = String(repeating: "x", count: Int.random(in: 1000...40_000, using: &generator))
    switch Int.random(in: 0..<4, using: &generator) {
    case 0: return Array("GET /\(long) HTTP/1.1\r\nHost: a\r\n\r\n".utf8)
    case 1: return Array("GET / HTTP/1.1\r\nHost: a\r\nX: \(long)\r\n\r\n".utf8)
    case 2: return Array(long.utf8)
    default:
      let fields = String(repeating: "A: b\r\n", count: long.utf8.count / 6)
      return Array("GET / HTTP/1.1\r\n\(fields)".utf8)
    }
  }
}

/// Files of which a client knows every byte.
private final class HealthyFiles {
  private let server: HTTPServer
  private let bytes: [UInt8]
  private var uploaded: [UInt8] = []
  private var uses = 0

  init(_ server: HTTPServer) throws {
    self.server = server
    bytes = Array(blockContents[..<300_000])
    try server.make("healthy/file", bytes)
  }

  /// Gets, gets a part, puts and gets that, over one connection.
  func use(_ what: String) throws {
    uses += 1
    let client = try HTTPClient(server)
    XCTAssertTrue(try client.get("/healthy/file").body == bytes, "other bytes, \(what)")
    let part = uses % 1000..<uses % 1000 + 5000
    let range = "Range: bytes=\(part.lowerBound)-\(part.upperBound - 1)"
    XCTAssertTrue(try client.get("/healthy/file", range).body == Array(bytes[part]), what)
    XCTAssertEqual(try client.get("/healthy/none").status, 404, what)
    XCTAssertEqual(
      try client.get("/healthy/file", method: "HEAD").fields["content-length"], "300000")
    if uses % 4 == 1 {
      uploaded = Array(blockContents[uses..<uses + 150_000])
      try client.send("PUT /healthy/new HTTP/1.1\r\nHost: a\r\nContent-Length: 150000\r\n\r\n")
      try client.send(uploaded)
      XCTAssertEqual(try client.answer().status, uses == 1 ? 201 : 204, what)
    }
    XCTAssertTrue(try client.get("/healthy/new").body == uploaded, "other bytes, \(what)")
  }

  func check() throws {
    XCTAssertTrue(try server.contents("healthy/file") == bytes)
    XCTAssertTrue(try server.contents("healthy/new") == uploaded)
  }
}
