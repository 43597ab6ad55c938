// SPDX-License-Identifier: Apache-2.0

#if Hummingbird
import DispatchAIO
import Foundation
import Hummingbird
import XCTest

@testable import DispatchAIOHummingbird

/// The plug's middleware: what Hummingbird's does, and where they differ.
final class FileMiddlewareTests: HummingbirdTests {
  override class var plugs: Bool { true }

  /// Both, beneath two paths, give the same answers but for the entity tag, at first and once the
  /// file is kept open.
  func testAnswersAreHummingbirds() async throws {
    let cache = CacheControl([(.imageJpeg, [CacheControl.Value.maxAge(60), .public])])
    let served = try await ServedDirectory.start(self) { provider in
      let router = Router()
      router.middlewares.add(
        FileMiddleware(
          fileProvider: provider, urlBasePath: "/1", cacheControl: cache, searchForIndexHtml: true
        ).withAdditionalMediaType(.applicationJson, mappedToFileExtension: "odd"))
      router.middlewares.add(
        AIOFileMiddleware(
          provider, urlBasePath: "/2/", cacheControl: cache, searchForIndexHtml: true,
          mediaTypes: ["odd": .applicationJson]))
      return router
    }
    for (name, count) in [
      ("a.jpg", 5000), ("sub/b.odd", 131_072), ("c d", 10), ("empty.txt", 0), ("large", 131_073),
      ("index.html", 20), ("sub/index.html", 30), ("..dots", 5),
    ] {
      try served.file(name, testBytes(count))
    }
    for path in [
      "/a.jpg", "/sub/b.odd", "/c%20d", "/empty.txt", "/large", "/", "", "/sub/", "/sub", "/none",
      "//a.jpg", "/a.jpg?x=1", "/..dots", "/../a.jpg", "/a.jpg/", "/%2e%2e/a.jpg",
    ] {
      try await compare(served, path, [])
    }
    for range in ["0-0", "1-4096", "100-", "4999-4999", "4000-9999", "5000-", "5000-6000"] {
      for path in ["/a.jpg", "/empty.txt"] {
        try await compare(served, path, ["-H", "Range: bytes=\(range)"])
      }
    }
    try await compare(served, "/a.jpg", ["--head"])
    try await compare(served, "/a.jpg", ["-X", "POST"])
  }

  /// Asks both, more than once: the file is kept open from the second time on.
  private func compare(
    _ served: ServedDirectory, _ path: String, _ arguments: [String], line: UInt = #line
  ) async throws {
    for round in 0..<3 {
      let one = try await served.curl("/1\(path)", arguments)
      let other = try await served.curl("/2\(path)", arguments)
      let what = "\(path) \(arguments), \(round)"
      XCTAssertEqual(one.status, other.status, what, line: line)
      XCTAssertEqual(one.body, other.body, what, line: line)
      var (fields, others) = (one.fields, other.fields)
      (fields["date"], others["date"]) = (nil, nil)
      XCTAssertEqual(others["etag"]?.hasPrefix("W/"), fields["etag"] == nil ? nil : false, what)
      (fields["etag"], others["etag"]) = (nil, nil)
      others["location"] = others["location"]?.replacingOccurrences(of: "/2", with: "/1")
      XCTAssertEqual(fields, others, what, line: line)
    }
  }

