// SPDX-License-Identifier: Apache-2.0

import Logging
import XCTest

@testable import ServerSupport

/// The limit of the log, with a clock that the tests set.
final class LogRateLimitTests: XCTestCase {
  private struct Recorder: LogHandler {
    let lines: Locked<[String]>
    var logLevel = Logger.Level.trace
    var metadata: Logger.Metadata = [:]
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }
    func log(event: LogEvent) { lines.withLock { $0.append(event.message.description) } }
  }

  private let lines = Locked<[String]>([])
  private let now = Locked<Int64>(0)
  private let reports = Locked<[@Sendable () -> Void]>([])

  private func makeLogger() -> (Logger, LogRateLimit) {
    let limit = LogRateLimit(
      now: { [now] in now.withLock { $0 } },
      afterInterval: { [reports] body in reports.withLock { $0.append(body) } })
    let recorder = Recorder(lines: lines)
    var logger = Logger(label: "test") { _ in RateLimitedLogHandler(recorder, limit: limit) }
    logger.logLevel = .trace
    return (logger, limit)
  }

  private func takeLines() -> [String] {
    lines.withLock { lines in
      defer { lines = [] }
      return lines
    }
  }

  private func advance(seconds: Double) { now.withLock { $0 += Int64(seconds * 1e9) } }

  private func runReports() {
    let due = reports.withLock { reports in
      defer { reports = [] }
      return reports
    }
    for report in due { report() }
  }

  func testALineOfAKindTooManyIsCounted() {
    let (logger, _) = makeLogger()
    func refuse(_ number: Int) { logger.warning("refused \(number)") }
    for number in 0..<1000 { refuse(number) }
    // Another kind has a limit of its own.
    logger.error("another")
    XCTAssertEqual(takeLines(), (0..<20).map { "refused \($0)" } + ["another"])
    XCTAssertEqual(reports.withLock { $0.count }, 1, "one report is due for all of a kind")
    advance(seconds: 10)
    runReports()
    XCTAssertEqual(takeLines(), ["… 980 more of these in the last 10 s, the last: refused 999"])
    // 20 again after 10 seconds, then 5 in a second.
    for number in 0..<100 { refuse(number) }
    XCTAssertEqual(takeLines().count, 20)
    advance(seconds: 1)
    for number in 100..<200 { refuse(number) }
    XCTAssertEqual(takeLines(), (100..<105).map { "refused \($0)" })
    // Nothing is reported twice, and nothing where nothing was left out.
    advance(seconds: 9)
    runReports()
    XCTAssertEqual(takeLines(), ["… 175 more of these in the last 10 s, the last: refused 199"])
    runReports()
    XCTAssertEqual(takeLines(), [])
  }

  func testWhatIsLeftIsReportedAtTheEnd() {
    let (logger, limit) = makeLogger()
    for _ in 0..<25 { logger.info("one") }
    for _ in 0..<22 { logger.info("other") }
    _ = takeLines()
    advance(seconds: 2)
    limit.reportAll()
    XCTAssertEqual(
      takeLines().sorted(),
      [
        "… 2 more of these in the last 2 s, the last: other",
        "… 5 more of these in the last 2 s, the last: one",
      ])
  }

  func testWhatWasAskedForIsNotLimited() {
    let (logger, _) = makeLogger()
    for _ in 0..<100 { logger.debug("debug") }
    for _ in 0..<100 { logger.trace("trace") }
    XCTAssertEqual(takeLines().count, 200)
  }

  func testControlCharactersAreEscaped() {
    let (logger, _) = makeLogger()
    logger.info("a\nb\u{1B}[2J")
    logger.debug("\r")
    XCTAssertEqual(takeLines(), ["a\\nb\\u{1B}[2J", "\\r"])
  }
}
