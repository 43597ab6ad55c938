// SPDX-License-Identifier: Apache-2.0

#if Metrics
public import CoreMetrics
public import Dispatch
public import DispatchAIO

/// The statistics of a context as metrics of swift-metrics.
///
/// ```swift
/// let metrics = try AIOContextMetrics(context, name: "journal", every: .seconds(10))
/// ```
///
/// - Totals are counters, such as `aio_requests_accepted_total`; levels, and the largest values so
///   far, are gauges, such as `aio_requests_in_kernel`. There is one of each property of
///   ``DispatchAIO/AIOStatistics``, which says what it counts.
/// - Each has the dimension `context` with the given name, so that several contexts are told apart.
/// - What has not been published is published when the object is dropped and, if there is an
///   interval, when the context closes, so that the counters end with all that was done. The
///   metrics of an object that is dropped are then destroyed in the factory.
///
/// - Safety: `@unchecked Sendable` because the handlers of swift-metrics may be used from any
///   thread, and `published` is under a lock.
public final class AIOContextMetrics: @unchecked Sendable {
  private enum Metric {
    case counter(Counter)
    case gauge(Gauge)
  }

  private let context: AIOContext
  private let metrics: [(series: AIOStatistics.Series, metric: Metric)]
  /// What was published last.
  private let published = Lock<AIOStatistics?>(nil)
  private let timer: AIOTimerSource?

  /// Makes the metrics of a context.
  ///
  /// - Parameters:
  ///   - context: The context, which the metrics hold.
  ///   - name: The value of the dimension `context`.
  ///   - interval: The time between publications, by a timer of the context, 1 ms or more; if
  ///     `.never`, they are published by ``publish()`` only.
  ///   - factory: The factory of the metrics; that of `MetricsSystem` unless given.
  /// - Throws: ``DispatchAIO/AIOError`` as ``DispatchAIO/AIOContext/makeTimerSource()``.
  public init(
    _ context: AIOContext, name: String, every interval: DispatchTimeInterval = .never,
    factory: (any MetricsFactory)? = nil
  ) throws(AIOError) {
    let factory = factory ?? MetricsSystem.factory
    let dimensions = [("context", name)]
    self.context = context
    metrics = AIOStatistics.series.map { series in
      switch series.kind {
      case .counter:
        (
          series,
          .counter(Counter(label: series.name, dimensions: dimensions, factory: factory))
        )
      case .gauge:
        (series, .gauge(Gauge(label: series.name, dimensions: dimensions, factory: factory)))
      }
    }
    guard interval != .never else {
      timer = nil
      return
    }
    let timer = try context.makeTimerSource()
    self.timer = timer
    timer.setEventHandler { [weak self] in self?.publish() }
    // The context closes: nobody asks later.
    timer.setCancelHandler { [weak self] in self?.publish() }
    let atLeast = max(interval, .milliseconds(1))
    timer.schedule(deadline: .now() + atLeast, repeating: atLeast)
    timer.activate()
  }

  deinit {
    timer?.cancel()
    publish()
    for (_, metric) in metrics {
      switch metric {
      case .counter(let counter): counter.destroy()
      case .gauge(let gauge): gauge.destroy()
      }
    }
  }

  /// Publishes the statistics as they are now. May be called from any thread, as by what collects
  /// the metrics, just before it does.
  public func publish() {
    // Under the lock, so that of two publications the later one tells the gauges last.
    published.withLock { published in
      let now = context.statistics
      for (series, metric) in metrics {
        let value = series.value(now)
        switch metric {
        case .counter(let counter):
          let growth = value - (published.map(series.value) ?? 0)
          if growth > 0 { counter.increment(by: Int64(growth)) }
        case .gauge(let gauge): gauge.record(value)
        }
      }
      published = now
    }
  }
}

/// - Returns: The longer of two intervals.
private func max(_ a: DispatchTimeInterval, _ b: DispatchTimeInterval) -> DispatchTimeInterval {
  DispatchTime(uptimeNanoseconds: 1) + a < DispatchTime(uptimeNanoseconds: 1) + b ? b : a
}
#endif
