// SPDX-License-Identifier: Apache-2.0
//
// The ranges of options. A refusal says what was given, and both ends of what may be.

import ArgumentParser

/// Refuses an option's value that is outside its range.
///
/// - Parameter unit: the unit of the value, for the message.
public func require(
  _ option: String, _ value: Int, in range: ClosedRange<Int>, unit: String? = nil
) throws {
  guard range.contains(value) else {
    let unit = unit.map { "\($0), " } ?? ""
    throw ValidationError(
      "--\(option) \(value): \(unit)\(range.lowerBound) to \(range.upperBound)")
  }
}

/// Refuses a size that is outside its range, or no multiple of a unit.
public func require(
  _ option: String, _ value: ByteCount, in range: ClosedRange<Int>, multipleOf unit: Int = 1
) throws {
  guard range.contains(value.bytes), value.bytes % unit == 0 else {
    let ends = "\(ByteCount(range.lowerBound)) to \(ByteCount(range.upperBound))"
    throw ValidationError(
      "--\(option) \(value.exactly): \(ends)"
        + (unit > 1 ? ", a multiple of \(ByteCount(unit))" : ""))
  }
}

/// Refuses a number of seconds that no timer can keep: less than a millisecond, which may round to
/// no interval at all, more than 30 years, or no number.
///
/// - Parameter allowsZero: whether the option has a meaning for 0, such as never.
public func require(seconds: Double, for option: String, allowsZero: Bool = false) throws {
  guard (0.001...1e9).contains(seconds) || allowsZero && seconds == 0 else {
    throw ValidationError(
      "--\(option) \(seconds): seconds, \(allowsZero ? "0, or " : "")0.001 to 1000000000")
  }
}
