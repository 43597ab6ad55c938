// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import ServerSupport

/// The options that say how much of a journal is kept.
struct RetentionOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Trim the oldest segments as long as all together take more than that on disk.",
      valueName: "bytes"), transform: ByteCount.parse)
  var keepBytes: ByteCount?

  @Option(
    help: ArgumentHelp(
      "Trim the segments whose last write is older than that.", valueName: "days"))
  var keepDays: Double?

  static let longest = 36_500.0

  func validate() throws {
    if let keepDays, !(keepDays > 0 && keepDays <= Self.longest) {
      throw ValidationError("--keep-days \(keepDays): days, more than 0, up to 36500")
    }
  }

  var retention: Retention {
    Retention(bytes: keepBytes?.bytes, age: keepDays.map { .seconds($0 * 86_400) })
  }
}
