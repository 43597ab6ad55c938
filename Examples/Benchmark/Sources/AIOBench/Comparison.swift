// SPDX-License-Identifier: Apache-2.0

/// The summary of a comparison: medians over its rounds.
enum Comparison {
  struct Row {
    var engine: String
    var depth: Int
    var rate: Double
    var rateRatio: Double
    var processor: Double
    var processorRatio: Double
    var latency50: Double
    var latency999: Double
    var allocations: Double?
    var wakeUps: Double?
    var stall: Double?
  }

  /// - Parameter measurements: those of one depth, in the order in which they were made.
  static func rows(_ measurements: [Measurement], _ names: [String]) -> [Row] {
    let first = measurements.filter { $0.engine == names.first }
    return names.compactMap { name in
      let own = measurements.filter { $0.engine == name }
      guard let one = own.first else { return nil }
      // The two measurements of each round.
      let pairs = Array(zip(own, first))
      func perRequest(_ value: KeyPath<Measurement, Int?>) -> Double? {
        one[keyPath: value] == nil
          ? nil
          : median(own.map { Double($0[keyPath: value] ?? 0) / Double(max(1, $0.requests)) })
      }
      return Row(
        engine: name, depth: one.depth, rate: median(own.map(\.requestsPerSecond)),
        rateRatio: median(pairs.map { $0.requestsPerSecond / $1.requestsPerSecond }),
        processor: median(own.map(\.processorTime)),
        processorRatio: median(pairs.map { $0.processorTime / $1.processorTime }),
        latency50: median(own.map { $0.latency["50"] ?? 0 }),
        latency999: median(own.map { $0.latency["99.9"] ?? 0 }),
        allocations: perRequest(\.allocations), wakeUps: perRequest(\.wakeUps),
        stall: one.longestStall == nil ? nil : own.compactMap(\.longestStall).max())
    }
  }
}
