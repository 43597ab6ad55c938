// SPDX-License-Identifier: Apache-2.0
//
// What is in /metrics beside a server's own numbers. With the trait Metrics it takes the way of
// swift-metrics, so that what libraries report there is in the text, too; the text of the contexts
// is the same either way.

import DispatchAIO

#if Metrics
import CoreMetrics
import DispatchAIOMetrics
#endif

/// The statistics of contexts, each with its index as the label `context`; with the trait Metrics,
/// and all that is reported to swift-metrics in this process.
struct ContextMetrics: Sendable {
  #if Metrics
  private let factory: PrometheusMetricsFactory
  private let contexts: [AIOContextMetrics]

  init(
    _ contexts: [AIOContext], factory: PrometheusMetricsFactory = .ofProcess
  ) throws(AIOError) {
    self.factory = factory
    var metrics: [AIOContextMetrics] = []
    for (number, context) in contexts.enumerated() {
      metrics.append(try AIOContextMetrics(context, name: "\(number)", factory: factory))
    }
    self.contexts = metrics
  }

  /// Adds the numbers as they are now. May be called from any thread.
  func add(to text: inout MetricsText) {
    for context in contexts { context.publish() }
    factory.add(to: &text)
  }
  #else
  private let contexts: [AIOContext]

  init(_ contexts: [AIOContext]) throws(AIOError) { self.contexts = contexts }

  /// Adds the numbers as they are now. May be called from any thread.
  func add(to text: inout MetricsText) {
    let statistics = contexts.map(\.statistics)
    for series in AIOStatistics.series {
      let samples = statistics.enumerated().map { number, statistics in
        MetricsText.Sample(
          labels: MetricsText.labels([("context", "\(number)")]), value: series.value(statistics))
      }
      text.add(series.kind == .counter ? .counter : .gauge, series.name, series.help, samples)
    }
  }
  #endif
}

extension Program {
  /// With the trait Metrics, makes the factory that `/metrics` renders that of the process. What
  /// has made a metric before reports to nobody.
  static func bootstrapMetrics() {
    #if Metrics
    _ = PrometheusMetricsFactory.ofProcess
    #endif
  }
}

#if Metrics
extension PrometheusMetricsFactory {
  /// The factory of `MetricsSystem`, from the first access on: it can be set once in a process.
  static let ofProcess = {
    let factory = PrometheusMetricsFactory()
    MetricsSystem.bootstrap(factory)
    return factory
  }()
}
#endif
