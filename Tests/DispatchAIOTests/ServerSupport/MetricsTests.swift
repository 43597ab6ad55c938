// SPDX-License-Identifier: Apache-2.0
//
// `--metrics` of the servers: what a collector gets, and what others can do there.

import DispatchAIO
import Foundation
import Glibc
import SystemPackage
import XCTest

final class MetricsTests: XCTestCase {
  /// A server with metrics.
  private final class Measured: ServerProcess, @unchecked Sendable {
    convenience init(
      _ program: String, _ arguments: [String], metrics: String, _ directory: FilePath
    ) throws {
      try self.init(
        program, arguments + ["--metrics", metrics], log: directory.appending("log"),
        in: directory)
    }

    /// Where it serves them, which its log tells.
    var metrics: String {
      let line = logged.split(separator: "\n").first { $0.contains("metrics on ") } ?? ""
      return String(line.split(separator: " ").last ?? "")
    }
  }

  /// What curl gets: the head and the body.
  private func scrape(_ arguments: String...) throws -> (head: String, body: String) {
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/curl")
    process.arguments = ["--silent", "--include", "--max-time", "30"] + arguments
    process.standardOutput = output
    try process.run()
    let text = String(
      decoding: try output.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
    process.waitForEnd()
    XCTAssertEqual(process.terminationStatus, 0, "\(arguments)")
    guard let end = text.range(of: "\r\n\r\n") else { return (text, "") }
    return (String(text[..<end.lowerBound]), String(text[end.upperBound...]))
  }

  /// Parses the text format strictly: a family is its HELP, its TYPE and then its samples.
  ///
  /// - Returns: the samples by name and labels.
  private func parse(_ body: String) throws -> [String: Double] {
    var samples: [String: Double] = [:]
    var families: Set<String> = []
    var (family, kind) = ("", "")
    XCTAssert(body.hasSuffix("\n"))
    for line in body.split(separator: "\n", omittingEmptySubsequences: false).dropLast() {
      let words = line.split(separator: " ", omittingEmptySubsequences: false)
      if line.hasPrefix("# HELP ") {
        family = String(words[2])
        XCTAssert(families.insert(family).inserted, "\(family) is there twice")
        XCTAssertGreaterThan(words.count, 3)
      } else if line.hasPrefix("# TYPE ") {
        XCTAssertEqual(String(words[2]), family)
        kind = String(words[3])
        XCTAssert(["counter", "gauge"].contains(kind), kind)
        XCTAssertEqual(family.hasSuffix("_total"), kind == "counter", family)
      } else {
        XCTAssertEqual(words.count, 2, "\(line)")
        let value = try XCTUnwrap(Double(words[1]), "\(line)")
        let name = words[0].prefix { $0 != "{" }
        XCTAssertEqual(String(name), family)
        XCTAssertNotNil(
          name.wholeMatch(of: /[a-z_][a-z0-9_]*/), "\(name) is no name of a metric")
        XCTAssertNotNil(
          words[0].dropFirst(name.count).wholeMatch(of: /(\{context="[0-9]+"\})?/), "\(line)")
        XCTAssertGreaterThanOrEqual(value, 0)
        XCTAssertNil(samples.updateValue(value, forKey: String(words[0])), "\(line) is there twice")
      }
    }
    return samples
  }

  /// Checks that each statistic is there once for each context, with or without swift-metrics.
  private func checkStatistics(
    _ body: String, contexts: Int, file: StaticString = #filePath, line: UInt = #line
  ) throws {
    let samples = try parse(body)
    var expected: Set<String> = []
    for series in AIOStatistics.series {
      let kind = series.kind == .counter ? "counter" : "gauge"
      let head = "# HELP \(series.name) \(series.help)\n# TYPE \(series.name) \(kind)\n"
      XCTAssert(body.contains(head), series.name, file: file, line: line)
      for context in 0..<contexts { expected.insert("\(series.name){context=\"\(context)\"}") }
    }
    XCTAssertEqual(
      Set(samples.keys.filter { $0.contains("{") }), expected, file: file, line: line)
  }

  private func fileServer(_ directory: FilePath, metrics: String) throws -> Measured {
    try Data(repeating: 7, count: 100_000).write(
      to: URL(fileURLWithPath: directory.appending("file").string))
    return try Measured(
      "aio-httpd", [directory.string, "--port", "0", "--loops", "2"], metrics: metrics, directory)
  }

  // MARK: What is told

  func testAFileServersNumbersGrowWithItsWork() throws {
    let directory = try TemporaryDirectory()
    let server = try fileServer(directory.path, metrics: "127.0.0.1:0")
    let (head, body) = try scrape("http://\(server.metrics)/metrics")
    XCTAssert(head.hasPrefix("HTTP/1.1 200 OK\r\n"), head)
    XCTAssert(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), head)
    XCTAssert(head.contains("Content-Length: \(body.utf8.count)\r\n"), head)
    let before = try parse(body)
    for _ in 0..<3 { _ = try scrape("http://\(server.address)/file") }
    let after = try parse(try scrape("http://\(server.metrics)/metrics?x=y").body)
    XCTAssertEqual(Set(before.keys), Set(after.keys))
    func growth(_ name: String) -> Double { (after[name] ?? .nan) - (before[name] ?? .nan) }
    XCTAssertEqual(growth("aio_httpd_requests_total"), 3)
    XCTAssertEqual(growth("aio_httpd_connections_accepted_total"), 3)
    XCTAssertEqual(growth("aio_httpd_sent_bytes_total"), 300_000)
    try checkStatistics(body, contexts: 2)
    XCTAssertEqual(server.stop(), 0)
  }

