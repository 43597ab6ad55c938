// SPDX-License-Identifier: Apache-2.0
//
// What a server's /metrics has by swift-metrics: the same text as without, and what others report.

#if Metrics
import CoreMetrics
import DispatchAIOMetrics
import Foundation
import Glibc
import Logging
import SystemPackage
import XCTest

@testable import FileServer
@testable import ServerSupport

final class ServerMetricsTests: XCTestCase {
  private var logger: Logger {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
  }

  /// The lines that the servers have without swift-metrics.
  private func lines(of contexts: [AIOStatistics]) -> [String] {
    AIOStatistics.series.flatMap { series in
      let kind = series.kind == .counter ? "counter" : "gauge"
      return ["# HELP \(series.name) \(series.help)", "# TYPE \(series.name) \(kind)"]
        + contexts.enumerated().map { number, statistics in
          let value = series.value(statistics)
          return "\(series.name){context=\"\(number)\"} "
            + (Int(exactly: value).map(String.init) ?? "\(value)")
        }
    }
  }

  /// The text of the metrics, and the statistics that it is of: those that the contexts had before
  /// and after. A loop that ends a turn in between has others, and the text is made once more.
  private func text(
    of metrics: ContextMetrics?, _ contexts: [AIOContext]
  ) async -> (text: String, statistics: [AIOStatistics]) {
    let deadline = ContinuousClock.now + .seconds(30)
    var text = MetricsText()
    var (before, after) = (contexts.map(\.statistics), [AIOStatistics]())
    repeat {
      text = MetricsText()
      metrics?.add(to: &text)
      after = contexts.map(\.statistics)
      if before == after { return (text.text, after) }
      before = after
      await Task.yield()
    } while ContinuousClock.now < deadline
    XCTFail("the contexts do not settle")
    return (text.text, after)
  }

  /// Name, kind, help, labels and value of all statistics, of two contexts with different ones.
  func testTheContextsTextIsThatWithoutSwiftMetrics() async throws {
    let contexts = [try AIOContext(queueDepth: 8), try AIOContext(queueDepth: 8)]
    let temporary = try TemporaryFile()
    let buffer = AIOUniqueBuffer(count: 4096)
    let factory = PrometheusMetricsFactory()
    var metrics: ContextMetrics? = try ContextMetrics(contexts, factory: factory)
    for round in 1...3 {
      try await contexts[0].write(temporary.file, at: 0, from: buffer)
      if round == 2 { try await contexts[1].write(temporary.file, at: 0, from: buffer) }
      let (text, statistics) = await text(of: metrics, contexts)
      let (lines, expected) = (text.split(separator: "\n"), lines(of: statistics))
      XCTAssertEqual(lines.count, expected.count)
      XCTAssertEqual(Set(lines.map(String.init)).symmetricDifference(expected), [])
    }
    metrics = nil
    var text = MetricsText()
    factory.add(to: &text)
    XCTAssertEqual(text.text, "")
    for context in contexts { await context.close() }
    XCTAssertEqual(contexts[0].statistics.succeeded, 3)
  }

  /// A server in this process, and a counter of this test.
  func testAServerServesWhatOthersReport() async throws {
    let directory = FilePath(
      "\(ProcessInfo.processInfo.environment["TMPDIR"] ?? "/var/tmp")/aio-\(UUID().uuidString)")
    try FileManager.default.createDirectory(
      atPath: directory.string, withIntermediateDirectories: false)
    addTeardownBlock { try? FileManager.default.removeItem(atPath: directory.string) }
    Program.bootstrapMetrics()
    let counter = Counter(label: "test.library.calls", dimensions: [("library", "a \"b\"")])
    let socket = directory.appending("metrics").string
    let server = try Server(
      root: Root(directory, caching: .automatic, lists: false, isPrecompressed: false),
      listeners: [Listener(.unix(path: directory.appending("socket")))],
      metrics: try MetricsServer(
        try XCTUnwrap(MetricsAddress(argument: "unix:\(socket)")), logger: logger),
      settings: Settings(), log: nil, logger: logger)
    let ended = expectation(description: "the server has ended")
    try server.start { _ in ended.fulfill() }
    for calls in 1...2 {
      counter.increment()
      let families = try scrape(socket)
      XCTAssertEqual(families["test_library_calls"], ["{library=\"a \\\"b\\\"\"} \(calls)"])
      XCTAssertEqual(families["aio_httpd_requests_total"], [" 0"])
      for series in AIOStatistics.series {
        XCTAssertEqual(families[series.name]?.count, 1, series.name)
      }
    }
    counter.destroy()
    XCTAssertNil(try scrape(socket)["test_library_calls"])
    server.queue.async { server.shutDown(because: "the test ends") }
    await fulfillment(of: [ended], timeout: 30)
  }

  /// - Returns: By family, what follows its name in its lines.
  private func scrape(_ path: String) throws -> [String: [String]] {
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(filePath: "/usr/bin/curl")
    process.arguments = [
      "--silent", "--fail", "--max-time", "30", "--unix-socket", path, "http://localhost/metrics",
    ]
    process.standardOutput = output
    try process.run()
    let data = try output.fileHandleForReading.readToEnd() ?? Data()
    process.waitUntilExit()
    XCTAssertEqual(process.terminationStatus, 0)
    var families: [String: [String]] = [:]
    var family = ""
    for line in String(decoding: data, as: UTF8.self).split(separator: "\n") {
      if line.hasPrefix("# TYPE ") {
        family = String(line.split(separator: " ")[2])
        XCTAssertNil(families.updateValue([], forKey: family), "\(family) is there twice")
      } else if !line.hasPrefix("#") {
        families[family, default: []].append(String(line.dropFirst(family.count)))
      }
    }
    return families
  }
}
#endif
