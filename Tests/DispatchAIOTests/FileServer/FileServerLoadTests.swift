// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// aio-httpd as a process: connections, limits, timeouts, the end; and everybody's clients.
final class FileServerLoadTests: XCTestCase {
  /// Requests that are sent at once are answered in order, whatever each takes.
  func testPipelining() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    var requests = ""
    for number in 0..<300 {
      if number % 3 == 0 { try server.make("\(number).bin", pattern(number * 300)) }
      requests += "GET /\(number).bin HTTP/1.1\r\nHost: a\r\n\r\n"
    }
    let client = try HTTPClient(server)
    // Also cut anywhere.
    let bytes = Array(requests.utf8)
    try client.send(Array(bytes[..<7777]))
    try client.send(Array(bytes[7777...]))
    for number in 0..<300 {
      let answer = try client.answer()
      XCTAssertEqual(answer.status, number % 3 == 0 ? 200 : 404)
      if number % 3 == 0 { XCTAssertTrue(answer.body == pattern(number * 300), "\(number)") }
    }
  }

  /// By netcat, which ends its side before it has the answers.
  func testNetcat() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    try server.make("a", "hello")
    let nc = try ChildProcess.installed("nc", package: "netcat-openbsd")
    let run = try ChildProcess.run(
      "/bin/sh",
      [
        "-c",
        "printf 'GET /a HTTP/1.1\\r\\nHost: a\\r\\n\\r\\nGET /b HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
          + "GET /a HTTP/1.0\\r\\n\\r\\n' | \(nc) -N 127.0.0.1 \(server.port)",
      ])
    let statuses = run.output.matches(of: /HTTP\/1\.1 (\d+)/).map { String($0.1) }
    XCTAssertEqual(statuses, ["200", "404", "200"])
    XCTAssertTrue(run.output.hasSuffix("hello"))
  }

  func testLimits() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--max-head", "4096"])
    for (request, status) in [
      ("GET /\(String(repeating: "x", count: 5000)) HTTP/1.1\r\n", 414),
      ("GET / HTTP/1.1\r\nX: \(String(repeating: "x", count: 5000))", 431),
      ("GET / HTTP/1.1\r\nX: y\r\n\r\n", 400), ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
      ("nonsense\r\n\r\n", 400),
    ] {
      let client = try HTTPClient(server)
      try client.send(request)
      let answer = try client.answer()
      XCTAssertEqual(answer.status, status, "\(request.prefix(40))")
      XCTAssertEqual(answer.fields["connection"], "close")
      XCTAssertTrue(client.isClosedSoon())
    }
    // A body that nobody reads is not taken for the next request.
    let client = try HTTPClient(server)
    try client.send(
      "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    XCTAssertEqual(try client.answer().fields["connection"], "close")
    XCTAssertThrowsError(try client.answer())
  }

  /// Who drips a head, says nothing, takes nothing, or stops in the middle of a body, is not waited
  /// for.
  func testTimeouts() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(
      directory,
      [
        "--writable", "--request-timeout", "0.5", "--keep-alive-timeout", "0.6", "--send-timeout",
        "0.7",
      ])
    try server.make("big", pattern(8_000_000))
    let (dripping, silent, idle, body, deaf) = (
      try HTTPClient(server), try HTTPClient(server), try HTTPClient(server),
      try HTTPClient(server),
      try HTTPClient(server, receiveBuffer: 128 << 10)
    )
    XCTAssertEqual(try idle.get("/none").status, 404)
    try deaf.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    try body.send("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    let began = ContinuousClock.now
    let isDripping = Locked(true)
    let socket = dripping.socket
    let dripped = DispatchSemaphore(value: 0)
    DispatchQueue(label: "test.drip").async {
      for byte in "GET / HTTP/1.1\r\nX: \(String(repeating: "x", count: 100_000))".utf8 {
        var byte = byte
        guard isDripping.withLock({ $0 }), send(socket, &byte, 1, Int32(MSG_NOSIGNAL)) == 1 else {
          break
        }
        usleep(20_000)
      }
      dripped.signal()
    }
    XCTAssertEqual(try dripping.answer().status, 408)
    XCTAssertEqual(try body.answer().status, 408)
    XCTAssertTrue(silent.isClosedSoon())
    XCTAssertTrue(idle.isClosedSoon())
    XCTAssertTrue(body.isClosedSoon())
    isDripping.withLock { $0 = false }
    dripped.wait()
    XCTAssertGreaterThan(ContinuousClock.now - began, .milliseconds(400))
    // The one that takes nothing: the server has closed it, too.
    XCTAssertTrue(eventually { server.connections == 0 })
    withExtendedLifetime(deaf) {}
  }

  /// Empty lines behind a request, and half of one, begin no other: there is no answer to them, and
  /// the end does not wait for more.
  func testEmptyLinesBehindARequest() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(
      directory,
      ["--request-timeout", "0.2", "--keep-alive-timeout", "100", "--drain-timeout", "1000"])
    try server.make("a", "hello")
    let client = try HTTPClient(server)
    let request = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
    for pieces in [["\r\n"], ["\r", "\n"], ["\r\n\r\n\r\n\r\n"], ["\r\n\r", "\n"]] {
      try client.send(request + pieces[0])
      XCTAssertEqual(try client.answer().text, "hello")
      for piece in pieces.dropFirst() {
        usleep(400_000)
        try client.send(piece)
      }
      usleep(400_000)
    }
    try client.send(request + "\r\n")
    let last = try client.answer()
    XCTAssertEqual(last.text, "hello")
    kill(server.process.processIdentifier, SIGTERM)
    XCTAssertThrowsError(try client.answer())
    server.process.waitForEnd()
    XCTAssertEqual(server.process.terminationStatus, 0)
  }

  /// Clients that take nothing of a large file cost the server no memory to speak of.
  func testSlowReaders() throws {
    let directory = try temporaryDirectory()
    for caching in ["buffered", "direct"] {
      let server = try HTTPServer(directory, ["--caching", caching, "--drain-timeout", "0.2"])
      let bytes = pattern(9_000_000)
      try server.make("big", bytes)
      let clients = try (0..<30).map { _ in try HTTPClient(server, receiveBuffer: 128 << 10) }
      for client in clients {
        for _ in 0..<10 { try client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n") }
      }
      // Another is served meanwhile.
      XCTAssertEqual(try HTTPClient(server).get("/big").body.count, bytes.count)
      XCTAssertLessThan(server.peakMemory, 100 << 20)
      // And one of them that wakes up gets all of it.
      XCTAssertTrue(try clients[7].answer().body == bytes, caching)
      XCTAssertEqual(server.stop(SIGINT), 0)
    }
  }

  /// The memory for each of many such clients is what is documented, whatever it is that they do
  /// not take: parts of a large file from the disk, or many small answers from the page cache.
  func testTheMemoryOfSlowReaders() throws {
    try XCTSkipIf(Sanitizer.isBuiltIn, "a sanitizer has memory of its own")
    let directory = try temporaryDirectory()
    for (caching, size) in [("direct", 9_000_000), ("buffered", 20_000)] {
      let server = try HTTPServer(directory, ["--caching", caching])
      try server.make("file", pattern(size))
      let requests = String(repeating: "GET /file HTTP/1.1\r\nHost: a\r\n\r\n", count: 3000)
      func stuckClients(_ count: Int) throws -> [HTTPClient] {
        try (0..<count).map { _ in
          let client = try HTTPClient(server, receiveBuffer: 16 << 10)
          _ = fcntl(client.socket, F_SETFL, O_NONBLOCK)
          try? client.send(requests)
          return client
        }
      }
      /// Once it does not grow any more.
      func memory() -> Int {
        var (now, since) = (0, DispatchTime.now())
        while DispatchTime.now() < since + .milliseconds(300) {
          let found = server.residentMemory
          if found != now { (now, since) = (found, .now()) }
          usleep(10_000)
        }
        return now
      }
      var clients = try stuckClients(20)
      let before = memory()
      clients += try stuckClients(80)
      let growth = (memory() - before) / 80
      XCTAssertLessThan(growth, 250 << 10, caching)
      XCTAssertGreaterThan(growth, 32 << 10, "the clients are not stuck")
      withExtendedLifetime(clients) {}
    }
  }

  /// The pages that list a directory end, and those that clients are slow to take have a bound.
  func testTheMemoryOfListings() throws {
    let directory = try temporaryDirectory()
    let socket = directory.path.appending("socket").string
    let server = try HTTPServer(directory, address: ["--unix", socket])
    let name = String(repeating: "x", count: 245)
    for number in 0..<2500 { try server.make("long/\(10_000 + number)\(name)", "") }
    for number in 0..<100 { try server.make("short/\(number)", "") }
    func get(_ target: String) throws -> HTTPClient.Answer {
      try HTTPClient(unix: server).get(target)
    }
    let page = try get("/long/")
    XCTAssertEqual(page.status, 200)
    XCTAssertLessThan(page.body.count, (1 << 20) + 4096)
    XCTAssertGreaterThan(page.body.count, 1 << 20)
    let text = page.text
    XCTAssertTrue(text.prefix(1000).contains(">10000x"))
    XCTAssertTrue(text.suffix(100).contains("<p>There are more names here.</p>"))
    XCTAssertFalse(try get("/short/").text.contains("more names"))
    var clients = try (0..<8).map { _ in try HTTPClient(unix: server) }
    for client in clients { try client.send("GET /long/ HTTP/1.1\r\nHost: a\r\n\r\n") }
    XCTAssertTrue(try eventually { try get("/long/").status == 503 })
    // Others have what they ask for.
    XCTAssertEqual(try get("/short/0").status, 200)
    clients = []
    XCTAssertTrue(try eventually { try get("/long/").status == 200 })
    XCTAssertEqual(server.stop(), 0)
  }

  func testAThousandConnections() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--loops", "2"])
    try server.make("a", "hello")
    var clients: [HTTPClient] = []
    for _ in 0..<1000 {
      do {
        clients.append(try HTTPClient(server))
      } catch Errno.tooManyOpenFiles {
        throw XCTSkip("this process may not have 1000 sockets: ulimit -n 4096")
      }
    }
    for _ in 0..<3 {
      for client in clients { try client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n") }
      for client in clients { XCTAssertEqual(try client.answer().text, "hello") }
    }
    clients = []
    XCTAssertTrue(eventually { server.connections == 0 })
    XCTAssertEqual(server.stop(), 0)
    XCTAssertTrue(server.logged.contains("1000 accepted, 0 refused; 3000 requests"), server.logged)
  }

  /// Goal: who asks for a file while there are no descriptors to open it with gets it when there
  /// are some, is told after a time when there are none, and is served before and after. The last
  /// descriptors stay free, without which Dispatch ends a process.
  func testNoDescriptorForAFile() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--request-timeout", "2"])
    for name in ["a", "b", "c"] { try server.make(name, "hello " + name) }
    let clients = try (0..<4).map { _ in try HTTPClient(server) }
    for client in clients { XCTAssertEqual(try client.get("/a").text, "hello a") }
    let descriptors = try Descriptors(of: server)
    try descriptors.leave(2)
    for (client, name) in zip(clients, ["a", "b", "c", "b"]) {
      try client.send("GET /\(name) HTTP/1.1\r\nHost: a\r\n\r\n")
    }
    XCTAssertTrue(eventually { server.logged.contains("no descriptor to open a file with") })
    try descriptors.leave(100)
    for (client, name) in zip(clients, ["a", "b", "c", "b"]) {
      XCTAssertEqual(try client.answer().text, "hello " + name)
    }
    try descriptors.leave(2)
    XCTAssertEqual(try clients[1].get("/c").status, 503)
    try descriptors.leave(100)
    XCTAssertEqual(try clients[1].get("/c").text, "hello c")
    XCTAssertEqual(server.stop(), 0)
  }

  /// The descriptors that a server has left, as others set it.
  private struct Descriptors {
    private let server: HTTPServer
    /// The first that is free, or a file's, which is soon closed.
    private let next: Int

    init(of server: HTTPServer) throws {
      self.server = server
      let path = "/proc/\(server.process.processIdentifier)/fd"
      next = try XCTUnwrap(
        (0..<1000).first { number in
          let target = try? FileManager.default.destinationOfSymbolicLink(
            atPath: "\(path)/\(number)")
          return target?.hasPrefix(server.root.string + "/") ?? true
        })
    }

    /// - Parameter count: One or two are for Dispatch, and no file is opened with them.
    func leave(_ count: Int) throws {
      let run = try ChildProcess.run(
        ChildProcess.installed("prlimit", package: "util-linux"),
        ["--pid", "\(server.process.processIdentifier)", "--nofile=\(next + count):"])
      try XCTSkipIf(run.status != 0, run.errors)
    }

    /// Leaves none until what `request` asks for waits for one.
    func hold(_ request: () throws -> Void) throws {
      func waits() -> Int {
        server.logged.components(separatedBy: "no descriptor to open a file with").count
      }
      let before = waits()
      // Not even those that Dispatch has, because what is opened takes one before it hangs.
      try leave(0)
      try request()
      XCTAssertTrue(eventually { waits() > before })
      try leave(100)
    }
  }

  /// Goal: a look-up that is still on its way when its request was given up answers no other
  /// request. Method: the requests wait for a descriptor, and then, until after their time, for the
  /// file system that opens their file; the next ones wait for it, too.
  func testALookUpThatWasGivenUpAnswersNoOtherRequest() throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    let server = try HTTPServer(
      root: files.path, ["--request-timeout", "4"], log: directory.path.appending("log"))
    // Several, because the look-ups of one come back in any order.
    let clients = try (0..<6).map { _ in try HTTPClient(server) }
    for client in clients {
      XCTAssertEqual(try client.get("/sound", "Range: bytes=0-0").status, 206)
    }
    let descriptors = try Descriptors(of: server)
    for (number, client) in clients.enumerated() {
      try descriptors.hold {
        try client.send("GET /hangopen-empty HTTP/1.1\r\nHost: a\r\n\r\n")
      }
      XCTAssertTrue(eventually { files.hanging == number + 1 })
    }
    for client in clients { XCTAssertEqual(try client.answer().status, 503) }
    for client in clients {
      try client.send("GET /hangopen HTTP/1.1\r\nHost: a\r\nRange: bytes=5-7\r\n\r\n")
    }
    XCTAssertTrue(eventually { files.hanging == 2 * clients.count })
    files.release()
    for client in clients {
      let answer = try client.answer()
      XCTAssertEqual(answer.status, 206)
      XCTAssertEqual(answer.body, [5, 6, 7])
    }
    XCTAssertEqual(server.stop(), 0)
  }

  /// A client that is gone has its place until the disk has done with what it asked for.
  func testAPlaceIsNotFreeBeforeTheDiskIsDoneWithIt() throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    let server = try HTTPServer(
      root: files.path, ["--max-connections", "1", "--request-timeout", "4"],
      log: directory.path.appending("log"))
    func canGet() -> Bool {
      (try? HTTPClient(server).get("/sound", "Range: bytes=0-0").status) == 206
    }
    do {
      let client = try HTTPClient(server)
      XCTAssertEqual(try client.get("/sound", "Range: bytes=0-0").status, 206)
      let descriptors = try Descriptors(of: server)
      try descriptors.hold {
        try client.send("GET /hangopen HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
      }
      XCTAssertTrue(eventually { files.hanging == 1 })
      XCTAssertEqual(try client.answer().status, 503)
    }
    XCTAssertTrue(eventually { server.connections == 0 })
    for _ in 0..<10 { XCTAssertFalse(canGet()) }
    XCTAssertEqual(files.hanging, 1)
    files.release()
    XCTAssertTrue(eventually { canGet() })
    XCTAssertEqual(server.stop(), 0)
  }

  // MARK: The end

  /// An answer that is being sent is sent to its end; what is idle is closed; nothing new is
  /// accepted.
  func testGracefulStop() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    let bytes = pattern(9_000_000)
    try server.make("big", bytes)
    let (busy, idle) = (try HTTPClient(server, receiveBuffer: 128 << 10), try HTTPClient(server))
    XCTAssertEqual(try idle.get("/none").status, 404)
    try busy.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    var byte: UInt8 = 0
    XCTAssertEqual(recv(busy.socket, &byte, 1, Int32(MSG_PEEK)), 1)
    kill(server.process.processIdentifier, SIGTERM)
    XCTAssertTrue(idle.isClosedSoon())
    XCTAssertTrue(eventually { (try? HTTPClient(server)) == nil })
    XCTAssertTrue(try busy.answer().body == bytes)
    XCTAssertTrue(busy.isClosedSoon())
    server.process.waitForEnd()
    XCTAssertEqual(server.process.terminationStatus, 0)
  }

  /// So is what was received behind it, and the last answer says that it is the last; also the one
  /// to a request that was received in part.
  func testTheEndAnswersWhatWasReceived() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable"])
    let bytes = pattern(9_000_000)
    try server.make("big", bytes)
    try server.make("small", "hello")
    let (busy, halfway, uploading, idle) = (
      try HTTPClient(server, receiveBuffer: 128 << 10), try HTTPClient(server),
      try HTTPClient(server), try HTTPClient(server)
    )
    let small = "GET /small HTTP/1.1\r\nHost: a\r\n\r\n"
    try busy.send(
      "GET /big HTTP/1.1\r\nHost: a\r\n\r\n" + String(repeating: small, count: 9))
    var byte: UInt8 = 0
    XCTAssertEqual(recv(busy.socket, &byte, 1, Int32(MSG_PEEK)), 1)
    try halfway.send(small + small.dropLast(5))
    XCTAssertEqual(try halfway.answer().text, "hello")
    try uploading.send(
      "PUT /up HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    XCTAssertEqual(try uploading.answer().status, 100)
    XCTAssertEqual(try idle.get("/none").status, 404)
    kill(server.process.processIdentifier, SIGTERM)
    XCTAssertTrue(idle.isClosedSoon())
    try halfway.send(String(small.suffix(5)))
    try uploading.send("hi")
    for (client, status) in [(halfway, 200), (uploading, 201)] {
      let answer = try client.answer()
      XCTAssertEqual(answer.status, status)
      XCTAssertEqual(answer.fields["connection"], "close")
      XCTAssertTrue(client.isClosedSoon())
    }
    XCTAssertTrue(try busy.answer().body == bytes)
    for number in 1...9 {
      let answer = try busy.answer()
      XCTAssertEqual(answer.text, "hello")
      XCTAssertEqual(answer.fields["connection"], number == 9 ? "close" : nil)
    }
    XCTAssertTrue(busy.isClosedSoon())
    server.process.waitUntilExit()
    XCTAssertEqual(server.process.terminationStatus, 0)
  }

  /// Nobody is waited for longer than it says, nor after a second signal.
  func testTheEndDoesNotWaitForGood() throws {
    let directory = try temporaryDirectory()
    for isSecond in [false, true] {
      let server = try HTTPServer(directory, ["--drain-timeout", isSecond ? "1000" : "0.3"])
      try server.make("big", pattern(9_000_000))
      let client = try HTTPClient(server, receiveBuffer: 128 << 10)
      try client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
      var byte: UInt8 = 0
      XCTAssertEqual(recv(client.socket, &byte, 1, Int32(MSG_PEEK)), 1)
      kill(server.process.processIdentifier, SIGTERM)
      if isSecond {
        XCTAssertTrue(eventually { server.logged.contains("SIGTERM: answering") })
        kill(server.process.processIdentifier, SIGINT)
      }
      server.process.waitForEnd()
      XCTAssertEqual(server.process.terminationStatus, isSecond ? 128 + SIGINT : 0)
    }
  }

  // MARK: Sockets and logs

  func testUnixSocket() throws {
    let directory = try temporaryDirectory()
    let path = directory.path.appending("socket").string
    let server = try HTTPServer(directory, address: ["--unix", path])
    XCTAssertEqual(server.address, path)
    try server.make("a", "hello")
    XCTAssertEqual(try server.curl(["--unix-socket", path, "http://x/a"]), "hello")
    XCTAssertEqual(server.stop(), 0)
    XCTAssertFalse(FileManager.default.fileExists(atPath: path))
  }

  func testSystemdActivation() throws {
    let directory = try temporaryDirectory()
    let program = try ChildProcess.installed("systemd-socket-activate", package: "systemd")
    let root = directory.path.appending("www").string
    try FileManager.default.createDirectory(atPath: root, withIntermediateDirectories: false)
    try "hello".write(toFile: root + "/a", atomically: false, encoding: .utf8)
    let path = directory.path.appending("activated").string
    let curl = try ChildProcess.installed("curl", package: "curl")
    // It hands on no other part of the environment. All by a shell: the activator closes the
    // descriptor by which Foundation watches a child.
    let run = try ChildProcess.run(
      "/bin/sh",
      [
        "-c",
        """
        \(program) -E ASAN_OPTIONS -l \(path) \(try ChildProcess.built("aio-httpd")) \(root) >/dev/null 2>&1 &
        while ! [ -S \(path) ]; do kill -0 $! || exit 1; done
        \(curl) -s --max-time 20 --unix-socket \(path) http://x/a
        kill -TERM $! && wait $! && echo " and ended"
        """,
      ])
    XCTAssertEqual(run.output, "hello and ended\n", run.errors)
  }

  func testAccessLog() throws {
    let directory = try temporaryDirectory()
    let path = directory.path.appending("access").string
    let server = try HTTPServer(directory, ["--access-log", path, "--access-log-rate", "5"])
    try server.make("a", "hello")
    let client = try HTTPClient(server)
    _ = try client.get("/a?q=\"x\\", "User-Agent: me\u{7f}\"\nX", method: "GET")
    let second = try HTTPClient(server)
    _ = try second.get("/a?q=\"x\\", "User-Agent: me\u{7f}\"")
    XCTAssertTrue(
      eventually { (try? String(contentsOfFile: path, encoding: .utf8))?.contains("200") == true })
    let line = try XCTUnwrap(
      String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").last)
    XCTAssertNotNil(
      line.wholeMatch(
        of:
          /127\.0\.0\.1:\d+ - - \[.* \+0000\] "GET \/a\?q=\\x22x\\x5c HTTP\/1\.1" 200 5 "-" "me\\x7f\\x22"/
      ),
      "\(line)")
    for _ in 0..<200 { _ = try second.get("/a") }
    XCTAssertEqual(server.stop(), 0)
    let lines = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n")
    XCTAssertLessThan(lines.count, 60)
  }

  /// What is refused has its line, too, with as much of the request's as was received.
  func testTheAccessLogHasWhatIsRefused() throws {
    let directory = try temporaryDirectory()
    let path = directory.path.appending("access").string
    let server = try HTTPServer(
      directory,
      ["--writable", "--access-log", path, "--max-upload", "4", "--request-timeout", "0.5"])
    let long = String(repeating: "x", count: 9000)
    let chunked = "PUT /up HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\nTransfer-Encoding: chunked"
    let rows = [
      ("\u{16}\u{3}\u{1}\r\n\r\n", 400, #"\x16\x03\x01" 400 16 "-" "-""#),
      ("\r\nGET / HTTP/1.1\r\nX: \"\r\n\r\n", 400, #"GET / HTTP/1.1" 400 16 "-" "-""#),
      ("GET / HTTP/4.0\r\nHost: a\r\n\r\n", 505, #"GET / HTTP/4.0" 505 31 "-" "-""#),
      ("GET /\(long)", 414, #"GET /\#(long.prefix(2043))" 414 17 "-" "-""#),
      ("GET /half HT", 408, #"GET /half HT" 408 20 "-" "-""#),
      ("\(chunked)\r\n\r\nz\r\n", 400, #"PUT /up HTTP/1.1" 400 16 "-" "me""#),
      ("\(chunked)\r\n\r\n5\r\nhello", 413, #"PUT /up HTTP/1.1" 413 22 "-" "me""#),
      ("\(chunked)\r\n\r\n5\r\nhel", 408, #"PUT /up HTTP/1.1" 408 20 "-" "me""#),
    ]
    for (request, status, _) in rows {
      let client = try HTTPClient(server)
      try client.send(request)
      XCTAssertEqual(try client.answer().status, status)
    }
    XCTAssertEqual(server.stop(), 0)
    let lines = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n")
    XCTAssertEqual(
      lines.map { $0.components(separatedBy: "] \"").last }, rows.map { $0.2 })
  }

  /// Lines that cannot be written are missed where somebody looks: in the server's log, and in this
  /// one once it can be written again.
  func testAnAccessLogThatCannotBeWritten() throws {
    let directory = try temporaryDirectory()
    // More than the server's own log, so that one limit stops this one only.
    let size = 100_000
    let path = try directory.makeFile("access", size: size) { _ in 10 }.string
    let server = try HTTPServer(directory, ["--access-log", path])
    let client = try HTTPClient(server)
    _ = try client.get("/first")
    let file = URL(fileURLWithPath: path)
    XCTAssertTrue(eventually { (try? Data(contentsOf: file))?.count ?? 0 > size })
    try server.limitFiles(to: "\(size)")
    for number in 1...3 {
      _ = try client.get("/lost")
      XCTAssertTrue(
        eventually {
          server.logged.components(separatedBy: "the access log cannot be written").count > number
        }, server.logged)
    }
    XCTAssertTrue(server.logged.contains("File too large"), server.logged)
    try server.limitFiles(to: "unlimited")
    _ = try client.get("/last")
    XCTAssertEqual(server.stop(), 0)
    let lines = try String(contentsOf: file, encoding: .utf8).split(separator: "\n")
    XCTAssertEqual(lines.count, 3)
    XCTAssertTrue(lines[0].contains("/first"))
    XCTAssertEqual(lines[1], "# 3 answers are not in the log")
    XCTAssertTrue(lines[2].contains("/last"))
  }

  /// A line waits for the write of the one before, and the end for both.
  func testTheEndWaitsForTheAccessLog() throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    let log = "hangwrite-direct-empty"
    let server = try HTTPServer(directory, ["--access-log", files[log].string])
    let client = try HTTPClient(server)
    _ = try client.get("/first")
    XCTAssertTrue(eventually { files.hanging == 1 })
    _ = try client.get("/second")
    kill(server.process.processIdentifier, SIGTERM)
    XCTAssertTrue(client.isClosedSoon())
    XCTAssertTrue(server.process.isRunning)
    files.release()
    server.process.waitForEnd()
    XCTAssertEqual(server.process.terminationStatus, 0, server.logged)
    let text = String(decoding: try files.contents(of: log), as: UTF8.self)
    XCTAssertTrue(text.contains("/first"), text)
    XCTAssertTrue(text.contains("/second"), text)
  }

  func testBadOptions() throws {
    let program = try ChildProcess.built("aio-httpd")
    for (arguments, text) in [
      (["/none"], "No such file or directory; name a directory to serve"),
      (["/etc/passwd"], "Not a directory"), (["/tmp", "--loops", "0"], "--loops 0: 1 to 64"),
      (["/tmp", "--max-head", "1M"], "--max-head 1MiB: 256B to 24KiB"),
      (["/tmp", "--caching", "none"], "caching"), ([], "<directory>"),
      (["/tmp", "--unix", "x", "--port", "1"], "--unix x"),
    ] {
      let run = try ChildProcess.run(program, arguments)
      XCTAssertNotEqual(run.status, 0)
      XCTAssertTrue(run.errors.contains(text), run.errors)
    }
  }

  // MARK: Everybody's clients

  func testCurl() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--writable"])
    let bytes = pattern(9_000_000)
    try server.make("big.bin", bytes)
    let local = directory.path.appending("local").string
    _ = try server.curl(["-o", local, server.url + "/big.bin"])
    XCTAssertTrue(try directory.contents("local") == bytes)
    // Interrupted, and taken up.
    truncate(local, 1_234_567)
    _ = try server.curl(["-C", "-", "-o", local, server.url + "/big.bin"])
    XCTAssertTrue(try directory.contents("local") == bytes)
    XCTAssertEqual(
      try server.curl([
        "-r", "0-0,5-6", "-o", "/dev/null", "-w", "%{http_code}", server.url + "/big.bin",
      ]),
      "206")
    XCTAssertEqual(
      try server.curl([
        "-z", local, "-R", "-o", "/dev/null", "-w", "%{http_code}", server.url + "/big.bin",
      ]),
      "304")
    XCTAssertTrue(
      try server.curl(["-I", server.url + "/big.bin"]).contains("Content-Length: 9000000"))
    // With Expect: 100-continue, and in chunks.
    XCTAssertEqual(
      try server.curl(["-T", local, "-o", "/dev/null", "-w", "%{http_code}", server.url + "/up"]),
      "201")
    XCTAssertTrue(try server.contents("up") == bytes)
    XCTAssertEqual(
      try server.curl([
        "-T", local, "-H", "Transfer-Encoding: chunked", "-o", "/dev/null", "-w", "%{http_code}",
        server.url + "/up",
      ]), "204")
    XCTAssertTrue(try server.contents("up") == bytes)
    // Many on one connection.
    let urls = (0..<20).flatMap { _ in ["-o", "/dev/null", server.url + "/up"] }
    XCTAssertEqual(
      try server.curl(["-w", "%{num_connects} "] + urls),
      "1 " + String(repeating: "0 ", count: 19))
  }

  func testWget() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    for number in 0..<20 { try server.make("tree/\(number % 3)/\(number)", pattern(number * 1000)) }
    // By the listings.
    let run = try ChildProcess.run(
      ChildProcess.installed("wget", package: "wget"),
      [
        "-q", "-r", "-np", "-nH", "-P", directory.path.appending("copy").string,
        server.url + "/tree/",
      ])
    XCTAssertEqual(run.status, 0, run.errors)
    for number in 0..<20 {
      XCTAssertTrue(
        try directory.contents("copy/tree/\(number % 3)/\(number)") == pattern(number * 1000))
    }
  }

  func testAB() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory)
    try server.make("a.bin", pattern(10_000))
    let ab = try ChildProcess.installed("ab", package: "apache2-utils")
    for options in [[], ["-k"]] {
      let run = try ChildProcess.run(
        ab, ["-q", "-n", "2000", "-c", "20"] + options + [server.url + "/a.bin"])
      XCTAssertTrue(run.output.contains(/Complete requests: +2000\n/), run.output + run.errors)
      XCTAssertTrue(run.output.contains(/Failed requests: +0\n/), run.output)
      XCTAssertFalse(run.output.contains("Non-2xx"), run.output)
      XCTAssertTrue(run.output.contains(/HTML transferred: +20000000 bytes/), run.output)
    }
  }

  func testWrk() throws {
    let directory = try temporaryDirectory()
    let server = try HTTPServer(directory, ["--loops", "2"])
    try server.make("a.bin", pattern(100_000))
    let wrk = try ChildProcess.installed("wrk", package: "wrk")
    let run = try ChildProcess.run(wrk, ["-t", "1", "-c", "50", "-d", "1", server.url + "/a.bin"])
    XCTAssertEqual(run.status, 0, run.errors)
    XCTAssertTrue(run.output.contains("requests in"), run.output)
    XCTAssertFalse(
      run.output.contains("Non-2xx") || run.output.contains("Socket errors"), run.output)
  }
}
