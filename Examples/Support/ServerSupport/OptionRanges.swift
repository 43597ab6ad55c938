// SPDX-License-Identifier: Apache-2.0

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

/// Refuses a number of seconds that is negative, or more than 30 years.
public func require(seconds: Double, for option: String) throws {
  guard seconds >= 0 && seconds <= 1e9 else {
    throw ValidationError("--\(option) \(seconds): seconds, 0 or more")
  }
}
