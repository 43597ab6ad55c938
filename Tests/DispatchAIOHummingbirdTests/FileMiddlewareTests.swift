// SPDX-License-Identifier: Apache-2.0

#if Hummingbird
import DispatchAIO
import Foundation
import Hummingbird
import XCTest

@testable import DispatchAIOHummingbird

/// The plug's middleware: what Hummingbird's does, and that they do not differ.
final class FileMiddlewareTests: HummingbirdTests {
  override class var plugs: Bool { true }

  /// Both, beneath two paths, give the same answers, at first and once the file is kept open.
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
    let head = try await served.curl("/1/a.jpg", "--head").fields
    let tag = try XCTUnwrap(head["etag"])
    let date = try XCTUnwrap(head["last-modified"])
    for path in [
      "/a.jpg", "/sub/b.odd", "/c%20d", "/empty.txt", "/large", "/", "", "/sub/", "/sub", "/none",
      "//a.jpg", "/a.jpg?x=1", "/..dots", "/../a.jpg", "/a.jpg/", "/%2e%2e/a.jpg",
    ] {
      try await compare(served, path, [])
    }
    for range in [
      "0-0", "1-4096", "100-", "-100", "4999-4999", "4000-9999", "5000-", "5000-6000", "9-5", "x",
      "1-2,4-5", "0-99999999999999999999", "0-999999999999999999", "+1-2", " 1-2",
    ] {
      for path in ["/a.jpg", "/empty.txt"] {
        try await compare(served, path, ["-H", "Range: bytes=\(range)"])
      }
    }
    for fields in [
      ["If-None-Match: \(tag)"], ["If-None-Match: \"x\""], ["If-Modified-Since: \(date)"],
      ["Range: bytes=1-2", "If-Range: \(tag)"], ["Range: bytes=1-2", "If-Range: \"x\""],
      ["Range: bytes=1-2", "If-None-Match: \(tag)"], ["Range: lines=1-2"],
    ] {
      try await compare(served, "/a.jpg", fields.flatMap { ["-H", $0] })
    }
    try await compare(served, "/a.jpg", ["--head"])
    try await compare(served, "/a.jpg", ["--head", "-H", "Range: bytes=1-2"])
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
      others["location"] = others["location"]?.replacingOccurrences(of: "/2", with: "/1")
      XCTAssertEqual(fields, others, what, line: line)
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
