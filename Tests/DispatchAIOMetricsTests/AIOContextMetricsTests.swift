// SPDX-License-Identifier: Apache-2.0

#if Metrics
import CoreMetrics
import DispatchAIOMetrics
import MetricsTestKit
import XCTest

final class AIOContextMetricsTests: XCTestCase {
  private let dimensions = [("context", "test")]

  /// Waits until a counter has grown to a value.
  private func expect(
    _ value: Int64, _ label: String, _ metrics: TestMetrics, file: StaticString = #filePath,
    line: UInt = #line
  ) async throws {
    let deadline = ContinuousClock.now + .seconds(30)
    while metrics.counterTotal(label: label) < value, ContinuousClock.now < deadline {
      await Task.yield()
    }
    XCTAssertEqual(metrics.counterTotal(label: label), value, label, file: file, line: line)
  }

  func testStatisticsAreCountersAndGauges() async throws {
    let factory = TestMetrics()
    let context = try AIOContext(queueDepth: 8)
    let metrics = try AIOContextMetrics(context, name: "test", factory: factory)
    let temporary = try TemporaryFile()
    var buffer = AIOUniqueBuffer(count: 4096)
    for round in 1...3 {
      try await context.write(temporary.file, at: 0, from: buffer)
      _ = try await context.read(temporary.file, at: 0, into: &buffer)
      // The loop publishes its statistics at the end of a turn.
      while context.statistics.succeeded < round * 2 { await Task.yield() }
      metrics.publish()
      metrics.publish()
      try await expect(Int64(round * 2), "aio_requests_accepted_total", factory)
      try await expect(Int64(round * 2), "aio_requests_succeeded_total", factory)
    }
    let inKernel = try factory.expectGauge("aio_requests_in_kernel", dimensions)
    XCTAssertEqual(inKernel.lastValue, 0)
    let longest = try factory.expectGauge("aio_longest_submit_seconds", dimensions)
    XCTAssertEqual(longest.lastValue, context.statistics.longestSubmit / .seconds(1))
    let turns = try factory.expectCounter("aio_turns_total", dimensions)
    XCTAssertGreaterThan(turns.totalValue, 0)
    await context.close()
  }

  /// There is a series for each property, with a name of its own by the conventions.
  func testThereIsASeriesForEachStatistic() throws {
    let factory = TestMetrics()
    let context = try AIOContext(queueDepth: 8)
    let metrics = try AIOContextMetrics(context, name: "test", factory: factory)
    let properties = Mirror(reflecting: context.statistics).children.count
    let (counters, gauges) = (factory.counters, factory.recorders)
    XCTAssertEqual(counters.count + gauges.count, properties)
    XCTAssertEqual(Set(counters.map(\.label) + gauges.map(\.label)).count, properties)
    for counter in counters { XCTAssert(counter.label.hasSuffix("_total"), counter.label) }
    for gauge in gauges { XCTAssertFalse(gauge.label.hasSuffix("_total"), gauge.label) }
    withExtendedLifetime(metrics) {}
  }

  func testATimerPublishesAndTheCloseDoes() async throws {
    let factory = TestMetrics()
    let context = try AIOContext(queueDepth: 8)
    let metrics = try AIOContextMetrics(
      context, name: "test", every: .milliseconds(5), factory: factory)
    let temporary = try TemporaryFile()
    let buffer = AIOUniqueBuffer(count: 4096)
    try await context.write(temporary.file, at: 0, from: buffer)
    try await expect(1, "aio_requests_accepted_total", factory)
    try await context.write(temporary.file, at: 0, from: buffer)
    await context.close()
    try await expect(2, "aio_requests_accepted_total", factory)
    withExtendedLifetime(metrics) {}
  }

  /// What is not published by then, in a context whose timer is not due for an hour.
  func testADroppedObjectPublishesOnceMore() async throws {
    let factory = TestMetrics()
    let context = try AIOContext(queueDepth: 8)
    let temporary = try TemporaryFile()
    var metrics: AIOContextMetrics? = try AIOContextMetrics(
      context, name: "test", every: .seconds(3600), factory: factory)
    let counter = try factory.expectCounter("aio_requests_accepted_total", dimensions)
    try await context.write(temporary.file, at: 0, from: AIOUniqueBuffer(count: 4096))
    while context.statistics.succeeded < 1 { await Task.yield() }
    XCTAssertEqual(counter.totalValue, 0)
    metrics = nil
    XCTAssertEqual(counter.totalValue, 1)
    // The metrics are destroyed.
    XCTAssertThrowsError(try factory.expectCounter("aio_requests_accepted_total", dimensions))
    _ = metrics
    await context.close()
  }

  func testAClosedContextHasNoTimer() async throws {
    let context = try AIOContext(queueDepth: 8)
    await context.close()
    XCTAssertThrowsError(try AIOContextMetrics(context, name: "test", every: .seconds(1))) {
      XCTAssertEqual(($0 as? AIOError)?.code, .contextClosed)
    }
  }
}
#endif
