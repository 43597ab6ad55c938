// SPDX-License-Identifier: Apache-2.0

import HTTPRules
import XCTest

@testable import FileServer

/// Paths, ranges, dates, conditions, codings, types and chunks, without sockets and files.
final class ProtocolTests: XCTestCase {
  private func with<Result>(_ text: String, _ body: (Bytes) throws -> Result) rethrows -> Result {
    try Array(text.utf8).withUnsafeBytes(body)
  }

  // MARK: Paths

  func testPaths() {
    enum Expected: Equatable {
      case file(String)
      case directory(String)
      case refused(TargetPath.Refusal)
    }
    let rows: [(String, Expected)] = [
      ("/", .directory(".")), ("/a", .file("a")), ("/a/", .directory("a")), ("/a/b", .file("a/b")),
      ("//a//b", .file("a/b")), ("/a//", .directory("a")), ("/a?b/../c", .file("a")),
      ("/a#b", .file("a")), ("/?x", .directory(".")), ("/a%20b", .file("a b")),
      ("/%61%2F", .refused(.notFound)), ("/a%2fb", .refused(.notFound)),
      ("/a%00", .refused(.malformed)), ("/a%", .refused(.malformed)),
      ("/a%2", .refused(.malformed)), ("/a%zz", .refused(.malformed)),
      ("/a%C3%A4", .file("aä")), ("/a+b", .file("a+b")), ("/a%3Fb", .file("a?b")),
      ("/..", .refused(.malformed)), ("/../a", .refused(.malformed)),
      ("/a/..", .refused(.malformed)), ("/a/../b", .refused(.malformed)),
      ("/%2e%2e/a", .refused(.malformed)), ("/.%2E/a", .refused(.malformed)),
      ("/./a", .refused(.malformed)), ("/a/.", .refused(.malformed)),
      ("/...", .refused(.notFound)), ("/a/..b", .refused(.notFound)), ("/a..b", .file("a..b")),
      ("/a/..%5c..%5cb", .refused(.notFound)),
      ("/.git/config", .refused(.notFound)), ("/a/.htaccess", .refused(.notFound)),
      ("/.well-known/x", .file(".well-known/x")), ("/a/.well-known", .refused(.notFound)),
      ("http://host/a", .file("a")), ("HTTP://host", .directory(".")),
      ("http://host/../a", .refused(.malformed)), ("*", .refused(.malformed)),
      ("a", .refused(.malformed)), ("", .refused(.malformed)),
      ("https://host/a", .refused(.malformed)),
      // The host ends where anything else begins, and is there.
      ("http://h?x=/a.txt", .directory(".")), ("http://h#/a", .directory(".")),
      ("http://h:80/a?/b", .file("a")), ("http://[::1]:80/a", .file("a")),
      ("http:///a", .refused(.malformed)), ("http://?/a", .refused(.malformed)),
      ("http://", .refused(.malformed)), ("http://:80/a", .refused(.malformed)),
      ("http://u@h/a", .refused(.malformed)),
    ]
    for (target, expected) in rows {
      var path = TargetPath(bytes: [], isDirectory: false)
      var found: Expected
      do throws(TargetPath.Refusal) {
        try decode(target, &path)
        XCTAssertEqual(path.bytes.last, 0)
        let text = String(decoding: path.bytes.dropLast(), as: UTF8.self)
        found = path.isDirectory ? .directory(text) : .file(text)
      } catch {
        found = .refused(error)
      }
      XCTAssertEqual(found, expected, target)
    }
  }

  private func decode(_ target: String, _ path: inout TargetPath) throws(TargetPath.Refusal) {
    let bytes = Array(target.utf8)
    let result = bytes.withUnsafeBytes { bytes in
      Result { () throws(TargetPath.Refusal) in try TargetPath.decode(bytes, into: &path) }
    }
    try result.get()
  }

  // MARK: Ranges

