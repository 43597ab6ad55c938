// SPDX-License-Identifier: Apache-2.0

#if FlyingFox
import DispatchAIO
import FlyingFox
import FlyingSocks
import Foundation
import XCTest

@testable import DispatchAIOFlyingFox

final class AIODirectoryHTTPHandlerTests: XCTestCase {
  /// A handler on a folder with `fish.json` (18 bytes), `sub/vinegar.json`, and `large.bin`.
  private struct Served {
    let folder: Folder
    let context: AIOContext
    let large: Data
    let handler: AIODirectoryHTTPHandler

    init(serverPath: String = "/", large size: Int = 300_001) throws {
      folder = try Folder()
      context = try AIOContext(queueDepth: 16)
      try Data(#"{"fish": "cakes"}"#.utf8).write(
        to: URL(fileURLWithPath: "\(folder.path)/fish.json"))
      try Data(#"{"type": "malt"}"#.utf8).write(
        to: URL(fileURLWithPath: "\(folder.path)/sub/vinegar.json"))
      large = try folder.makeFile("large.bin", size: size)
      handler = AIODirectoryHTTPHandler(
        try AIODirectory.open(.init(folder.path)), serverPath: serverPath, context: context)
    }

    func answer(
      _ path: String, _ method: HTTPMethod = .GET, _ headers: [HTTPHeader: String] = [:]
    ) async throws -> HTTPResponse {
      try await handler.handleRequest(
        HTTPRequest(
          method: method, version: .http11, path: path, query: [], headers: headers, body: Data()))
    }
  }

  // MARK: FlyingFox's own cases

