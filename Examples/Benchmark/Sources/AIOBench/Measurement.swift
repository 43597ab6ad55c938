// SPDX-License-Identifier: Apache-2.0

import CEngines
import Dispatch
import Foundation
import Histogram

/// The measurement of one run of one engine.
struct Measurement: Codable, Sendable {
  var engine: String
  var pattern: String
  var blockSize: Int
  var depth: Int
  var requests: Int
  var seconds: Double
  /// The processor time of all threads.
  var userSeconds: Double
  var systemSeconds: Double
  /// The latency in microseconds, by percentile: 50, 90, 99, 99.9, 99.99, 100.
  var latency: [String: Double]
  var allocations: Int?
  /// System calls per request, counted in a run of their own, because counting takes time.
  var systemCallsPerRequest: Double?
  /// The number of times that a thread waited and was woken.
  var wakeUps: Int?
  /// The longest submission on the loop, in microseconds.
  var longestStall: Double?
  var wrong: Int

  var requestsPerSecond: Double { Double(requests) / seconds }
  /// Processor time per request, in microseconds.
  var processorTime: Double { (userSeconds + systemSeconds) / Double(max(1, requests)) * 1e6 }

  static let percentiles: [(name: String, value: Double)] = [
    ("50", 50), ("90", 90), ("99", 99), ("99.9", 99.9), ("99.99", 99.99), ("100", 100),
  ]
}

enum Measuring {
  /// Runs a job on an engine, and measures it.
  ///
  /// - Parameters:
  ///   - countsCalls: whether to count system calls, in a second, short run.
  ///   - progress: called twice a second with the meter, from another thread, if there is a
  ///     terminal.
  static func measure(
    _ name: String, _ job: Job, countsCalls: Bool = false, progress: @escaping (Meter) -> Void
  ) throws -> Measurement {
    if name.hasPrefix("fio-") { return try Fio.measure(name, job) }
    if job.isCold { try job.evict() }
    let engine = try Engines.make(name)
    let meter = Meter(job)
    let ticks = Ticker { progress(meter) }
    let before = usage()
    let allocationsBefore = cengines_allocations()
    do {
      try engine.run(job, meter)
    } catch {
      ticks.stop()
      throw error
    }
    let allocations = cengines_allocations() - allocationsBefore
    let after = usage()
    ticks.stop()
    let histogram = meter.histogram()
    var latency: [String: Double] = [:]
    for (name, value) in Measurement.percentiles {
      latency[name] = Double(histogram.valueAtPercentile(value)) / 1000
    }
    return Measurement(
      engine: name, pattern: job.pattern.rawValue, blockSize: job.blockSize, depth: job.depth,
      requests: meter.requests, seconds: Double(meter.ended - meter.began) / 1e9,
      userSeconds: after.user - before.user, systemSeconds: after.system - before.system,
      latency: latency, allocations: Int(allocations),
      systemCallsPerRequest: countsCalls ? try systemCalls(name, job) : nil,
      wakeUps: after.wakeUps - before.wakeUps,
      longestStall: meter.longestStall.map { Double($0) / 1000 }, wrong: meter.wrong)
  }

  /// System calls per request, from a short run; `nil` if they cannot be counted.
  private static func systemCalls(_ name: String, _ job: Job) throws -> Double? {
    var short = job
    short.runtime = min(1, job.runtime)
    guard cengines_start_counting() == 0 else { return nil }
    let meter = Meter(short)
    try Engines.make(name).run(short, meter)
    let calls = cengines_stop_counting()
    return Double(calls) / Double(max(1, meter.requests))
  }

  /// The number of times so far that a thread waited and was woken.
  static var wakeUps: Int { usage().wakeUps }

  private static func usage() -> (user: Double, system: Double, wakeUps: Int) {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
    return (seconds(usage.ru_utime), seconds(usage.ru_stime), Int(usage.ru_nvcsw))
  }

  /// A timer that calls back twice a second, from a thread of its own, if there is a terminal.
  private final class Ticker {
    private let timer: (any DispatchSourceTimer)?

    init(_ tick: @escaping () -> Void) {
      guard ProgressLine.isShown else {
        timer = nil
        return
      }
      let timer = DispatchSource.makeTimerSource(queue: DispatchQueue(label: "aio-bench.progress"))
      timer.schedule(deadline: .now() + 0.5, repeating: 0.5)
      timer.setEventHandler(handler: tick)
      timer.activate()
      self.timer = timer
    }

    func stop() { timer?.cancel() }
  }
}
