// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import ServerSupport
import SystemPackage

struct Replay: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write a connection's bytes to standard output.",
    discussion: """
      Exactly the bytes that the client sent and that are in the journal. When a part of them is \
      damaged, stops before it and exits with 1.
      """)

  @OptionGroup var journal: JournalArgument

  @Option(help: ArgumentHelp("The connection's number; see list.", valueName: "n"))
  var connection: UInt64

  func run() throws {
    var position: UInt64 = 0
    var isKnown = false
    let output = FileDescriptor.standardOutput
    try JournalReader.reading(journal.directory) { event in
      guard case .record(let record, let payload, let place) = event,
        record.connection == connection
      else { return }
      isKnown = true
      guard record.kind == .data else { return }
      guard record.position == position else {
        throw Failure(
          """
          the bytes of connection \(connection) from position \(position) on are damaged; the \
          next that are there are from \(record.position), in \(place)
          """)
      }
      do {
        try output.writeAll(payload)
      } catch {
        throw Failure("standard output: \(error)")
      }
      position += UInt64(record.length)
    }
    guard isKnown else {
      throw Failure(
        "no connection \(connection) in \(journal.directory); `echo-to-disk list` shows them")
    }
  }
}