  func testAJournalsNumbersGrowWithItsWork() throws {
    let directory = try TemporaryDirectory()
    let socket = directory.path.appending("metrics").string
    let server = try Measured(
      "echo-to-disk", ["serve", "--port", "0", "--data", directory.path.appending("data").string],
      metrics: "unix:\(socket)", directory.path)
    let body = try scrape("--unix-socket", socket, "http://localhost/metrics").body
    try checkStatistics(body, contexts: 1)
    let before = try parse(body)
    let client = try Client(server.port)
    try client.send("a line\n")
    XCTAssertEqual(try client.receive(7), "a line\n")
    let after = try parse(try scrape("--unix-socket", socket, "http://localhost/metrics").body)
    for (name, least) in [
      ("echo_to_disk_received_bytes_total", 7.0), ("echo_to_disk_echoed_bytes_total", 7),
      ("echo_to_disk_records_total", 1), ("echo_to_disk_connections", 1),
      ("aio_requests_accepted_total{context=\"0\"}", 1),
    ] {
      XCTAssertGreaterThanOrEqual((after[name] ?? .nan) - (before[name] ?? .nan), least, name)
    }
    XCTAssertEqual(server.stop(), 0)
    XCTAssertFalse(FileManager.default.fileExists(atPath: socket))
  }

  func testABlockServersNumbersAreThere() throws {
    let directory = try TemporaryDirectory()
    let disk = try directory.makeFile("disk", size: 1 << 20)
    let server = try Measured(
      "aio-nbd", ["serve", disk.string, "--port", "0"], metrics: "[::1]:0", directory.path)
    let body = try scrape("http://\(server.metrics)/metrics").body
    try checkStatistics(body, contexts: 1)
    let numbers = try parse(body)
    XCTAssertEqual(numbers["aio_nbd_requests_total"], 0)
    let client = try Client(server.port)
    XCTAssertEqual(try client.receive(8), "NBDMAGIC")
    let after = try parse(try scrape("http://\(server.metrics)/metrics").body)
    XCTAssertEqual(after["aio_nbd_connections"], 1)
    XCTAssertEqual(server.stop(), 0)
  }

  // MARK: What is not

