// SPDX-License-Identifier: Apache-2.0
//
// What the servers' factory makes of the metrics of swift-metrics.

#if Metrics
import CoreMetrics
import Dispatch
import XCTest

@testable import ServerSupport

final class PrometheusMetricsFactoryTests: XCTestCase {
  private let factory = PrometheusMetricsFactory()

  private var text: String { factory.text }

  func testEachKindOfMetricIsAFamily() {
    XCTAssertEqual(text, "")
    let counter = Counter(label: "a_total", factory: factory)
    counter.increment(by: 3)
    counter.increment()
    let fractions = FloatingPointCounter(label: "b", factory: factory)
    fractions.increment(by: 0.25)
    fractions.increment(by: 0.5)
    let meter = Meter(label: "c", factory: factory)
    meter.set(5)
    meter.increment(by: 2)
    meter.decrement(by: 0.5)
    Gauge(label: "d", factory: factory).record(-7)
    let recorder = Recorder(label: "e", factory: factory)
    recorder.record(1)
    recorder.record(2.5)
    let timer = Timer(label: "f", factory: factory)
    timer.recordMilliseconds(1500)
    timer.recordNanoseconds(500_000_000)
    XCTAssertEqual(
      text,
      """
      # HELP a_total a_total: counter.
      # TYPE a_total counter
      a_total 4
      # HELP b b: counter.
      # TYPE b counter
      b 0.75
      # HELP c c: meter.
      # TYPE c gauge
      c 6.5
      # HELP d d: gauge.
      # TYPE d gauge
      d -7
      # HELP e e: recorder.
      # TYPE e summary
      e_sum 3.5
      e_count 2
      # HELP f f: timer, in seconds.
      # TYPE f summary
      f_sum 2
      f_count 2

      """)
  }

  func testACounterNeverDecreasesUnlessItIsReset() {
    let counter = FloatingPointCounter(label: "a", factory: factory)
    counter.increment(by: 2)
    counter.increment(by: -1)
    counter.increment(by: Double.nan)
    XCTAssert(text.hasSuffix("\na 2\n"), text)
    counter.reset()
    XCTAssert(text.hasSuffix("\na 0\n"), text)
  }

  /// What is no number in Swift's spelling has one of its own there.
  func testNumbersThatAreNone() {
    let meter = Meter(label: "a", factory: factory)
    for (value, word) in [(Double.nan, "NaN"), (.infinity, "+Inf"), (-.infinity, "-Inf")] {
      meter.set(value)
      XCTAssert(text.hasSuffix("\na \(word)\n"), text)
    }
  }

  // MARK: Names and labels

  func testADimensionIsALabel() {
    for code in [200, 404] {
      Counter(
        label: "answers", dimensions: [("path", "/"), ("code", "\(code)")], factory: factory
      ).increment(by: code)
    }
    Recorder(label: "sizes", dimensions: [("path", "/")], factory: factory).record(9)
    XCTAssertEqual(
      text,
      """
      # HELP answers answers: counter.
      # TYPE answers counter
      answers{code="200",path="/"} 200
      answers{code="404",path="/"} 404
      # HELP sizes sizes: recorder.
      # TYPE sizes summary
      sizes_sum{path="/"} 9
      sizes_count{path="/"} 1

      """)
  }

  func testNamesAndValuesCannotForgeLines() {
    Counter(
      label: "a.b\r\nforged 1\\", dimensions: [("x y:z", "back\\slash \"quote\" \r\nforged 1")],
      factory: factory
    ).increment()
    XCTAssertEqual(
      text,
      "# HELP a_b_forged_1_ a.b\r\\nforged 1\\\\: counter.\n# TYPE a_b_forged_1_ counter\n"
        + "a_b_forged_1_{x_y_z=\"back\\\\slash \\\"quote\\\" \r\\nforged 1\"} 1\n")
    for (label, name) in [
      ("http.server:rate", "http_server:rate"), ("1st", "_1st"), ("", "_"), ("größe", "gr__e"),
      ("_", "_"), ("٣", "_"),
    ] {
      XCTAssertEqual(MetricsText.name(label), name)
    }
    XCTAssertEqual(MetricsText.labels([]), "")
  }

  /// A collector refuses a line, or a label, that is there twice.
  func testWhatIsTheSameInTheTextIsTheSameMetric() {
    Counter(label: "a.b", dimensions: [("x", "1"), ("y", "2")], factory: factory).increment()
    Counter(label: "a_b", dimensions: [("y", "2"), ("x", "1")], factory: factory).increment()
    Counter(label: "a_b", dimensions: [("k.k", "1"), ("k_k", "2")], factory: factory).increment()
    XCTAssertEqual(
      text,
      """
      # HELP a_b a.b: counter.
      # TYPE a_b counter
      a_b{k_k="1"} 1
      a_b{x="1",y="2"} 2

      """)
  }

