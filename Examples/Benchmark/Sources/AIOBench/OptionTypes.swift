// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

/// Refuses an option's value that is outside its range.
func require<Value: Comparable>(
  _ option: String, _ value: Value, _ range: ClosedRange<Value>
) throws {
  guard range.contains(value) else {
    throw ValidationError("--\(option) \(value): \(range.lowerBound) to \(range.upperBound)")
  }
}

/// A number of bytes, written as `512`, `4k`, `1M` or `2G`. The units are powers of 1024.
struct Size: ExpressibleByArgument, CustomStringConvertible {
  let bytes: Int
  init(_ bytes: Int) { self.bytes = bytes }

  init?(argument: String) {
    let units = ["k": 10, "m": 20, "g": 30, "t": 40]
    let text = argument.lowercased()
    if let shift = text.last.flatMap({ units[String($0)] }) {
      guard let number = Int(text.dropLast()), number < 1 << 20 else { return nil }
      bytes = number << shift
    } else {
      guard let number = Int(text) else { return nil }
      bytes = number
    }
    guard bytes > 0 else { return nil }
  }

  var description: String {
    for (unit, shift) in [("G", 30), ("M", 20), ("k", 10)] where bytes % (1 << shift) == 0 {
      return "\(bytes >> shift)\(unit)"
    }
    return "\(bytes)"
  }
  var defaultValueDescription: String { description }
}

/// Numbers separated by commas, each 1 to 65535: queue depths, or connections.
struct Depths: ExpressibleByArgument {
  let values: [Int]
  init(_ values: [Int]) { self.values = values }
  init?(argument: String) {
    let parts = argument.split(separator: ",").map { Int($0) }
    guard !parts.isEmpty, parts.allSatisfy({ $0 != nil && (1...65535).contains($0!) }) else {
      return nil
    }
    values = parts.compactMap { $0 }
  }
  var defaultValueDescription: String { values.map(String.init).joined(separator: ",") }
}
