// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPRules
import SystemPackage
import XCTest

/// aio-httpd as a process: what it answers.
final class FileServerTests: XCTestCase {
  /// Whole files of every size around those at which the way of sending changes, from the page
  /// cache, from the disk, and past the page cache.
  func testWholeFilesByEachWay() throws {
    let directory = try temporaryDirectory()
    for caching in ["automatic", "buffered", "direct"] {
      let server = try HTTPServer(directory, ["--caching", caching])
      let client = try HTTPClient(server)
      for size in [0, 1, 511, 4096, 16384, 16385, 24 << 10, 131_071, 131_072, 131_073, 1_000_003] {
        let bytes = pattern(size)
        try server.make("file", bytes)
        for isCold in [false, true] {
          if isCold {
            // A file that has not been sent: the network may hold the pages of the other one.
            try server.make("cold", bytes)
            let file = try FileDescriptor.open(server.root.appending("cold"), .readOnly)
            try file.closeAfter { try evict(file.rawValue, size: size) }
          }
          let answer = try client.get(isCold ? "/cold" : "/file")
          XCTAssertEqual(answer.status, 200)
          XCTAssertTrue(answer.body == bytes, "\(caching), \(size) bytes, cold: \(isCold)")
          XCTAssertEqual(answer.fields["content-length"], "\(size)")
        }
        guard size > 600 else { continue }
        let part = try client.get("/file", "Range: bytes=511-\(size - 2)")
        XCTAssertEqual(part.status, 206)
        XCTAssertTrue(part.body == Array(bytes[511..<size - 1]), "\(caching), \(size) bytes")
        XCTAssertEqual(part.fields["content-range"], "bytes 511-\(size - 2)/\(size)")
      }
    }
  }

