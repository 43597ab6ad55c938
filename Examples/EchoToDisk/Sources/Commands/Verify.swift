// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import ServerSupport

struct Verify: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Check a journal.",
    discussion: """
      Checks every file, checksum and sequence number, that each connection's bytes follow each \
      other, and that the journal goes on up to where it is known to have gone. Exits with 0 when \
      all that is known to have been durable is there, and with 1 when something is damaged, which \
      it names by segment and offset. A torn tail, a batch that was on its way when a server died \
      (or still is), is sound: nothing of it had been echoed, unless the disk has damaged it since.
      """)

  @OptionGroup var journal: JournalArgument

  func run() throws {
    var segments = 0
    var batches = 0
    var records = 0
    var bytes = 0
    var torn = 0
    var damages = 0
    var connections: Set<UInt64> = []
    let showsProgress = isatty(STDOUT_FILENO) == 0
    try JournalReader.reading(journal.directory, showsProgress: showsProgress) { event in
      switch event {
      case .batch: break
      case .record(let record, _, _):
        records += 1
        connections.insert(record.connection)
        if record.kind == .data { bytes += record.length }
      case .gap(let connection, let range, let place):
        // The consequence of a damage, which has been counted where it is; else one of its own.
        if damages == 0 { damages += 1 }
        try printLine("missing: \(JournalReader.describe(connection, range)), before \(place)")
      case .tornTail(let place):
        torn += 1
        try printLine(
          "torn tail: \(place): a batch that was on its way when a server died, or still is")
      case .damage(let place, let what):
        damages += 1
        try printLine("damage: \(place): \(what)")
      case .endOfSegment(_, let count):
        segments += 1
        batches += count
      }
    }
    try printLine(
      """
      \(segments) segments, \(batches) batches, \(records) records of \(connections.count) \
      connections, \(bytes) bytes (\(ByteCount(bytes))); \(torn) torn tails, \(damages) damages
      """)
    if damages > 0 { throw ExitCode.failure }
  }
}

extension JournalReader {
  static func describe(_ connection: UInt64, _ range: Range<UInt64>) -> String {
    range.isEmpty
      ? "connection \(connection) at position \(range.lowerBound), where it had been already"
      : "\(range.count) bytes of connection \(connection) from position \(range.lowerBound) on"
  }
}