  func testRanges() {
    let rows: [(String, Int64, ByteRanges)] = [
      ("bytes=0-0", 10, .one(0..<1)), ("bytes=0-", 10, .one(0..<10)),
      ("bytes=2-5", 10, .one(2..<6)),
      ("bytes=9-20", 10, .one(9..<10)), ("bytes=-3", 10, .one(7..<10)),
      ("bytes=-30", 10, .one(0..<10)), ("BYTES = 1-2", 10, .one(1..<3)),
      ("bytes=0-99999999999999999999", 10, .one(0..<10)),
      ("bytes=10-", 10, .unsatisfiable), ("bytes=-0", 10, .unsatisfiable),
      ("bytes=0-0", 0, .unsatisfiable), ("bytes=-5", 0, .unsatisfiable),
      ("bytes=99999999999999999999-", 10, .unsatisfiable),
      ("bytes=0-1,20-30", 10, .one(0..<2)), ("bytes=20-30,40-50", 10, .unsatisfiable),
      ("bytes=0-1, 4-5 ,-1", 10, .several([0..<2, 4..<6, 9..<10])),
      ("bytes=5-6,0-1", 10, .several([5..<7, 0..<2])),
      // As much as the whole, or more.
      ("bytes=0-9,0-9", 10, .whole), ("bytes=0-7,5-9", 10, .whole),
      // Sums that are no numbers any more, also with the heads of the parts.
      ("bytes=0-,0-", 1 << 62, .whole), ("bytes=0-,0-,0-", .max, .whole),
      ("bytes=0-10,12-", .max, .whole),
      ("bytes=0-0,-1", .max, .several([0..<1, (.max - 1)..<(.max)])),
      ("bytes=9223372036854775807-", .max, .unsatisfiable),
      ("bytes=0-9223372036854775807", .max, .one(0..<(.max))),
      // What means nothing is as if not there.
      ("bytes=5-2", 10, .whole), ("bytes=a-b", 10, .whole), ("bytes=", 10, .whole),
      ("bytes=-", 10, .whole), ("bytes", 10, .whole), ("lines=1-2", 10, .whole),
      ("bytes=1-2,x", 10, .whole), ("bytes=,", 10, .whole), ("bytes=1", 10, .whole),
      ("bytes=--1", 10, .whole), ("bytes=1-2-3", 10, .whole), ("bytes=+1-2", 10, .whole),
      ("bytes=" + (0..<33).map { "\($0)-\($0)" }.joined(separator: ","), 1000, .whole),
    ]
    for (field, size, expected) in rows {
      XCTAssertEqual(with(field) { ByteRanges.parse($0.octets.span, size: size) }, expected, field)
    }
  }

  func testAMultipartBodyHasTheLengthThatIsSaid() {
    let parts = Multipart([0..<2, 100..<1000], type: "text/plain", size: 1000)
    let output = OutputBuffer(capacity: 10)
    for range in parts.ranges {
      parts.appendHead(of: range, to: output)
      output.append([UInt8](repeating: 0, count: range.count))
    }
    parts.appendEnd(to: output)
    XCTAssertEqual(parts.length, Int64(output.count))
  }

  // MARK: Dates

