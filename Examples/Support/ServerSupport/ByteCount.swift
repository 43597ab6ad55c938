// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

/// A number of bytes, written as `4096`, `64k`, `64KiB` or `1.5G`. The units are powers of 1024.
public struct ByteCount: CustomStringConvertible, Sendable, Equatable {
  public let bytes: Int

  private static let units = [
    ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1),
  ]

  public init(_ bytes: Int) { self.bytes = bytes }

  /// The `transform` of an option: the parser's own conversion could not say what is accepted.
  @Sendable
  public static func parse(_ argument: String) throws -> ByteCount {
    let digits = argument.prefix { $0.isNumber || $0 == "." }
    let factor: Double? =
      switch argument.dropFirst(digits.count).lowercased() {
      case "", "b": 1
      case "k", "kb", "kib": 1024
      case "m", "mb", "mib": 1_048_576
      case "g", "gb", "gib": 1_073_741_824
      case "t", "tb", "tib": 1_099_511_627_776
      default: nil
      }
    guard let factor, let number = Double(digits), number * factor < 9e18 else {
      throw ValidationError("a number of bytes, as 4096, 64KiB, 1.5M or 2G, below 8000000TiB")
    }
    return ByteCount(Int(number * factor))
  }

  /// The number with one decimal.
  public var description: String {
    for (unit, size) in Self.units where bytes >= size {
      if bytes % size == 0 { return "\(bytes / size)\(unit)" }
      return "\((Double(bytes) / Double(size) * 10).rounded() / 10)\(unit)"
    }
    return "\(bytes)B"
  }

  /// The number, not rounded: a size that is refused must not look like another.
  public var exactly: String {
    let (unit, size) = Self.units.first { bytes >= $0.1 && bytes % $0.1 == 0 } ?? ("B", 1)
    return "\(bytes / size)\(unit)"
  }
}
