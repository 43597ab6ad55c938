// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import FileServer

/// What is made of a request's bytes. Tables: a row is what is received, and what is to become of
/// it.
final class RequestHeadTests: XCTestCase {
  private func parse(_ text: String, limits: RequestHead.Limits = .init()) -> RequestHead.Parsed {
    var scanned = 0
    return Array(text.utf8).withUnsafeBytes {
      RequestHead.parse($0, limits: limits, scanned: &scanned)
    }
  }

  private func status(_ text: String, limits: RequestHead.Limits = .init()) -> Int? {
    switch parse(text, limits: limits) {
    case .incomplete: nil
    case .refused(let status): status
    case .complete: 0
    }
  }

  func testWhatIsARequestAndWhatIsNot() {
    let host = "Host: a\r\n"
    let long = String(repeating: "x", count: 9000)
    let rows: [(String, Int?)] = [
      ("GET / HTTP/1.1\r\n\(host)\r\n", 0),
      // Empty lines in front are passed over before (see below).
      ("\r\nGET / HTTP/1.1\r\n\(host)\r\n", 400),
      ("GET / HTTP/1.0\r\n\r\n", 0),
      ("GET / HTTP/1.1\r\n\(host)", nil),
      ("", nil), ("G", nil), ("GET / HTTP/1.1\r", nil),
      // No host, or two.
      ("GET / HTTP/1.1\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)\(host)\r\n", 400),
      // Hosts that are some, and none.
      ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 0), ("GET / HTTP/1.1\r\nHost: a.b:80\r\n\r\n", 0),
      ("GET / HTTP/1.1\r\nHost: [::1%25a]:8080\r\n\r\n", 0),
      ("GET / HTTP/1.1\r\nHost: Az09-._~!$&'()*+,;=\r\n\r\n", 0),
      ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\nHost: a\tb\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\nHost: ä\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\nHost: a\u{7f}\r\n\r\n", 400),
      // Lines that end otherwise.
      ("GET / HTTP/1.1\n\(host)\n", 400),
      ("GET / HTTP/1.1\r\n\(host)X: a\rb\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)X: a\nY: b\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)X: a\u{0}b\r\n\r\n", 400),
      // Continued lines, blanks before the colon, no name.
      ("GET / HTTP/1.1\r\n\(host) X: a\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)X : a\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host): a\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)X\r\n\r\n", 400),
      // The request's line.
      ("GET /\r\n\(host)\r\n", 400), ("GET  / HTTP/1.1\r\n\(host)\r\n", 400),
      ("GET / HTTP/1.1 \r\n\(host)\r\n", 400), ("GET / a HTTP/1.1\r\n\(host)\r\n", 400),
      ("G(T / HTTP/1.1\r\n\(host)\r\n", 400), ("GET /\t HTTP/1.1\r\n\(host)\r\n", 400),
      ("GET / HTTP/2.0\r\n\(host)\r\n", 505), ("GET / HTTP/11\r\n\(host)\r\n", 400),
      ("GET / http/1.1\r\n\(host)\r\n", 400),
      // Bodies.
      ("PUT / HTTP/1.1\r\n\(host)Content-Length: 5\r\n\r\n", 0),
      ("PUT / HTTP/1.1\r\n\(host)Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 0),
      ("PUT / HTTP/1.1\r\n\(host)Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
      ("PUT / HTTP/1.1\r\n\(host)Content-Length: +5\r\n\r\n", 400),
      ("PUT / HTTP/1.1\r\n\(host)Content-Length: 5, 5\r\n\r\n", 400),
      ("PUT / HTTP/1.1\r\n\(host)Content-Length: 9999999999999999999\r\n\r\n", 400),
      ("PUT / HTTP/1.1\r\n\(host)Transfer-Encoding: chunked\r\n\r\n", 0),
      ("PUT / HTTP/1.1\r\n\(host)Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
      ("PUT / HTTP/1.1\r\n\(host)Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
      ("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
      ("PUT / HTTP/1.1\r\n\(host)Expect: 200-ok\r\n\r\n", 417),
      // Fields that there is one of.
      ("PUT / HTTP/1.1\r\n\(host)If-Match: \"a\"\r\nIf-Match: \"b\"\r\n\r\n", 400),
      ("PUT / HTTP/1.1\r\n\(host)If-None-Match: \"a\"\r\nif-none-match: \"b\"\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)Range: bytes=0-1\r\nRange: bytes=0-1\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)If-Range: \"a\"\r\nIf-Range: \"a\"\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)If-Modified-Since: 0\r\nIf-Modified-Since: 0\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)If-Unmodified-Since: 0\r\nIf-Unmodified-Since: 0\r\n\r\n", 400),
      ("GET / HTTP/1.1\r\n\(host)If-Match: *\r\nIf-None-Match: *\r\nRange: x\r\n\r\n", 0),
      ("GET / HTTP/1.1\r\n\(host)Accept-Encoding: a\r\nAccept-Encoding: b\r\n\r\n", 0),
      // Limits.
      ("GET /\(long)", 414), ("GET /\(long) HTTP/1.1\r\n\(host)\r\n", 414),
      ("GET / HTTP/1.1\r\n\(host)X: \(long)\r\nY: \(long)\r\n\r\n", 431),
      ("GET / HTTP/1.1\r\n\(host)X: \(long)\r\nY: \(long)", 431),
    ]
    for (text, expected) in rows {
      XCTAssertEqual(status(text), expected, text.prefix(80).debugDescription)
    }
  }

  func testWhatARequestSays() throws {
    let text = "gEt /x HTTP/1.1\r\nHOST:  a.b \t\r\nrange:bytes=1-2\r\nIf-Range: \"x\"\r\n\r\nGET"
    guard case .complete(let head) = parse(text.replacingOccurrences(of: "gEt", with: "GET")) else {
      return XCTFail("not complete")
    }
    let bytes = Array(text.utf8)
    func value(_ slice: Slice?) -> String? {
      slice.map { slice in
        bytes.withUnsafeBytes { String(decoding: slice.of($0), as: UTF8.self) }
      }
    }
    XCTAssertEqual(head.method, .get)
    XCTAssertEqual(value(head.target), "/x")
    XCTAssertEqual(value(head.host), "a.b")
    XCTAssertEqual(value(head.range), "bytes=1-2")
    XCTAssertEqual(value(head.ifRange), "\"x\"")
    XCTAssertEqual(head.length, bytes.count - 3)
  }

  func testMethods() {
    for (name, method) in [
      ("GET", .get), ("HEAD", .head), ("PUT", .put), ("OPTIONS", .options),
      ("POST", .unsupported), ("DELETE", .unsupported), ("PATCH", .unsupported),
      ("TRACE", .unsupported), ("CONNECT", .unsupported), ("BREW", .unknown),
      // They are in upper case.
      ("gEt", .unknown), ("post", .unknown),
    ] as [(String, RequestHead.Method)] {
      guard case .complete(let head) = parse("\(name) / HTTP/1.1\r\nHost: a\r\n\r\n") else {
        XCTFail(name)
        continue
      }
      XCTAssertEqual(head.method, method, name)
    }
  }

  func testEmptyLines() {
    for (text, rest) in [
      ("", ""), ("\r\n", ""), ("\r\n\r\n\r\nGET\r\n", "GET\r\n"), ("\r", "\r"), ("\r\n\r", "\r"),
      ("\n", "\n"), ("\rX", "\rX"), ("GET", "GET"),
    ] {
      let found = Array(text.utf8).withUnsafeBytes {
        String(decoding: RequestHead.skipEmptyLines($0), as: UTF8.self)
      }
      XCTAssertEqual(found, rest, text.debugDescription)
    }
  }

  func testWhetherTheConnectionStays() {
    let rows: [(String, String, Bool)] = [
      ("1.1", "", true), ("1.1", "Connection: close\r\n", false),
      ("1.1", "Connection: x, CLOSE\r\n", false), ("1.0", "", false),
      ("1.0", "Connection: Keep-Alive\r\n", true),
      ("1.0", "Connection: keep-alive, close\r\n", false),
    ]
    for (version, field, stays) in rows {
      guard case .complete(let head) = parse("GET / HTTP/\(version)\r\nHost: a\r\n\(field)\r\n")
      else {
        XCTFail(field)
        continue
      }
      XCTAssertEqual(head.keepsAlive, stays, "\(version) \(field)")
    }
  }

  /// However a request's bytes arrive, it is complete with its last one, and not before.
  func testBytesByByte() {
    let bytes = Array("GET /abc HTTP/1.1\r\nHost: a\r\nRange: bytes=0-\r\n\r\n".utf8)
    for step in 1...bytes.count {
      var (scanned, count) = (0, 0)
      var result = RequestHead.Parsed.incomplete
      while count < bytes.count {
        XCTAssertEqual(result, .incomplete)
        count = min(bytes.count, count + step)
        result = bytes[..<count].withUnsafeBytes {
          RequestHead.parse($0, limits: .init(), scanned: &scanned)
        }
      }
      guard case .complete(let head) = result else { return XCTFail("step \(step): \(result)") }
      XCTAssertEqual(head.length, bytes.count)
    }
  }

  /// Whatever is received, the parser neither crashes nor looks outside of it. `AIO_SEED` replays.
  func testRandomBytes() {
    let seed = Seeds.one
    var generator = SeededGenerator(seed: seed)
    let pieces = [
      "GET ", "/", "%2e", "..", " HTTP/1.1", "\r\n", "\r", "\n", "Host", ": ", "a", "\u{0}",
      "Range: bytes=", "-", "5", ",", "\r\n\r\n", "Content-Length: ", "Transfer-Encoding: chunked",
    ]
    var kinds = Set<Int>()
    for _ in 0..<20_000 {
      let text = (0..<Int.random(in: 0..<14, using: &generator)).map { _ in
        pieces.randomElement(using: &generator) ?? ""
      }.joined()
      kinds.insert(status(text) ?? -1)
    }
    XCTAssertTrue(kinds.isSuperset(of: [-1, 400]), "\(kinds), \(Seeds.replay(seed))")
  }
}