  func testDates() {
    let rows: [(String, Int64?)] = [
      ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
      ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777), ("Sun Nov  6 08:49:37 1994", 784_111_777),
      ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("Tue, 29 Feb 2000 23:59:60 GMT", 951_868_800),
      ("Sun, 06 Nov 1994 08:49:37 PST", nil), ("Sun, 06 Nov 1994 24:49:37 GMT", nil),
      ("Sun, 32 Nov 1994 08:49:37 GMT", nil), ("Sun, 06 Nvo 1994 08:49:37 GMT", nil),
      ("0", nil), ("", nil), ("784111777", nil),
      // Days that there were not.
      ("Thu, 31 Feb 2050 00:00:00 GMT", nil), ("Mon, 29 Feb 1999 00:00:00 GMT", nil),
      ("Sat, 31 Apr 1994 00:00:00 GMT", nil), ("Sun Nov 31 08:49:37 1994", nil),
      ("Sunday, 00-Nov-94 08:49:37 GMT", nil), ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799),
    ]
    for (text, seconds) in rows {
      XCTAssertEqual(with(text) { HTTPDate.parse($0.octets.span) }, seconds, text)
    }
    XCTAssertEqual(HTTPDate.text(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT")
    XCTAssertEqual(HTTPDate.logText(784_111_777), "06/Nov/1994:08:49:37 +0000")
    // A file's time can be any; HTTP's years have four digits.
    for (seconds, text) in [
      (Int64.min, "Sat, 01 Jan 0000 00:00:00 GMT"), (.min + 86399, "Sat, 01 Jan 0000 00:00:00 GMT"),
      (-62_167_219_201, "Sat, 01 Jan 0000 00:00:00 GMT"),
      (-62_167_219_199, "Sat, 01 Jan 0000 00:00:01 GMT"),
      (253_402_300_798, "Fri, 31 Dec 9999 23:59:58 GMT"),
      (253_402_300_800, "Fri, 31 Dec 9999 23:59:59 GMT"), (.max, "Fri, 31 Dec 9999 23:59:59 GMT"),
    ] {
      XCTAssertEqual(HTTPDate.text(seconds), text)
      XCTAssertTrue(HTTPDate.logText(seconds).hasSuffix(text.suffix(12).prefix(8) + " +0000"))
    }
    // Against the C library, over some centuries.
    for step in 0..<2000 {
      var seconds = time_t(-2_000_000_000 + step * 7_654_321)
      var parts = tm()
      gmtime_r(&seconds, &parts)
      var text = [CChar](repeating: 0, count: 64)
      strftime(&text, 64, "%a, %d %b %Y %H:%M:%S GMT", &parts)
      let expected = String(decoding: text.prefix { $0 != 0 }.map { UInt8($0) }, as: UTF8.self)
      XCTAssertEqual(HTTPDate.text(Int64(seconds)), expected)
      XCTAssertEqual(with(expected) { HTTPDate.parse($0.octets.span) }, Int64(seconds))
    }
  }

  // MARK: Conditions

  func testConditions() {
    let there = Validator(
      tag: Array("\"a\"".utf8), modified: 784_111_777, now: 784_111_778)
    let (same, before, after) = (
      "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:36 GMT",
      "Sun, 06 Nov 1994 08:49:38 GMT"
    )
    let rows: [(String, String, Validator?, Conditions.Outcome)] = [
      ("GET", "", there, .proceed),
      ("GET", "If-None-Match: \"a\"", there, .notModified),
      ("GET", "If-None-Match: W/\"a\"", there, .notModified),
      ("GET", "If-None-Match: \"b\", \"a\"", there, .notModified),
      ("GET", "If-None-Match: \"a,b\"", there, .proceed),
      ("GET", "If-None-Match: \"b\"", there, .proceed),
      ("GET", "If-None-Match: *", there, .notModified),
      ("PUT", "If-None-Match: *", there, .failed), ("PUT", "If-None-Match: *", nil, .proceed),
      ("PUT", "If-None-Match: \"a\"", there, .failed),
      ("GET", "If-Modified-Since: \(same)", there, .notModified),
      ("GET", "If-Modified-Since: \(after)", there, .notModified),
      ("GET", "If-Modified-Since: \(before)", there, .proceed),
      ("GET", "If-Modified-Since: yesterday", there, .proceed),
      ("PUT", "If-Modified-Since: \(same)", there, .proceed),
      // The tag counts, where there is one.
      ("GET", "If-None-Match: \"b\"\r\nIf-Modified-Since: \(same)", there, .proceed),
      ("GET", "If-Match: \"a\"", there, .proceed), ("GET", "If-Match: \"b\"", there, .failed),
      ("GET", "If-Match: W/\"a\"", there, .failed), ("GET", "If-Match: *", there, .proceed),
      ("PUT", "If-Match: *", nil, .failed),
      ("GET", "If-Unmodified-Since: \(same)", there, .proceed),
      ("GET", "If-Unmodified-Since: \(before)", there, .failed),
      ("GET", "If-Match: \"a\"\r\nIf-Unmodified-Since: \(before)", there, .proceed),
    ]
    for (method, fields, validator, expected) in rows {
      let text = "\(method) / HTTP/1.1\r\nHost: a\r\n\(fields)\(fields.isEmpty ? "" : "\r\n")\r\n"
      with(text) { bytes in
        var scanned = 0
        guard
          case .complete(let head) = RequestHead.parse(bytes, limits: .init(), scanned: &scanned)
        else { return XCTFail(text) }
        XCTAssertEqual(Conditions.evaluate(head, bytes, validator), expected, text)
      }
    }
    for (value, counts) in [
      ("\"a\"", true), ("\"b\"", false), ("W/\"a\"", false), (same, true), (after, false),
      ("x", false),
    ] {
      with("GET / HTTP/1.1\r\nHost: a\r\nIf-Range: \(value)\r\n\r\n") { bytes in
        var scanned = 0
        guard
          case .complete(let head) = RequestHead.parse(bytes, limits: .init(), scanned: &scanned)
        else { return XCTFail(value) }
        XCTAssertEqual(Conditions.rangeCounts(head, bytes, there), counts, value)
        // In the second of the last change, or if that is in the future, a date tells no version.
        for now in [784_111_777, 784_111_776] as [Int64] {
          let new = Validator(tag: there.tag, modified: there.modified, now: now)
          XCTAssertEqual(
            Conditions.rangeCounts(head, bytes, new), counts && value != same, "\(value) \(now)")
        }
      }
    }
  }

  /// A time that was set to be in the future is not sent, and what is sent instead stays the same.
  func testTheTimeOfTheLastModification() {
    for (modified, changed, now, expected) in [
      (10, 20, 30, 10), (10, 0, 30, 10), (30, 20, 30, 30), (40, 20, 30, 20), (40, 20, 40, 40),
      (40, 35, 30, 30),
    ] as [(Int64, Int64, Int64, Int64)] {
      XCTAssertEqual(Validator.lastModified(modified, changed: changed, now: now), expected)
    }
  }

  // MARK: Codings and types

  func testCodings() {
    let rows: [(String, [ContentCoding])] = [
      ("gzip, deflate, br, zstd", [.brotli, .zstd, .gzip]), ("gzip", [.gzip]), ("", []),
      ("identity", []), ("*", [.brotli, .zstd, .gzip]), ("*;q=0", []),
      ("br;q=0, *", [.zstd, .gzip]),
      ("br;q=0.5, gzip;q=0.8, zstd;q=0.001", [.gzip, .brotli, .zstd]), ("GZIP ; q=1.000", [.gzip]),
      ("x-gzip", [.gzip]), ("br;q=x", []), ("br;q=2", []), ("br;", [.brotli]),
    ]
    for (field, expected) in rows {
      XCTAssertEqual(with(field, ContentCoding.accepted), expected, field)
    }
  }

  func testTypes() {
    let rows = [
      ("a.html", "text/html; charset=utf-8"), ("a/b.HTML\u{0}", "text/html; charset=utf-8"),
      ("a.tar.gz", "application/gzip"), ("a.mp4", "video/mp4"), ("a", "application/octet-stream"),
      ("a.b/c", "application/octet-stream"), ("a.", "application/octet-stream"),
      ("a.verylongending", "application/octet-stream"), ("", "application/octet-stream"),
      ("x.js", "text/javascript; charset=utf-8"), ("x.wasm", "application/wasm"),
    ]
    for (path, expected) in rows {
      XCTAssertEqual(with(path) { "\(MediaType.of(path: $0).name)" }, expected, path)
    }
  }

  // MARK: Chunks

  func testChunksHoweverTheyAreCut() throws {
    let text = "5 \t\r\nhello\r\n00b \t;x=\"y\"\r\n, wide world\r\n0\r\nTrailer: x\r\n\r\nNEXT"
      .replacingOccurrences(of: "00b", with: "00c")
    let bytes = Array(text.utf8)
    for step in 1...bytes.count {
      for room in [1, 3, 100] {
        var (body, found, position) = (ChunkedBody(), [UInt8](), 0)
        while position < bytes.count, !body.isDone {
          let end = min(bytes.count, position + step)
          position += try bytes[position..<end].withUnsafeBytes { bytes in
            try body.take(bytes, room: room) { found += $0 }
          }
        }
        XCTAssertTrue(body.isDone)
        XCTAssertEqual(String(decoding: found, as: UTF8.self), "hello, wide world")
        XCTAssertEqual(String(decoding: bytes[position...], as: UTF8.self), "NEXT")
      }
    }
  }

  func testWhatIsNoChunk() {
    for text in [
      "\r\n", "g\r\n", "-5\r\n", "5\nhello", "5\r\nhelloX", "5\r\nhello\rX", "5;\n5\r\n",
      "1234567890123456\r\n", "4 zz\r\n", "4 4\r\n", " 4\r\n", ";x\r\n", "5\r\r", "0\r\n\rX",
      "0\r\n\n\r\n", "0\r\nA: b\nX: y\r\n\r\n",
    ] {
      var body = ChunkedBody()
      XCTAssertThrowsError(
        try with(text) { try body.take($0, room: 100) { _ in } }, text.debugDescription)
    }
  }
}
