// SPDX-License-Identifier: Apache-2.0

import DispatchAIO

/// The numbers of a server in the text format of Prometheus, version 0.0.4, which OpenMetrics'
/// collectors and most others read, too.
public struct MetricsText: Sendable {
  /// What a number is: a total, which only grows, or a level.
  public enum Kind: String, Sendable {
    case counter, gauge
  }

  public private(set) var text = ""

  public init() {}

  /// Adds a family of one number.
  public mutating func add(_ kind: Kind, _ name: String, _ help: String, _ value: Int) {
    add(kind, name, help, [("", Double(value))])
  }

  /// Adds the statistics of contexts, each with the label `context`.
  public mutating func add(_ contexts: [(name: String, statistics: AIOStatistics)]) {
    for series in AIOStatistics.series {
      add(
        series.kind == .counter ? .counter : .gauge, series.name, series.help,
        contexts.map { ("{context=\"\($0.name)\"}", series.value($0.statistics)) })
    }
  }

  private mutating func add(
    _ kind: Kind, _ name: String, _ help: String, _ samples: [(labels: String, value: Double)]
  ) {
    text += "# HELP \(name) \(help)\n# TYPE \(name) \(kind.rawValue)\n"
    for (labels, value) in samples {
      // A whole number without a point, as people read it.
      let number = Int(exactly: value).map(String.init) ?? "\(value)"
      text += "\(name)\(labels) \(number)\n"
    }
  }
}
