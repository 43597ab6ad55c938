// SPDX-License-Identifier: Apache-2.0

import Foundation

/// What a request costs; `nil` where it has not been counted.
struct Cost: Codable, CustomStringConvertible {
  var allocations: Double?
  var systemCalls: Double?
  /// The number of times that a thread waited and was woken.
  var wakeUps: Double?
  /// In user space, of all threads.
  var instructions: Double?

  /// The kinds of cost, and how much of each is noise: a run ends and begins with a hand-over.
  static let kinds:
    [(name: String, path: WritableKeyPath<Cost, Double?> & Sendable, noise: Double)] = [
      ("allocations", \.allocations, 0.01), ("system calls", \.systemCalls, 0.02),
      ("wake-ups", \.wakeUps, 0.02), ("instructions", \.instructions, 20),
    ]

  /// The lower of each of two costs of the same row.
  func least(_ other: Cost) -> Cost {
    var least = self
    for kind in Self.kinds {
      guard let value = other[keyPath: kind.path] else { continue }
      least[keyPath: kind.path] = min(least[keyPath: kind.path] ?? value, value)
    }
    return least
  }

  var description: String {
    Self.kinds.compactMap { kind in
      self[keyPath: kind.path].map {
        "\($0.text(kind.name == "instructions" ? 0 : 3)) \(kind.name)"
      }
    }.joined(separator: ", ")
  }
}

/// The thresholds, by the names of the rows.
struct CostTable {
  private var rows: [String: Cost]

  static func read(_ path: String) throws -> CostTable {
    let data: Data
    do {
      data = try Data(contentsOf: URL(fileURLWithPath: path))
    } catch {
      throw BenchError(
        """
        \(path) cannot be read: give the thresholds with --file, from the top of the package or by \
        a path, or write them with --update
        """)
    }
    return CostTable(rows: try JSONDecoder().decode([String: Cost].self, from: data))
  }

  /// Puts new costs in the place of the old ones; what was not counted stays.
  static func update(_ path: String, with measured: [String: Cost]) throws {
    var rows = (try? read(path))?.rows ?? [:]
    for (name, cost) in measured {
      for kind in Cost.kinds {
        guard let value = cost[keyPath: kind.path] else { continue }
        rows[name, default: Cost()][keyPath: kind.path] = (value * 1000).rounded() / 1000
      }
    }
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    var data = try encoder.encode(rows)
    data.append(UInt8(ascii: "\n"))
    try data.write(to: URL(fileURLWithPath: path))
  }

  /// - Parameter margin: the part of a threshold by which it may be passed; ten times as much for
  ///   what is handed over to other threads.
  /// - Returns: a line for each cost above its threshold.
  func compare(with measured: [String: Cost], margin: Double) -> [String] {
    var lines: [String] = []
    let handedOver = Set(CostWorkload.all.filter(\.verb.isHandedOver).map(\.name))
    for (name, cost) in measured.sorted(by: { $0.key < $1.key }) {
      let allowed = handedOver.contains(name) ? margin * 10 : margin
      for kind in Cost.kinds {
        guard let value = cost[keyPath: kind.path] else { continue }
        guard let threshold = rows[name]?[keyPath: kind.path] else {
          lines.append("\(name): no threshold for \(kind.name)")
          continue
        }
        if value > threshold * (1 + allowed) + kind.noise {
          lines.append("\(name): \(value.text(3)) \(kind.name), where \(threshold) are allowed")
        }
      }
    }
    return lines
  }
}
