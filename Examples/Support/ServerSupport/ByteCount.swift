// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

/// A number of bytes, written as `4096`, `64k`, `64KiB` or `1.5G`. The units are powers of 1024.
public struct ByteCount: ExpressibleByArgument, CustomStringConvertible, Sendable, Equatable {
  public let bytes: Int

  public init(_ bytes: Int) { self.bytes = bytes }

  public init?(argument: String) {
    let digits = argument.prefix { $0.isNumber || $0 == "." }
    let factor: Double
    switch argument.dropFirst(digits.count).lowercased() {
    case "", "b": factor = 1
    case "k", "kb", "kib": factor = 1024
    case "m", "mb", "mib": factor = 1_048_576
    case "g", "gb", "gib": factor = 1_073_741_824
    case "t", "tb", "tib": factor = 1_099_511_627_776
    default: return nil
    }
    guard let number = Double(digits), number * factor < 9e18 else { return nil }
    bytes = Int(number * factor)
  }

  public var defaultValueDescription: String { description }

  public var description: String {
    for (unit, size) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
    where bytes >= size {
      if bytes % size == 0 { return "\(bytes / size)\(unit)" }
      return "\((Double(bytes) / Double(size) * 10).rounded() / 10)\(unit)"
    }
    return "\(bytes)B"
  }
}
