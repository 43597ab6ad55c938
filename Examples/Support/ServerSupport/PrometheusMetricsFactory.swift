// SPDX-License-Identifier: Apache-2.0

#if Metrics
import CoreMetrics
import DispatchAIO

/// The metrics of swift-metrics in memory, for ``MetricsText``.
///
/// - Counters are counters; meters, gauges and recorders that do not aggregate are gauges.
///   Recorders that do, and timers (in seconds), are summaries: the sum and the number of values.
/// - A label is a family, whose name it is as far as Prometheus allows; the dimensions are the
///   labels there. Metrics that are the same in the text are the same metric.
/// - The first metric of a family decides what the family is. Metrics of another kind work, and are
///   not in the text, because a collector refuses a family that is there twice.
/// - A metric is in the text until whoever made it, or all who did, have destroyed it.
final class PrometheusMetricsFactory: MetricsFactory {
  private struct Family {
    let kind: MetricsText.Kind
    let help: String
    /// By labels.
    var metrics: [String: (metric: PrometheusMetric, uses: Int)] = [:]
  }

  /// What is said of contexts' statistics, by name. Of others it is said what swift-metrics calls
  /// them.
  private let help = Dictionary(
    uniqueKeysWithValues: AIOStatistics.series.map { ($0.name, $0.help) })
  /// By name.
  private let families = Lock<[String: Family]>([:])

  /// Adds all families, sorted by name.
  func add(to text: inout MetricsText) {
    // Rendered outside the lock, so that nobody waits who makes a metric.
    let families = families.withLock { $0 }
    for (name, family) in families.sorted(by: { $0.key < $1.key }) {
      let metrics = family.metrics.sorted { $0.key < $1.key }
      text.add(family.kind, name, family.help, metrics.flatMap { $0.value.metric.samples })
    }
  }

  // MARK: Metrics made

  func makeCounter(label: String, dimensions: [(String, String)]) -> any CounterHandler {
    metric(.counter, label, dimensions, "counter")
  }

  func makeFloatingPointCounter(
    label: String, dimensions: [(String, String)]
  ) -> any FloatingPointCounterHandler {
    metric(.counter, label, dimensions, "counter")
  }

  func makeMeter(label: String, dimensions: [(String, String)]) -> any MeterHandler {
    metric(.gauge, label, dimensions, "meter")
  }

  func makeRecorder(
    label: String, dimensions: [(String, String)], aggregate: Bool
  ) -> any RecorderHandler {
    metric(aggregate ? .summary : .gauge, label, dimensions, aggregate ? "recorder" : "gauge")
  }

  func makeTimer(label: String, dimensions: [(String, String)]) -> any TimerHandler {
    metric(.summary, label, dimensions, "timer, in seconds")
  }

  private func metric(
    _ kind: MetricsText.Kind, _ label: String, _ dimensions: [(String, String)], _ noun: String
  ) -> PrometheusMetric {
    let name = MetricsText.name(label)
    let labels = MetricsText.labels(dimensions)
    let help = help[name] ?? "\(label): \(noun)."
    return families.withLock { families in
      var family = families[name] ?? Family(kind: kind, help: help)
      guard family.kind == kind else { return PrometheusMetric(kind, name, labels) }
      var entry = family.metrics[labels] ?? (PrometheusMetric(kind, name, labels), 0)
      entry.uses += 1
      family.metrics[labels] = entry
      families[name] = family
      return entry.metric
    }
  }

  // MARK: Metrics destroyed

  func destroyCounter(_ handler: any CounterHandler) { release(handler) }
  func destroyFloatingPointCounter(_ handler: any FloatingPointCounterHandler) { release(handler) }
  func destroyMeter(_ handler: any MeterHandler) { release(handler) }
  func destroyRecorder(_ handler: any RecorderHandler) { release(handler) }
  func destroyTimer(_ handler: any TimerHandler) { release(handler) }

  private func release(_ handler: AnyObject) {
    guard let metric = handler as? PrometheusMetric else { return }
    families.withLock { families in
      guard var family = families[metric.name], let entry = family.metrics[metric.labels],
        entry.metric === metric
      else { return }
      family.metrics[metric.labels] = entry.uses > 1 ? (metric, entry.uses - 1) : nil
      families[metric.name] = family.metrics.isEmpty ? nil : family
    }
  }
}

/// A metric of any kind. May be used from any thread.
private final class PrometheusMetric: CounterHandler, FloatingPointCounterHandler, MeterHandler,
  RecorderHandler, TimerHandler
{
  private struct State {
    /// The total, the level, or the sum of a summary.
    var value = 0.0
    /// The number of values in a summary.
    var count = 0
  }

  let name: String
  let labels: String
  private let kind: MetricsText.Kind
  private let state = Lock(State())

  init(_ kind: MetricsText.Kind, _ name: String, _ labels: String) {
    (self.kind, self.name, self.labels) = (kind, name, labels)
  }

  var samples: [MetricsText.Sample] {
    let state = state.withLock { $0 }
    return switch kind {
    case .counter, .gauge: [.init(labels: labels, value: state.value)]
    case .summary:
      [
        .init(suffix: "_sum", labels: labels, value: state.value),
        .init(suffix: "_count", labels: labels, value: Double(state.count)),
      ]
    }
  }

  func increment(by amount: Int64) { increment(by: Double(amount)) }

  func increment(by amount: Double) {
    // A counter that decreases has begun anew, for a collector.
    guard kind != .counter || amount > 0 else { return }
    state.withLock { $0.value += amount }
  }

  func decrement(by amount: Double) { state.withLock { $0.value -= amount } }

  func reset() { set(0.0) }

  func set(_ value: Int64) { set(Double(value)) }

  func set(_ value: Double) { state.withLock { $0.value = value } }

  func record(_ value: Int64) { record(Double(value)) }

  func record(_ value: Double) {
    guard kind == .summary else { return set(value) }
    state.withLock {
      $0.value += value
      $0.count += 1
    }
  }

  func recordNanoseconds(_ duration: Int64) { record(Double(duration) / 1_000_000_000) }
}
#endif