  func testAFamilyHasOneKind() {
    let counter = Counter(label: "a", factory: factory)
    let meter = Meter(label: "a", factory: factory)
    counter.increment()
    meter.set(5)
    XCTAssertEqual(text, "# HELP a a: counter.\n# TYPE a counter\na 1\n")
    // The one that is not in the text takes nothing with it.
    meter.destroy()
    XCTAssertEqual(text, "# HELP a a: counter.\n# TYPE a counter\na 1\n")
  }

  func testTheServersOwnFamiliesAreNotThereTwice() {
    var text = MetricsText()
    text.add(.counter, "own_total", "The server's.", 1)
    text.add(.gauge, "sizes_count", "The server's.", 2)
    let own = text.text
    Counter(label: "own_total", factory: factory).increment(by: 7)
    Recorder(label: "sizes", factory: factory).record(7)
    factory.add(to: &text)
    XCTAssertEqual(text.text, own)
  }

  // MARK: The end of a metric

  func testADestroyedMetricIsGone() {
    let counter = Counter(label: "a", factory: factory)
    let fractions = FloatingPointCounter(label: "b", factory: factory)
    let meter = Meter(label: "c", factory: factory)
    let recorder = Recorder(label: "d", factory: factory)
    let timer = Timer(label: "e", factory: factory)
    let other = Counter(label: "a", dimensions: [("x", "1")], factory: factory)
    counter.destroy()
    fractions.destroy()
    meter.destroy()
    recorder.destroy()
    timer.destroy()
    XCTAssertEqual(text, "# HELP a a: counter.\n# TYPE a counter\na{x=\"1\"} 0\n")
    other.destroy()
    XCTAssertEqual(text, "")
    // Used by who has not noticed: harmless. Made anew: from nothing.
    counter.increment()
    XCTAssertEqual(text, "")
    Gauge(label: "a", factory: factory).record(1)
    XCTAssertEqual(text, "# HELP a a: gauge.\n# TYPE a gauge\na 1\n")
    counter.destroy()
    XCTAssertEqual(text, "# HELP a a: gauge.\n# TYPE a gauge\na 1\n")
  }

  func testAMetricThatTwoHaveMadeIsThereUntilBothHaveDestroyedIt() {
    let counters = [Counter(label: "a", factory: factory), Counter(label: "a", factory: factory)]
    for counter in counters { counter.increment() }
    counters[0].destroy()
    XCTAssert(text.hasSuffix("\na 2\n"), text)
    counters[1].increment()
    XCTAssert(text.hasSuffix("\na 3\n"), text)
    counters[1].destroy()
    XCTAssertEqual(text, "")
  }

  // MARK: Threads

  /// Nothing is lost of what many threads count at the same time.
  func testManyThreadsCount() {
    let (threads, rounds) = (8, 50_000)
    let counter = Counter(label: "a", factory: factory)
    let meter = Meter(label: "b", factory: factory)
    let recorder = Recorder(label: "c", factory: factory)
    DispatchQueue.concurrentPerform(iterations: threads) { _ in
      for _ in 0..<rounds {
        counter.increment()
        meter.increment(by: 2.0)
        meter.decrement(by: 1.0)
        recorder.record(1)
      }
    }
    let total = threads * rounds
    XCTAssertEqual(
      text.split(separator: "\n").filter { !$0.hasPrefix("#") },
      ["a \(total)", "b \(total)", "c_sum \(total)", "c_count \(total)"])
  }

  /// Nor while they make metrics, destroy them and render.
  func testManyThreadsMakeAndDestroy() {
    let (threads, rounds) = (8, 2000)
    DispatchQueue.concurrentPerform(iterations: threads) { [factory] thread in
      let fractions = FloatingPointCounter(label: "fractions", factory: factory)
      for round in 0..<rounds {
        Counter(label: "counter", factory: factory).increment()
        fractions.increment(by: 0.5)
        Timer(label: "timer", factory: factory).recordSeconds(1)
        let gauge = Gauge(label: "gauge\(thread)", factory: factory)
        gauge.record(round)
        if round % 100 == 0 { XCTAssert(factory.text.contains("\ngauge\(thread) \(round)\n")) }
        gauge.destroy()
      }
    }
    XCTAssertEqual(
      text.split(separator: "\n").filter { !$0.hasPrefix("#") },
      [
        "counter \(threads * rounds)", "fractions \(threads * rounds / 2)",
        "timer_sum \(threads * rounds)", "timer_count \(threads * rounds)",
      ])
  }
}

extension PrometheusMetricsFactory {
  fileprivate var text: String {
    var text = MetricsText()
    add(to: &text)
    return text.text
  }
}
#endif