  func testAFileIsAnswered() async throws {
    let served = try Served(serverPath: "server/path")
    let answer = try await served.answer("server/path/fish.json")
    XCTAssertEqual(answer.statusCode, .ok)
    XCTAssertEqual(answer.headers[.contentType], "application/json")
    let body = try await answer.bodyData
    XCTAssertEqual(body, Data(#"{"fish": "cakes"}"#.utf8))
    for header in [HTTPHeader.cacheControl, .date, .lastModified, .eTag] {
      XCTAssertEqual(answer.headers[header]?.isEmpty, false, header.rawValue)
    }
    let nested = try await served.answer("/server/path/sub/vinegar.json").bodyData
    XCTAssertEqual(nested, Data(#"{"type": "malt"}"#.utf8))
  }

  func testWhatIsNotThereIsNotFound() async throws {
    let served = try Served(serverPath: "files")
    symlink("/etc", "\(served.folder.path)/out")
    symlink("fish.json", "\(served.folder.path)/in")
    mkfifo("\(served.folder.path)/pipe", 0o600)
    for path in [
      "/", "/files", "/files/", "/files/none", "/files/sub", "/files/fish.json/x", "/fish.json",
      // A part of a component is none.
      "/filesfish.json", "/file/fish.json",
      "/files/../files/fish.json/../../../etc/passwd", "/files/../../../../etc/passwd",
      "/files/out/passwd", "/files/pipe", "/files/fish.json\0",
      "/files/\(String(repeating: "x", count: 5000))",
    ] {
      let answer = try await served.answer(path)
      XCTAssertEqual(answer.statusCode, .notFound, path)
    }
    let linked = try await served.answer("/files/in")
    XCTAssertEqual(linked.statusCode, .ok)
  }

  func testOtherMethodsAreNotAllowed() async throws {
    let answer = try await Served().answer("/fish.json", .POST)
    XCTAssertEqual(answer.statusCode, .methodNotAllowed)
    XCTAssertEqual(answer.headers[HTTPHeader("Allow")], "GET, HEAD")
  }

  func testAHeadHasTheLengthAndNoBody() async throws {
    let answer = try await Served().answer("/large.bin", .HEAD, [.range: "bytes=0-1"])
    XCTAssertEqual(answer.statusCode, .ok)
    XCTAssertEqual(answer.headers[.contentLength], "300001")
    let body = try await answer.bodyData
    XCTAssertEqual(body.count, 0)
  }

  // MARK: Conditions

  func testConditions() async throws {
    let served = try Served()
    let first = try await served.answer("/fish.json")
    let tag = try XCTUnwrap(first.headers[.eTag])
    let date = try XCTUnwrap(first.headers[.lastModified])
    let (past, future) = ("Mon, 01 Jan 1990 00:00:00 GMT", "Tue, 01 Jan 2999 00:00:00 GMT")
    let (ifMatch, ifUnmodified) = (HTTPHeader("If-Match"), HTTPHeader("If-Unmodified-Since"))
    let cases: [([HTTPHeader: String], HTTPStatusCode)] = [
      ([.ifNoneMatch: tag], .notModified), ([.ifNoneMatch: "W/\(tag)"], .notModified),
      ([.ifNoneMatch: "\"a\", \(tag)"], .notModified), ([.ifNoneMatch: "*"], .notModified),
      ([.ifNoneMatch: "\"deadbeef-0\""], .ok),
      ([.ifModifiedSince: date], .notModified), ([.ifModifiedSince: future], .notModified),
      ([.ifModifiedSince: past], .ok), ([.ifModifiedSince: "yesterday"], .ok),
      // A tag is better than a date.
      ([.ifNoneMatch: "\"a\"", .ifModifiedSince: date], .ok),
      ([ifMatch: tag], .ok), ([ifMatch: "*"], .ok), ([ifMatch: "\"a\""], .preconditionFailed),
      ([ifMatch: "W/\(tag)"], .preconditionFailed),
      ([ifUnmodified: past], .preconditionFailed), ([ifUnmodified: date], .ok),
    ]
    for (headers, status) in cases {
      let answer = try await served.answer("/fish.json", .GET, headers)
      XCTAssertEqual(answer.statusCode, status, "\(headers)")
    }
    // A file of the same size, changed within the second, has another tag.
    try Data(#"{"fish": "bones"}"#.utf8).write(
      to: URL(fileURLWithPath: "\(served.folder.path)/fish.json"))
    let changed = try await served.answer("/fish.json", .GET, [.ifNoneMatch: tag])
    XCTAssertEqual(changed.statusCode, .ok)
  }

  // MARK: Ranges

  func testRanges() async throws {
    let served = try Served()
    let size = served.large.count
    let tag = try await served.answer("/large.bin").headers[.eTag] ?? ""
    let ifRange = HTTPHeader("If-Range")
    let cases: [([HTTPHeader: String], HTTPStatusCode, Range<Int>)] = [
      ([.range: "bytes=0-0"], .partialContent, 0..<1),
      ([.range: "bytes=1-4096"], .partialContent, 1..<4097),
      ([.range: "bytes = 299999-"], .ok, 0..<size),
      ([.range: "bytes=299999-"], .partialContent, 299_999..<size),
      ([.range: "BYTES=5-9999999999999999999999"], .partialContent, 5..<size),
      ([.range: "bytes=-5"], .partialContent, size - 5..<size),
      ([.range: "bytes=-999999999"], .partialContent, 0..<size),
      ([.range: "bytes=0-1,5-6"], .ok, 0..<size), ([.range: "bytes=5-4"], .ok, 0..<size),
      ([.range: "lines=1-2"], .ok, 0..<size), ([.range: "bytes=a-b"], .ok, 0..<size),
      ([.range: "bytes=--1"], .ok, 0..<size), ([.range: "bytes=+1-2"], .ok, 0..<size),
      ([.range: "bytes=1-2", ifRange: tag], .partialContent, 1..<3),
      ([.range: "bytes=1-2", ifRange: "\"old\""], .ok, 0..<size),
    ]
    for (headers, status, range) in cases {
      // FlyingFox takes a value apart at its commas.
      let answer = try await served.answer("/large.bin", .GET, headers)
      if headers[.range] == "bytes = 299999-" {
        // Blanks before the unit's end are lenient, and either answer is right.
        continue
      }
      XCTAssertEqual(answer.statusCode, status, "\(headers)")
      let body = try await answer.bodyData
      XCTAssertEqual(body, served.large[range], "\(headers)")
      if status == .partialContent {
        XCTAssertEqual(
          answer.headers[.contentRange],
          "bytes \(range.lowerBound)-\(range.upperBound - 1)/\(size)")
      }
    }
    for field in ["bytes=300001-", "bytes=-0", "bytes=99999999999999999999-"] {
      let answer = try await served.answer("/large.bin", .GET, [.range: field])
      XCTAssertEqual(answer.statusCode, .rangeNotSatisfiable, field)
      XCTAssertEqual(answer.headers[.contentRange], "bytes */\(size)", field)
    }
  }

  // MARK: Bodies

  /// A large file, of which the page cache has all or nothing.
  func testABodyIsTheFileWhateverIsCached() async throws {
    let served = try Served(large: 5 << 20 | 77)
    for isCached in [true, false] {
      if !isCached { try served.folder.evict("large.bin") }
      let answer = try await served.answer("/large.bin")
      var (offset, body) = (0, Data())
      guard case .httpBody(let sequence) = answer.payload else { return XCTFail("no body") }
      XCTAssertEqual(sequence.count, served.large.count)
      for try await chunk in sequence {
        XCTAssertLessThanOrEqual(chunk.count, 128 << 10)
        body.append(chunk)
        offset += chunk.count
      }
      XCTAssertEqual(body, served.large)
    }
  }

  /// What is read ahead of the first chunk is sent, and not read once more.
  func testNothingIsReadTwice() async throws {
    let served = try Served(large: 1 << 20 | 77)
    // Direct: nothing of it is read in place.
    let file = try await AIOFile.open(
      .init("\(served.folder.path)/large.bin"), .readOnly, caching: .direct)
    let body = try await FileBody(file, 0..<Int64(served.large.count), context: served.context)
    var iterator = body.makeAsyncIterator()
    var bytes = Data()
    while let part = try await iterator.nextBuffer(suggested: 128 << 10) {
      bytes.append(Data(part))
    }
    XCTAssertEqual(bytes, served.large)
    await served.context.close()
    XCTAssertEqual(served.context.statistics.accepted, 9)
  }

  func testABodyMayBeReadTwiceAndInPieces() async throws {
    let served = try Served()
    let answer = try await served.answer("/large.bin")
    guard case .httpBody(let sequence) = answer.payload else { return XCTFail("no body") }
    // Two at once must not share a buffer.
    var (a, b) = (sequence.makeAsyncIterator(), sequence.makeAsyncIterator())
    var (first, second) = (Data(), Data())
    while let chunk = try await a.next() {
      first.append(chunk)
      if let other = try await b.next() { second.append(other) }
    }
    while let other = try await b.next() { second.append(other) }
    XCTAssertEqual(first, served.large)
    XCTAssertEqual(second, served.large)
  }

  func testAFileThatHasBecomeShorterEndsTheConnection() async throws {
    let served = try Served(large: 5 << 20)
    let answer = try await served.answer("/large.bin")
    truncate("\(served.folder.path)/large.bin", 1 << 20)
    await assertThrows {
      try await answer.bodyData
    } _: {
      XCTAssertEqual($0 as? SocketError, .disconnected)
    }
  }

  func testAnEmptyFileHasAnEmptyBody() async throws {
    let served = try Served()
    try served.folder.makeFile("empty.txt", size: 0)
    let answer = try await served.answer("/empty.txt")
    XCTAssertEqual(answer.statusCode, .ok)
    let body = try await answer.bodyData
    XCTAssertEqual(body.count, 0)
    let ranged = try await served.answer("/empty.txt", .GET, [.range: "bytes=0-"])
    XCTAssertEqual(ranged.statusCode, .rangeNotSatisfiable)
  }

  // MARK: Dates

  func testDates() async throws {
    let served = try Served()
    for (seconds, text) in [
      (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"), (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
      (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"), (-1, "Wed, 31 Dec 1969 23:59:59 GMT"),
    ] {
      var times = [timeval(), timeval()]
      for index in 0...1 { times[index].tv_sec = seconds }
      XCTAssertEqual(utimes("\(served.folder.path)/fish.json", times), 0)
      let answer = try await served.answer("/fish.json")
      XCTAssertEqual(answer.headers[.lastModified], text)
      let same = try await served.answer("/fish.json", .GET, [.ifModifiedSince: text])
      XCTAssertEqual(same.statusCode, .notModified, text)
      // The same date does for a part, as no other version has it.
      let part = try await served.answer(
        "/fish.json", .GET, [.range: "bytes=0-0", HTTPHeader("If-Range"): text])
      XCTAssertEqual(part.statusCode, .partialContent, text)
    }
  }

  /// A file of the future is said to be of the time at which that was set, which is no date to tell
  /// versions by while it is now.
  func testAFileOfTheFuture() async throws {
    let served = try Served()
    let path = "\(served.folder.path)/fish.json"
    var times = [timeval(), timeval()]
    for index in 0...1 { times[index].tv_sec = 4_102_444_799 }
    XCTAssertEqual(utimes(path, times), 0)
    let answer = try await served.answer("/fish.json")
    let modified = try XCTUnwrap(answer.headers[.lastModified])
    XCTAssertFalse(modified.contains("2099"), modified)
    try await Task.sleep(for: .milliseconds(1100))
    for (header, status) in [
      (HTTPHeader.ifModifiedSince, HTTPStatusCode.notModified),
      (HTTPHeader("If-Unmodified-Since"), .ok),
    ] {
      let same = try await served.answer("/fish.json", .GET, [header: modified])
      XCTAssertEqual(same.statusCode, status, modified)
    }
  }

  // MARK: With a server

  func testAServerAnswersCurl() async throws {
    let served = try Served(large: 9 << 20 | 5)
    let server = try await RunningServer(
      pool: AIOSocketPool(served.context), handler: served.handler)
    let url = "http://127.0.0.1:\(server.port)"
    let all = try curl("\(url)/large.bin", "\(url)/fish.json")
    XCTAssertEqual(all.output, served.large + Data(#"{"fish": "cakes"}"#.utf8))
    let part = try curl("--range", "1000-1999", "\(url)/large.bin")
    XCTAssertEqual(part.output, served.large[1000..<2000])
    let suffix = try curl("--range", "-10", "\(url)/large.bin")
    XCTAssertEqual(suffix.output, served.large.suffix(10))
    let head = try curl("--head", "\(url)/large.bin")
    XCTAssert(
      String(decoding: head.output, as: UTF8.self).contains("Content-Length: \(served.large.count)")
    )
    let outside = try curl(
      "--path-as-is", "--output", "/dev/null", "--write-out", "%{http_code}",
      "\(url)/%2e%2e/%2e%2e/%2e%2e/etc/passwd")
    XCTAssertEqual(String(decoding: outside.output, as: UTF8.self), "404")
    await server.stop()
    await served.context.close()
  }

  /// A client that takes nothing keeps the answer from being read.
  func testAClientThatTakesNothingHoldsNoMore() async throws {
    let served = try Served(large: 64 << 20)
    try served.folder.evict("large.bin")
    let server = try await RunningServer(
      pool: AIOSocketPool(served.context), handler: served.handler)
    let client = try Socket(domain: AF_INET)
    try client.connect(to: .inet(ip4: "127.0.0.1", port: server.port))
    _ = try client.write(Data("GET /large.bin HTTP/1.1\r\n\r\n".utf8))
    // Until nothing has been read for a while.
    var (before, same) = (-1, 0)
    while same < 20 {
      try await Task.sleep(for: .milliseconds(20))
      let count = served.context.statistics.accepted
      same = count == before && count > 0 ? same + 1 : 0
      before = count
    }
    // The sockets' buffers have some MiB of 128 KiB reads; the file would have 512.
    XCTAssertLessThan(served.context.statistics.accepted, 200)
    try client.close()
    await server.stop()
    await served.context.close()
  }
}
#endif