  func testFieldsAndConditions() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    try server.make("a.txt", "hello")
    let client = try HTTPClient(server)
    let answer = try client.get("/a.txt")
    XCTAssertEqual(answer.text, "hello")
    XCTAssertEqual(answer.fields["content-type"], "text/plain; charset=utf-8")
    XCTAssertEqual(answer.fields["accept-ranges"], "bytes")
    let (tag, modified) = (
      try XCTUnwrap(answer.fields["etag"]), try XCTUnwrap(answer.fields["last-modified"])
    )
    let head = try client.get("/a.txt", method: "HEAD")
    XCTAssertEqual(head.fields["content-length"], "5")
    XCTAssertEqual(head.fields["etag"], tag)
    for (field, status) in [
      ("If-None-Match: \(tag)", 304), ("If-None-Match: \"x\"", 200),
      ("If-Modified-Since: \(modified)", 304), ("If-Match: \"x\"", 412),
      ("If-Match: \(tag)", 200), ("If-Unmodified-Since: \(modified)", 200),
    ] {
      let answer = try client.get("/a.txt", field)
      XCTAssertEqual(answer.status, status, field)
      if status == 304 {
        XCTAssertEqual(answer.fields["etag"], tag)
        XCTAssertNil(answer.fields["content-length"])
      }
    }
    for (field, status) in [("If-Range: \(tag)", 206), ("If-Range: \"x\"", 200)] {
      let answer = try client.get("/a.txt", "Range: bytes=1-2", field)
      XCTAssertEqual(answer.status, status, field)
      XCTAssertEqual(answer.text, status == 206 ? "el" : "hello", field)
    }
    let beyond = try client.get("/a.txt", "Range: bytes=5-")
    XCTAssertEqual(beyond.status, 416)
    XCTAssertEqual(beyond.fields["content-range"], "bytes */5")
    for method in ["POST", "DELETE", "PATCH"] {
      let answer = try client.get("/a.txt", method: method)
      XCTAssertEqual(answer.status, 405)
      XCTAssertEqual(answer.fields["allow"], "GET, HEAD, OPTIONS")
    }
    XCTAssertEqual(try client.get("/a.txt", method: "BREW").status, 501)
    XCTAssertEqual(try client.get("/a.txt", method: "OPTIONS").status, 204)
  }

  /// Sets when a file was last modified, in seconds since 1970.
  private func setModified(_ path: FilePath, _ seconds: Int) {
    let times = [timespec(), timespec(tv_sec: seconds, tv_nsec: 0)]
    XCTAssertEqual(utimensat(AT_FDCWD, path.string, times, 0), 0)
  }

  /// Goal: the date that was sent is the one that conditions are compared with, also that of a file
  /// whose time is in the future, and after a second has passed.
  func testConditionsOfAFileOfTheFuture() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable"])
    try server.make("a.txt", "hello")
    setModified(server.root.appending("a.txt"), time(nil) + 1_000_000)
    let client = try HTTPClient(server)
    let first = try client.get("/a.txt")
    let modified = try XCTUnwrap(first.fields["last-modified"])
    let times = try ["last-modified", "date"].map { name in
      try XCTUnwrap(HTTPDate.parse(Array(XCTUnwrap(first.fields[name]).utf8).span))
    }
    XCTAssertLessThanOrEqual(times[0], times[1])
    for _ in 0..<2 {
      XCTAssertEqual(try client.get("/a.txt").fields["last-modified"], modified)
      XCTAssertEqual(try client.get("/a.txt", "If-Unmodified-Since: \(modified)").status, 200)
      XCTAssertEqual(try client.get("/a.txt", "If-Modified-Since: \(modified)").status, 304)
      // In another second, too.
      let second = time(nil)
      XCTAssertTrue(eventually { time(nil) > second })
    }
    try client.send(
      """
      PUT /a.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nIf-Unmodified-Since: \(modified)\r\n\
      \r\nx
      """)
    XCTAssertEqual(try client.answer().status, 204)
  }

  /// A date does for a part only if no other version may have the same.
  func testARangeByDate() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    try server.make("a.txt", "hello")
    let client = try HTTPClient(server)
    for (age, status) in [(-1_000_000, 200), (1_000_000, 206)] {
      setModified(server.root.appending("a.txt"), time(nil) - age)
      let modified = try XCTUnwrap(try client.get("/a.txt").fields["last-modified"])
      let part = try client.get("/a.txt", "Range: bytes=1-2", "If-Range: \(modified)")
      // The time of the first is that of its last change, which may be in the second before.
      XCTAssertTrue(part.status == status || age < 0 && part.fields["date"] != modified, modified)
      XCTAssertEqual(part.text, part.status == 206 ? "el" : "hello")
    }
  }

  /// What is asked for again is kept open; whatever becomes of the file, the next answer has it.
  func testAFileThatChangesIsServedAsItIs() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    let client = try HTTPClient(server)
    for round in 0..<20 {
      // Written over in place, replaced, made longer.
      let text = "round \(round)" + String(repeating: "x", count: round % 3)
      if round % 2 == 0 {
        let file = try FileDescriptor.open(
          server.root.appending("a.bin"), .writeOnly, options: [.create, .truncate],
          permissions: .ownerReadWrite)
        try file.closeAfter { _ = try file.writeAll(text.utf8) }
      } else {
        try server.make("b.bin", text)
        rename(server.root.appending("b.bin").string, server.root.appending("a.bin").string)
      }
      for _ in 0..<4 { XCTAssertEqual(try client.get("/a.bin").text, text) }
    }
    unlink(server.root.appending("a.bin").string)
    XCTAssertEqual(try client.get("/a.bin").status, 404)
    // And nothing else stays open: the kept one is closed once it is found to be gone.
    try server.make("a.bin", "again")
    XCTAssertEqual(try client.get("/a.bin").text, "again")
  }

  func testSeveralRanges() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    let bytes = pattern(400_000)
    try server.make("a.bin", bytes)
    let answer = try HTTPClient(server).get("/a.bin", "Range: bytes=0-9,100-200000,-5")
    XCTAssertEqual(answer.status, 206)
    let type = try XCTUnwrap(answer.fields["content-type"])
    let boundary = try XCTUnwrap(type.components(separatedBy: "boundary=").last)
    var expected: [UInt8] = []
    for range in [0..<10, 100..<200_001, 399_995..<400_000] {
      expected +=
        """
        \r\n--\(boundary)\r\nContent-Type: application/octet-stream\r\n\
        Content-Range: bytes \(range.lowerBound)-\(range.upperBound - 1)/400000\r\n\r\n
        """.utf8
      expected += bytes[range]
    }
    expected += "\r\n--\(boundary)--\r\n".utf8
    XCTAssertTrue(answer.body == expected)
  }

  func testDirectories() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    try server.make("with/index.html", "<p>index")
    try server.make("without/<b>&\"'.txt", "x")
    try server.make("without/.hidden", "x")
    let client = try HTTPClient(server)
    XCTAssertEqual(try client.get("/with/").text, "<p>index")
    XCTAssertEqual(try client.get("/with/").fields["content-type"], "text/html; charset=utf-8")
    let moved = try client.get("/with?a=b")
    XCTAssertEqual(moved.status, 301)
    XCTAssertEqual(moved.fields["location"], "/with/?a=b")
    XCTAssertEqual(try client.get("/with?a=ä").fields["location"], "/with/?a=%C3%A4")
    // To nobody else's host.
    XCTAssertEqual(try client.get("//with").fields["location"], "/with/")
    let list = try client.get("/without/").text
    XCTAssertTrue(list.contains("&lt;b&gt;&amp;&quot;&#39;.txt</a>"), list)
    XCTAssertTrue(list.contains("href=\"./%3Cb%3E%26%22%27.txt\""), list)
    XCTAssertFalse(list.contains("hidden"), list)
    XCTAssertEqual(try client.get("/with/index.html/").status, 404)
    let other = try HTTPServer(directory, ["--no-listing"])
    let strict = try HTTPClient(other)
    XCTAssertEqual(try strict.get("/without/").status, 403)
  }

  /// What a link leads to is listed, and a link that leads to nothing that is served is not.
  func testListedLinks() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    try server.make("sub/file", "hello")
    try server.make("other/file", "hello, world")
    for name in ["", "sub/"] {
      for (link, target) in [
        ("up", "\(name.isEmpty ? "" : "../")other/file"),
        ("dir", name.isEmpty ? "sub" : "../other"),
        ("dangling", "none"), ("loop", "loop"), ("leaving", "/etc/passwd"),
        ("outside", "../../log"), ("null", "/dev/null"),
      ] {
        XCTAssertEqual(symlink(target, server.root.appending(name + link).string), 0)
      }
    }
    let client = try HTTPClient(server)
    for path in ["/", "/sub/"] {
      let list = try client.get(path).text
      let links = list.split(separator: "\n").compactMap { row in
        row.split(separator: "\"").dropFirst().first.map(String.init)
      }
      let served = path == "/" ? ["dir/", "other/", "sub/", "up"] : ["dir/", "file", "up"]
      XCTAssertEqual(links.filter { $0.hasPrefix("./") }, served.map { "./\($0)" }, list)
      for name in served { XCTAssertEqual(try client.get(path + name).status, 200, name) }
      let row = list.split(separator: "\n").first { $0.contains("./up") }
      XCTAssertEqual(row?.hasSuffix("<td>12</td></tr>"), true, list)
    }
  }

  /// Nothing outside of the directory, nothing that is no file, nothing hidden.
  func testPathAttacks() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable"])
    _ = try directory.makeFile("secret", size: 6)
    try server.make("dir/a", "a")
    try server.make(".hidden", "x")
    let root = server.root
    XCTAssertEqual(mkfifo(root.appending("pipe").string, 0o666), 0)
    for (name, target) in [
      ("inside", "dir/a"), ("up", "../secret"), ("absolute", directory.path.string + "/secret"),
      ("passwd", "/etc/passwd"), ("dirlink", "dir"), ("parent", ".."), ("loop", "loop"),
      ("proc", "/proc/self/root/etc/passwd"), ("around", "dir/../../www/dir/a"),
      ("null", "/dev/null"),
    ] {
      XCTAssertEqual(symlink(target, root.appending(name).string), 0)
    }
    let client = try HTTPClient(server)
    for (target, status) in [
      ("/inside", 200), ("/dirlink/a", 200), ("/up", 404), ("/absolute", 404), ("/passwd", 404),
      ("/parent/secret", 404), ("/loop", 404), ("/proc", 404), ("/around", 404), ("/null", 404),
      ("/pipe", 404), ("/.hidden", 404), ("/../secret", 400), ("/dir/../../secret", 400),
      ("/%2e%2e/secret", 400), ("/dir/%2e%2e/%2e%2e/secret", 400), ("/..%2fsecret", 404),
      ("/..%5csecret", 404), ("/a%00b", 400), ("/dir/a%00.txt", 400), ("//etc/passwd", 404),
      ("http://x/../secret", 400), ("/%c0%ae%c0%ae/secret", 404), ("/dir/a/", 404),
      ("/dir/a/b", 404),
      ("/" + String(repeating: "a", count: 300), 414),
      ("/" + String(repeating: "a/", count: 3000), 414),
    ] {
      XCTAssertEqual(try client.get(target).status, status, target)
    }
    // Nor written to.
    for (target, status) in [
      ("/up", 409), ("/parent/new", 404), ("/pipe", 409), ("/dir", 409), ("/.new", 404),
      ("/../new", 400), ("/none/new", 409), ("/dir/", 409), ("/absolute", 409),
      ("/" + String(repeating: "a", count: 300), 414),
    ] {
      let client = try HTTPClient(server)
      try client.send("PUT \(target) HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
      XCTAssertEqual(try client.answer().status, status, target)
    }
    XCTAssertEqual(try directory.contents("secret"), [0, 1, 2, 3, 4, 5])
    XCTAssertFalse(FileManager.default.fileExists(atPath: directory.path.appending("new").string))
  }

  /// Names are bytes: what is not UTF-8 is served, listed and uploaded under its own name.
  func testNamesThatAreNotText() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable"])
    func path(_ bytes: [UInt8]) -> FilePath {
      server.root.appending(
        FilePath.Component(platformString: bytes.map { CChar(bitPattern: $0) } + [0])!)
    }
    let file = try FileDescriptor.open(
      path([0x6e, 0xfe, 0x78]), .writeOnly, options: .create, permissions: .ownerReadWrite)
    try file.closeAfter { _ = try file.writeAll("hello".utf8) }
    let client = try HTTPClient(server)
    XCTAssertEqual(try client.get("/n%FEx").text, "hello")
    XCTAssertEqual(try client.get("/n%EF%BF%BDx").status, 404)
    XCTAssertTrue(try client.get("/").text.contains("href=\"./n%FEx\""))
    try client.send("PUT /%ff%fe HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
    XCTAssertEqual(try client.answer().status, 201)
    XCTAssertEqual(path([0xff, 0xfe]).withPlatformString { access($0, F_OK) }, 0)
    XCTAssertEqual(try client.get("/%ff%fe").text, "hi")
    XCTAssertEqual(server.stop(), 0)
  }

  func testPrecompressed() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    try server.make("a.html", "plain")
    try server.make("a.html.gz", "gz")
    try server.make("a.html.br", "br")
    try server.make("a.png", "plain")
    try server.make("a.png.gz", "gz")
    try server.make("only.html.gz", "gz")
    let client = try HTTPClient(server)
    for (field, text, coding) in [
      ("X: y", "plain", nil), ("Accept-Encoding: gzip", "gz", "gzip"),
      ("Accept-Encoding: gzip, br", "br", "br"), ("Accept-Encoding: gzip, br;q=0.1", "gz", "gzip"),
      ("Accept-Encoding: zstd", "plain", nil), ("Accept-Encoding: *;q=0", "plain", nil),
    ] as [(String, String, String?)] {
      let answer = try client.get("/a.html", field)
      XCTAssertEqual(answer.text, text, field)
      XCTAssertEqual(answer.fields["content-encoding"], coding, field)
      XCTAssertEqual(answer.fields["vary"], "Accept-Encoding")
      XCTAssertEqual(answer.fields["content-type"], "text/html; charset=utf-8")
    }
    XCTAssertEqual(try client.get("/a.png", "Accept-Encoding: gzip").text, "plain")
    XCTAssertEqual(try client.get("/only.html", "Accept-Encoding: gzip").status, 404)
  }

  /// Goal: what was uploaded, or written by hand, is what everybody gets from then on, though there
  /// is a compressed file of what was before; and that again once it has been made anew.
  func testAnOutdatedCompressedFile() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable"])
    try server.make("a.html", "first")
    try server.make("a.html.gz", "first, compressed")
    let client = try HTTPClient(server)
    func compressed() throws -> String { try client.get("/a.html", "Accept-Encoding: gzip").text }
    XCTAssertEqual(try compressed(), "first, compressed")
    // As `gzip -k` leaves the two: of the same time.
    let times = [timespec(tv_sec: 1000, tv_nsec: 7), timespec(tv_sec: 1000, tv_nsec: 7)]
    for name in ["a.html", "a.html.gz"] {
      utimensat(AT_FDCWD, server.root.appending(name).string, times, 0)
    }
    XCTAssertEqual(try compressed(), "first, compressed")
    try client.send("PUT /a.html HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nsecond")
    XCTAssertEqual(try client.answer().status, 204)
    XCTAssertEqual(try compressed(), "second")
    try server.make("a.html.gz", "second, compressed")
    XCTAssertEqual(try compressed(), "second, compressed")
  }

  // MARK: Uploads

  func testUploads() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable", "--max-upload", "1M"])
    let client = try HTTPClient(server)
    for size in [0, 1, 131_072, 131_073, 700_000] {
      let bytes = pattern(size)
      try client.send("PUT /up HTTP/1.1\r\nHost: a\r\nContent-Length: \(size)\r\n\r\n")
      try client.send(bytes)
      XCTAssertEqual(try client.answer().status, size == 0 ? 201 : 204)
      XCTAssertTrue(try server.contents("up") == bytes)
      XCTAssertTrue(try client.get("/up").body == bytes)
    }
    // In chunks, the next request right behind.
    try client.send(
      "PUT /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n"
        + "GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
    XCTAssertEqual(try client.answer().status, 204)
    XCTAssertEqual(try client.answer().text, "abcde")
    // Conditions.
    for (field, status) in [
      ("If-None-Match: *", 412), ("If-Match: \"x\"", 412), ("If-Match: *", 204),
      ("Content-Range: bytes 0-1/5", 400),
    ] {
      let client = try HTTPClient(server)
      try client.send("PUT /up HTTP/1.1\r\nHost: a\r\n\(field)\r\nContent-Length: 2\r\n\r\nxy")
      XCTAssertEqual(try client.answer().status, status, field)
    }
    XCTAssertEqual(try server.contents("up"), Array("xy".utf8))
    // Too large, said or found out; without a length; not chunks.
    for (head, body, status) in [
      ("Content-Length: 1048577", "x", 413), ("X: y", "", 411),
      ("Transfer-Encoding: chunked", "zz\r\n", 400),
      ("Transfer-Encoding: chunked", "110000\r\n" + String(repeating: "x", count: 0x110000), 413),
    ] {
      let client = try HTTPClient(server)
      try client.send("PUT /big HTTP/1.1\r\nHost: a\r\n\(head)\r\n\r\n")
      // The server may have enough before all is sent.
      try? client.send(body)
      XCTAssertEqual(try client.answer().status, status, head)
    }
    // An upload that ends half way leaves nothing behind.
    do {
      let client = try HTTPClient(server)
      try client.send("PUT /half HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
      try client.send(pattern(300_000))
      XCTAssertTrue(eventually { (try? self.unnamedFiles(server)) == 1 })
    }
    XCTAssertTrue(eventually { (try? self.unnamedFiles(server)) == 0 })
    XCTAssertFalse(FileManager.default.fileExists(atPath: server.root.appending("half").string))
    let other = try HTTPServer(directory)
    XCTAssertEqual(try HTTPClient(other).get("/up", method: "PUT").status, 405)
  }

  /// A condition counts when the file is replaced, whatever was so when its upload began.
  func testAnUploadReplacesOnlyTheVersionThatItMeans() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable"])
    try server.make("a", "version 1")
    let tag = try XCTUnwrap(try HTTPClient(server).get("/a").fields["etag"])
    let clients = try (0..<2).map { _ in try HTTPClient(server) }
    for client in clients {
      try client.send(
        """
        PUT /a HTTP/1.1\r\nHost: a\r\nIf-Match: \(tag)\r\nContent-Length: 8\r\n\
        Expect: 100-continue\r\n\r\n
        """)
      XCTAssertEqual(try client.answer().status, 100)
    }
    try clients[0].send("client 0")
    XCTAssertEqual(try clients[0].answer().status, 204)
    try clients[1].send("client 1")
    XCTAssertEqual(try clients[1].answer().status, 412)
    XCTAssertEqual(try server.contents("a"), Array("client 0".utf8))
    // The connection is as it was.
    XCTAssertEqual(try clients[1].get("/a").text, "client 0")
  }

  /// A file that is replaced hands its permissions on.
  func testAnUploadKeepsThePermissions() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable"])
    try server.make("private", "old")
    XCTAssertEqual(chmod(server.root.appending("private").string, 0o600), 0)
    let client = try HTTPClient(server)
    for (name, status, mode) in [("private", 204, 0o600), ("new", 201, 0o666)] {
      try client.send("PUT /\(name) HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nnew")
      XCTAssertEqual(try client.answer().status, status)
      XCTAssertEqual(try server.contents(name), Array("new".utf8))
      let mask = umask(0)
      umask(mask)
      var found = stat()
      XCTAssertEqual(stat(server.root.appending(name).string, &found), 0)
      XCTAssertEqual(Int(found.st_mode & 0o777), name == "new" ? mode & ~Int(mask) : mode)
    }
  }

  /// The number of files without a name that the server has open.
  private func unnamedFiles(_ server: HTTPServer) throws -> Int {
    let descriptors = "/proc/\(server.process.processIdentifier)/fd"
    return try FileManager.default.contentsOfDirectory(atPath: descriptors).count {
      let name = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(descriptors)/\($0)")
      return name?.hasPrefix(server.root.string) == true && name?.hasSuffix(" (deleted)") == true
    }
  }

  /// Before an upload is answered, its bytes and then its name are durable: in this order.
  func testAnUploadIsDurableBeforeItIsAnswered() throws {
    let directory = try temporaryDirectory()
    let strace = try ChildProcess.installed("strace", package: "strace")
    let log = directory.path.appending("strace").string
    let server = try HTTPServer(
      directory, ["--writable"],
      under: [
        strace, "-D", "-f", "-o", log, "-e",
        "trace=fsync,fdatasync,io_submit,linkat,sendmsg,sendto",
      ])
    let client = try HTTPClient(server)
    try client.send("PUT /up HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    XCTAssertEqual(try client.answer().status, 201)
    XCTAssertEqual(server.stop(), 0)
    XCTAssertTrue(
      eventually {
        (try? String(contentsOfFile: log, encoding: .utf8))?.contains("+++ exited") == true
      })
    let calls = SystemCallLog.parse(try String(contentsOfFile: log, encoding: .utf8))
    let order = [
      calls.firstIndex { $0.contains("fsync(") }, calls.firstIndex { $0.contains("linkat(") },
      calls.lastIndex { $0.contains("fsync(") }, calls.firstIndex { $0.contains("201 Created") },
    ].map { $0 ?? -1 }
    XCTAssertEqual(Set(order).count, 4, "\(calls)")
    XCTAssertEqual(order, order.sorted(), "\(calls)")
    XCTAssertFalse(order.contains(-1), "\(order) \(calls)")
  }

  /// What a client asks for in a row, and the page cache has, is one send, without a request of the
  /// ring; whether the file that is kept open is as it was is asked once.
  func testSmallAnswersFromThePageCacheGoOutTogether() throws {
    let directory = try temporaryDirectory()
    let strace = try ChildProcess.installed("strace", package: "strace")
    let log = directory.path.appending("strace").string
    let server = try HTTPServer(
      directory, ["--caching", "buffered"],
      under: [
        strace, "-D", "-f", "-o", log, "-e", "trace=io_submit,sendmsg,sendto,fstat,newfstatat",
      ])
    try server.make("file", pattern(100_000))
    let client = try HTTPClient(server)
    let requests = (0..<40).map {
      "GET /file HTTP/1.1\r\nHost: a\r\nRange: bytes=\($0 * 1000)-\($0 * 1000 + 999)\r\n\r\n"
    }
    try client.send(requests.joined())
    for number in 0..<40 {
      let answer = try client.answer()
      XCTAssertEqual(answer.status, 206)
      XCTAssertTrue(answer.body == Array(pattern(100_000)[number * 1000..<number * 1000 + 1000]))
    }
    XCTAssertEqual(server.stop(), 0)
    XCTAssertTrue(
      eventually {
        (try? String(contentsOfFile: log, encoding: .utf8))?.contains("+++ exited") == true
      })
    let calls = SystemCallLog.parse(try String(contentsOfFile: log, encoding: .utf8))
    let sends = calls.filter { $0.hasPrefix("send") && $0.contains("206 Partial") }
    // One, unless the requests came in parts.
    XCTAssertLessThanOrEqual(sends.count, 3, "\(sends)")
    XCTAssertTrue(sends.allSatisfy { $0.hasPrefix("sendto(") }, "\(sends)")
    // Some when it is opened, and one for each turn.
    let looks = calls.filter { $0.contains("fstat") && $0.contains("st_size=100000") }
    XCTAssertFalse(looks.isEmpty)
    XCTAssertLessThanOrEqual(looks.count, 6, "\(looks)")
  }
}
