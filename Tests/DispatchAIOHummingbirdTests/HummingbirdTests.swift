// SPDX-License-Identifier: Apache-2.0
//
// Hummingbird's file middleware over this provider, asked by curl: what Hummingbird expects of its
// own local file system, and what that leaves open.

#if Hummingbird
import DispatchAIOHummingbird
import Foundation
import Hummingbird
import XCTest

class HummingbirdTests: XCTestCase {
  /// Whether the middleware is the plug's own.
  class var plugs: Bool { false }

  func testFile() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    try served.file("picture.jpg", Array("what it shows".utf8))
    try served.file("Picture.JPeG", [])
    let answer = try await served.curl("/picture.jpg")
    XCTAssertEqual(answer.status, 200)
    XCTAssertEqual(answer.body, Array("what it shows".utf8))
    XCTAssertEqual(answer.fields["content-type"], "image/jpeg")
    XCTAssertEqual(answer.fields["content-length"], "13")
    XCTAssertEqual(answer.fields["accept-ranges"], "bytes")
    let empty = try await served.curl("/Picture.JPeG")
    XCTAssertEqual(empty.status, 200)
    XCTAssertEqual(empty.body, [])
    XCTAssertEqual(empty.fields["content-length"], "0")
    XCTAssertEqual(empty.fields["content-type"], "image/jpeg")
    let missing = try await served.curl("/missing.jpg")
    XCTAssertEqual(missing.status, 404)
  }

  /// A file of many chunks, from the disk and from the page cache.
  func testLargeFile() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    let bytes = testBytes(1_380_001)
    try served.file("large", bytes)
    for _ in 0..<2 {
      try served.evict("large")
      for _ in 0..<2 {
        let answer = try await served.curl("/large")
        XCTAssertEqual(answer.status, 200)
        XCTAssert(answer.body == bytes)
      }
    }
  }

  func testRanges() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    let bytes = testBytes(326_000)
    try served.file("data.txt", bytes)
    for (asked, range) in [
      ("100-3999", 100..<4000), ("0-0", 0..<1), ("6000-", 6000..<326_000),
      ("325999-", 325_999..<326_000), ("4095-4096", 4095..<4097), ("0-999999999", 0..<326_000),
      ("1-9223372036854775807", 1..<326_000), ("4096-8191", 4096..<8192),
    ] {
      try served.evict("data.txt")
      let answer = try await served.curl("/data.txt", "-H", "Range: bytes=\(asked)")
      XCTAssertEqual(answer.status, 206, asked)
      XCTAssert(answer.body == Array(bytes[range]), asked)
      XCTAssertEqual(
        answer.fields["content-range"],
        "bytes \(range.lowerBound)-\(range.upperBound - 1)/326000")
      XCTAssertEqual(answer.fields["content-length"], "\(range.count)")
    }
    for asked in ["326000-", "999999999-", "9223372036854775807-"] {
      let answer = try await served.curl("/data.txt", "-H", "Range: bytes=\(asked)")
      XCTAssertEqual(answer.status, 416, asked)
      XCTAssert(answer.body.count < 200, asked)
    }
  }

  func testRangeOfEmptyFile() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    try served.file("empty", [])
    let answer = try await served.curl("/empty", "-H", "Range: bytes=0-")
    XCTAssertEqual(answer.status, 416)
    XCTAssertEqual(answer.fields["content-range"], "bytes */0")
  }

  func testConditions() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    let bytes = testBytes(16_200)
    let path = try served.file("data.txt", bytes)
    // Not of this second, in which a date tells no version from another.
    try FileManager.default.setAttributes(
      [.modificationDate: Date(timeIntervalSinceNow: -100)], ofItemAtPath: path)
    let head = try await served.curl("/data.txt", "--head")
    XCTAssertEqual(head.status, 200)
    XCTAssertEqual(head.fields["content-length"], "16200")
    let tag = try XCTUnwrap(head.fields["etag"])
    let modified = try XCTUnwrap(head.fields["last-modified"])
    for (field, status) in [
      ("If-None-Match: \(tag)", 304), ("If-None-Match: \"other\"", 200),
      ("If-Modified-Since: \(modified)", 304),
      ("If-Modified-Since: Mon, 01 Jan 2001 00:00:00 GMT", 200),
    ] {
      let answer = try await served.curl("/data.txt", "-H", field)
      XCTAssertEqual(answer.status, status, field)
      XCTAssertEqual(answer.body.count, status == 304 ? 0 : 16_200, field)
    }
    for (condition, status) in [(tag, 206), (modified, 206), ("\"other\"", 200)] {
      let answer = try await served.curl(
        "/data.txt", "-H", "Range: bytes=4000-", "-H", "If-Range: \(condition)")
      XCTAssertEqual(answer.status, status, condition)
    }
  }

  /// A file that stays open between requests is the one that its path names, however that changes.
  func testFileThatChanges() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    func expect(_ text: String?, _ step: String) async throws {
      // More than once: the file is kept open from the second time on.
      for _ in 0..<4 {
        let answer = try await served.curl("/sub/file")
        XCTAssertEqual(answer.status, text == nil ? 404 : 200, step)
        if let text { XCTAssertEqual(String(decoding: answer.body, as: UTF8.self), text, step) }
      }
    }
    let path = try served.file("sub/file", Array("first".utf8))
    try await expect("first", "made")
    let file = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
    try file.write(contentsOf: Array("other".utf8))
    try file.close()
    try await expect("other", "written to")
    XCTAssertEqual(truncate(path, 2), 0)
    try await expect("ot", "cut")
    try served.file("new", Array("replaced".utf8))
    XCTAssertEqual(rename("\(served.root)/new", path), 0)
    try await expect("replaced", "replaced")
    XCTAssertEqual(unlink(path), 0)
    try await expect(nil, "removed")
    try served.file("sub/file", Array("again".utf8))
    try await expect("again", "made again")
  }

  /// Two versions of one size within a second have different entity tags.
  func testEntityTagTellsVersionsApart() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    let path = try served.file("data", [1, 2, 3])
    var tags: [String] = []
    for nanoseconds in [1, 500_000_000] {
      let time = timespec(tv_sec: 1_700_000_000, tv_nsec: nanoseconds)
      XCTAssertEqual(utimensat(AT_FDCWD, path, [time, time], 0), 0)
      tags.append(try await served.curl("/data", "--head").fields["etag"] ?? "")
    }
    XCTAssertNotEqual(tags[0], tags[1])
  }

  func testDirectories() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    try served.file("index.html", Array("root".utf8))
    try served.file("sub/index.html", Array("sub".utf8))
    try served.file("none/file", [])
    let root = try await served.curl("/")
    XCTAssertEqual(root.body, Array("root".utf8))
    let sub = try await served.curl("/sub/")
    XCTAssertEqual(sub.body, Array("sub".utf8))
    let redirect = try await served.curl("/sub")
    XCTAssertEqual(redirect.status, 301)
    XCTAssertEqual(redirect.fields["location"], "/sub/")
    let none = try await served.curl("/none/")
    XCTAssertEqual(none.status, 404)
    let below = try await served.curl("/index.html/")
    XCTAssertEqual(below.status, 404)
  }

  // MARK: What is not served

  /// Nothing outside of the directory is served, and nothing that is no file.
  func testBounds() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    try served.file("../secret", Array("secret".utf8))
    try served.file("../outside/secret", Array("secret".utf8))
    try served.file("inside", Array("inside".utf8))
    try served.file(".aio-1", Array("half".utf8))
    let root = served.root
    for (link, target) in [
      ("good", "inside"), ("absolute", "\(root)/../secret"), ("up", "../secret"),
      ("directory", "../outside"), ("loop", "loop"), ("passwd", "/etc/passwd"),
    ] {
      try FileManager.default.createSymbolicLink(
        atPath: "\(root)/\(link)", withDestinationPath: target)
    }
    XCTAssertEqual(mkfifo("\(root)/pipe", 0o600), 0)
    let good = try await served.curl("/good")
    XCTAssertEqual(good.body, Array("inside".utf8))
    for path in [
      "/absolute", "/up", "/directory/secret", "/directory/", "/loop", "/passwd", "/pipe",
      "//etc/passwd", "/inside%00.jpg", "/%00", "/inside/file", "/.aio-1",
      "/\(String(repeating: "n", count: 300))", "/proc/self/fd/0",
    ] {
      let answer = try await served.curl(path)
      XCTAssertEqual(answer.status, 404, path)
      XCTAssertFalse(String(decoding: answer.body, as: UTF8.self).contains("secret"), path)
    }
    for path in ["/../secret", "/%2e%2e/secret", "/sub/..%2f..%2fsecret"] {
      let answer = try await served.curl(path)
      XCTAssertEqual(answer.status, 400, path)
    }
  }

  /// A file without permission to read is not found, as with the local file system.
  func testPermission() async throws {
    try XCTSkipIf(geteuid() == 0, "root reads every file")
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    let path = try served.file("private", [1])
    chmod(path, 0)
    let answer = try await served.curl("/private")
    XCTAssertEqual(answer.status, 404)
  }

  /// A file that shrinks after its head was sent ends the connection; the server goes on.
  func testFileThatShrinks() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    // More than the sockets' buffers hold.
    let path = try served.file("data", [])
    XCTAssertEqual(truncate(path, 32 << 20), 0)
    // The client takes a little, waits until the file has been cut, and takes the rest.
    let client = try RawClient(served.port)
    try client.send("GET /data HTTP/1.1\r\nHost: h\r\n\r\n")
    let first = try await client.receive(1000)
    XCTAssert(first.starts(with: Array("HTTP/1.1 200".utf8)))
    XCTAssertEqual(truncate(path, 1 << 20), 0)
    let rest = try await client.receive(.max)
    XCTAssertLessThan(first.count + rest.count, 32 << 20)
    let after = try await served.curl("/data")
    XCTAssertEqual(after.body.count, 1 << 20)
  }

  /// Small answers from the page cache make no request of the context.
  func testCachedAnswersMakeNoRequest() async throws {
    let served = try await ServedDirectory.start(self, plugs: Self.plugs)
    try served.file("data", testBytes(300_000))
    for _ in 0..<2 { _ = try await served.curl("/data") }
    let before = served.context.statistics.accepted
    for _ in 0..<3 {
      let answer = try await served.curl("/data", "-H", "Range: bytes=5-100004")
      XCTAssertEqual(answer.body.count, 100_000)
      let all = try await served.curl("/data")
      XCTAssertEqual(all.body.count, 300_000)
    }
    XCTAssertEqual(served.context.statistics.accepted, before)
  }
}
#endif
