// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import ServerSupport
import SystemPackage

struct Replay: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write a connection's bytes to standard output.",
    discussion: """
      Exactly the bytes that the client sent and that are in the journal. Exits with 0 when all of \
      them are known to be there. When a part of them is missing, stops before it and exits with \
      1. When bytes may be missing at the end, because the journal is damaged and nothing tells \
      where the connection ended, or at the beginning, because they have been trimmed, says so and \
      exits with 3.
      """)

  /// The exit status when bytes may be missing.
  static let mayBeMissing = ExitCode(3)

  @OptionGroup var journal: JournalArgument

  @Option(help: ArgumentHelp("The connection's number; see list.", valueName: "n"))
  var connection: UInt64

  func run() throws {
    var position: UInt64 = 0
    var isKnown = false
    var isComplete = false
    var isTrimmed = false
    var damage: JournalPlace?
    let output = FileDescriptor.standardOutput
    try JournalReader.reading(journal.directory) { event in
      switch event {
      case .damage(let place, _): damage = damage ?? place
      case .gap(connection, let range, let place):
        throw Failure(
          """
          the bytes of connection \(connection) from position \(range.lowerBound) on are damaged; \
          the next that are there are in \(place)
          """)
      case .record(let record, let payload, _) where record.connection == connection:
        if !isKnown, record.kind != .opened, record.position > 0 {
          (isTrimmed, position) = (true, record.position)
        }
        isKnown = true
        if record.kind == .closed { isComplete = true }
        guard record.kind == .data else { break }
        do {
          try output.writeAll(payload)
        } catch {
          throw Failure("standard output: \(error)")
        }
        position += UInt64(record.length)
      case .batch, .record, .gap, .tornTail, .endOfSegment: break
      }
    }
    if let damage, !isComplete {
      // The damaged bytes may be another connection's.
      try warn(
        isKnown
          ? """
          the journal is damaged, at \(damage) first: bytes of connection \(connection) from \
          position \(position) on may be missing
          """
          : "no connection \(connection) is readable; the journal is damaged, at \(damage) first")
    }
    guard isKnown else {
      throw Failure(
        "no connection \(connection) in \(journal.directory); `echo-to-disk list` shows them")
    }
    if isTrimmed {
      try warn("the beginning of connection \(connection) has been trimmed")
    }
  }

  private func warn(_ text: String) throws {
    let warning = "warning: \(text); `echo-to-disk verify` tells more\n"
    // Nobody is left to tell if that fails; the exit status says it, too.
    _ = try? FileDescriptor.standardError.writeAll(warning.utf8)
    throw Self.mayBeMissing
  }
}