  func testOtherRequestsAreRefused() throws {
    let directory = try TemporaryDirectory()
    let server = try fileServer(directory.path, metrics: "127.0.0.1:0")
    let url = "http://\(server.metrics)"
    for (arguments, status) in [
      (["\(url)/"], "404"), (["\(url)/metrics/x"], "404"),
      (["--request", "POST", "\(url)/metrics"], "405"),
      (["--header", "X: \(String(repeating: "x", count: 5000))", "\(url)/metrics"], "431"),
    ] {
      let process = Process()
      let output = Pipe()
      process.executableURL = URL(fileURLWithPath: "/usr/bin/curl")
      process.arguments =
        ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"] + arguments
      process.standardOutput = output
      try process.run()
      let code = try output.fileHandleForReading.readToEnd() ?? Data()
      process.waitForEnd()
      XCTAssertEqual(String(decoding: code, as: UTF8.self), status, "\(arguments.last ?? "")")
    }
    let (head, body) = try scrape("--head", "\(url)/metrics")
    XCTAssert(head.hasPrefix("HTTP/1.1 200"), head)
    XCTAssertEqual(body, "")
    let client = try Client(server.metricsPort)
    try client.send("nonsense\r\n\r\n")
    XCTAssertEqual(try client.receive(12), "HTTP/1.1 400")
  }

  /// Clients that say nothing, or never end, take the places of a collector for 10 s, and nothing
  /// from the server.
  func testASlowOrHostileCollectorHarmsNobody() throws {
    let directory = try TemporaryDirectory()
    let server = try fileServer(directory.path, metrics: "127.0.0.1:0")
    let sockets = server.sockets
    var clients: [Client] = []
    for number in 0..<40 {
      let client = try Client(server.metricsPort)
      // Some say nothing, some are slow, some have asked and take nothing.
      if number % 3 == 1 { try? client.send("GET /met") }
      if number % 3 == 2 { try? client.send("GET /metrics HTTP/1.1\r\n\r\n") }
      clients.append(client)
    }
    // The server answers, and no more than its places are taken.
    let (head, body) = try scrape("http://\(server.address)/file")
    XCTAssert(head.hasPrefix("HTTP/1.1 200"), head)
    XCTAssertEqual(body.utf8.count, 100_000)
    XCTAssert(eventually { server.sockets <= sockets + 9 }, "\(server.sockets) sockets")
    // They are free once their time is over, though nobody has closed them.
    XCTAssert(eventually { server.sockets <= sockets + 1 }, "\(server.sockets) sockets")
    XCTAssertNoThrow(try parse(try scrape("http://\(server.metrics)/metrics").body))
    withExtendedLifetime(clients) {}
    XCTAssertEqual(server.stop(), 0)
  }

  /// A shutdown does not wait for a collector.
  func testAShutdownDoesNotWait() throws {
    let directory = try TemporaryDirectory()
    let server = try fileServer(directory.path, metrics: "127.0.0.1:0")
    let client = try Client(server.metricsPort)
    try client.send("GET /metrics HTTP")
    XCTAssert(eventually { server.sockets >= 3 })
    let began = ContinuousClock.now
    XCTAssertEqual(server.stop(), 0)
    XCTAssertLessThan(ContinuousClock.now - began, .seconds(8))
  }

  func testAnAddressThatIsNoneIsRefused() throws {
    let directory = try TemporaryDirectory()
    for address in ["8080", "localhost", ":80", "127.0.0.1:99999", "127.0.0.1:x"] {
      XCTAssertThrowsError(try fileServer(directory.path, metrics: address)) {
        XCTAssert("\($0)".contains("--metrics"), "\($0)")
      }
    }
    XCTAssertThrowsError(try fileServer(directory.path, metrics: "unix:/nowhere/socket")) {
      XCTAssert("\($0)".contains("--metrics"), "\($0)")
    }
  }
}

extension ServerProcess {
  fileprivate var metricsPort: UInt16 {
    let line = logged.split(separator: "\n").first { $0.contains("metrics on ") } ?? ""
    return UInt16(line.split(separator: ":").last ?? "") ?? 0
  }
}

/// A blocking client.
private final class Client {
  private let socket: Int32

  init(_ port: UInt16) throws {
    socket = try HTTPClient.connect(port: port)
  }

  deinit { close(socket) }

  func send(_ text: String) throws {
    let bytes = Array(text.utf8)
    guard Glibc.send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count
    else { throw Errno(rawValue: errno) }
  }

  func receive(_ count: Int) throws -> String {
    var bytes = [UInt8](repeating: 0, count: count)
    guard recv(socket, &bytes, count, Int32(MSG_WAITALL)) == count else {
      throw Errno(rawValue: errno)
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}