  /// Ranges as RFC 9110, 14 has them, at first and once the file is kept open.
  func testRangesOfRFC9110() async throws {
    let served = try await ServedDirectory.start(self, plugs: true)
    try served.file("ten", Array("0123456789".utf8))
    let rows: [(range: String, status: Int, body: String?)] = [
      ("bytes=-2", 206, "89"), ("bytes=-99", 206, "0123456789"), ("bytes=-0", 416, nil),
      ("bytes=8-99999999999999999999", 206, "89"), ("bytes=99999999999999999999-", 416, nil),
      ("BYTES = 1-2 ", 206, "12"), ("bytes=10-", 416, nil),
      // What has no meaning, and what would take several parts, is answered by the whole.
      ("items=0-1", 200, "0123456789"), ("bytes=3-1", 200, "0123456789"),
      ("bytes=a", 200, "0123456789"), ("bytes=+1-2", 200, "0123456789"),
      ("bytes=0-0,2-3", 200, "0123456789"), ("bytes=1-2,20-", 206, "12"),
    ]
    for (range, status, body) in rows {
      for _ in 0..<3 {
        let answer = try await served.curl("/ten", "-H", "Range: \(range)")
        XCTAssertEqual(answer.status, status, range)
        guard let body else {
          XCTAssertEqual(answer.fields["content-range"], "bytes */10", range)
          continue
        }
        XCTAssertEqual(String(decoding: answer.body, as: UTF8.self), body, range)
        XCTAssertEqual(answer.fields["content-length"], "\(body.utf8.count)", range)
        XCTAssertEqual(answer.fields["content-range"] != nil, status == 206, range)
      }
    }
    for _ in 0..<3 {
      let head = try await served.curl("/ten", "--head", "-H", "Range: bytes=0-1")
      XCTAssertEqual(head.status, 200)
      XCTAssertEqual(head.fields["content-length"], "10")
      XCTAssertNil(head.fields["content-range"])
    }
  }

  /// Conditions as RFC 9110, 13 has them, at first and once the file is kept open.
  func testConditionsOfRFC9110() async throws {
    let served = try await ServedDirectory.start(self, plugs: true)
    try served.file("ten", Array("0123456789".utf8))
    let head = try await served.curl("/ten", "--head").fields
    let tag = try XCTUnwrap(head["etag"])
    let modified = try XCTUnwrap(head["last-modified"])
    XCTAssert(tag.hasPrefix("\""), tag)
    let past = "Sat, 01 Jan 2000 00:00:00 GMT"
    let rows: [(fields: [String], status: Int)] = [
      (["If-Match: \(tag)"], 200), (["If-Match: \"x\", \(tag)"], 200), (["If-Match: *"], 200),
      (["If-Match: \"x\""], 412), (["If-Match: W/\(tag)"], 412),
      (["If-Unmodified-Since: \(modified)"], 200), (["If-Unmodified-Since: \(past)"], 412),
      (["If-None-Match: *"], 304), (["If-None-Match: \"x\", W/\(tag)"], 304),
      (["If-None-Match: \"x\"", "If-Modified-Since: \(modified)"], 200),
      (["Range: bytes=0-1", "If-Range: \(tag)"], 206),
      (["Range: bytes=0-1", "If-Range: W/\(tag)"], 200),
      (["Range: bytes=0-1", "If-Range: \(modified)"], 206),
      (["Range: bytes=0-1", "If-Range: \(past)"], 200),
      (["Range: bytes=0-1", "If-None-Match: \(tag)"], 304),
    ]
    for (fields, status) in rows {
      for arguments in status == 206 ? [[]] : [[], ["--head"]] {
        for _ in 0..<3 {
          let answer = try await served.curl("/ten", fields.flatMap { ["-H", $0] } + arguments)
          XCTAssertEqual(answer.status, status, "\(fields) \(arguments)")
          if status == 304 { XCTAssertEqual(answer.fields["etag"], tag) }
        }
      }
    }
  }

  /// The short way is taken, and an answer's fields are those of the file as it is.
  func testKeptFieldsFollowTheFile() async throws {
    var middleware: AIOFileMiddleware<BasicRequestContext>?
    let served = try await ServedDirectory.start(self) { provider in
      let router = Router()
      let own = AIOFileMiddleware<BasicRequestContext>(provider)
      router.middlewares.add(own)
      middleware = own
      return router
    }
    var tags: Set<String> = []
    for text in ["one", "another", "a third"] {
      try served.file("data", Array(text.utf8))
      for _ in 0..<3 {
        let answer = try await served.curl("/data")
        XCTAssertEqual(String(decoding: answer.body, as: UTF8.self), text)
        XCTAssertEqual(answer.fields["content-length"], "\(text.utf8.count)")
        tags.insert(answer.fields["etag"] ?? "")
      }
      XCTAssertNotNil(middleware?.files.openFiles.find("data")?.fields, text)
    }
    XCTAssertEqual(tags.count, 3)
  }
}
#endif
