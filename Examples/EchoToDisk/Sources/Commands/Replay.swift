// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import ServerSupport
import SystemPackage

struct Replay: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write a connection's bytes to standard output.",
    discussion: """
      Exactly the bytes that the client sent and that are in the journal. When a part of them is \
      damaged, stops before it and exits with 1. Where the journal is damaged and nothing tells \
      where the connection ended, warns that there may have been more.
      """)

  @OptionGroup var journal: JournalArgument

  @Option(help: ArgumentHelp("The connection's number; see list.", valueName: "n"))
  var connection: UInt64

  func run() throws {
    var position: UInt64 = 0
    var isKnown = false
    var isComplete = false
    var damage: JournalPlace?
    let output = FileDescriptor.standardOutput
    try JournalReader.reading(journal.directory) { event in
      if case .damage(let place, _) = event { damage = damage ?? place }
      guard case .record(let record, let payload, let place) = event,
        record.connection == connection
      else { return }
      isKnown = true
      guard record.kind != .opened else { return }
      guard record.position == position else {
        throw Failure(
          """
          the bytes of connection \(connection) from position \(position) on are damaged; the \
          next that are there are at \(record.position), in \(place)
          """)
      }
      guard record.kind == .data else {
        // All of it is there.
        isComplete = true
        return
      }
      do {
        try output.writeAll(payload)
      } catch {
        throw Failure("standard output: \(error)")
      }
      position += UInt64(record.length)
    }
    if let damage, !isComplete {
      // The damaged bytes may be another connection's.
      let warning = """
        warning: the journal is damaged, at \(damage) first: bytes of connection \(connection) from \
        position \(position) on may be missing; `echo-to-disk verify` tells more

        """
      _ = try? FileDescriptor.standardError.writeAll(warning.utf8)
    }
    guard isKnown else {
      throw Failure(
        "no connection \(connection) in \(journal.directory); `echo-to-disk list` shows them")
    }
  }
}
