// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import ServerSupport

struct Verify: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Check a journal.",
    discussion: """
      Checks every checksum, every sequence number, and that each connection's bytes follow each \
      other. Exits with 0 when all that was ever durable is there, and with 1 when something is \
      damaged, which it names by segment and offset. A torn tail, a batch that was on its way when \
      a server died (or still is), is sound: nothing of it had been echoed.
      """)

  @OptionGroup var journal: JournalArgument

  func run() throws {
    var segments = 0
    var batches = 0
    var records = 0
    var bytes = 0
    var torn = 0
    var damages = 0
    var positions: [UInt64: UInt64] = [:]

    func damage(_ place: JournalPlace, _ what: String) {
      damages += 1
      print("damage: \(place): \(what)")
    }
    try JournalReader.reading(journal.directory) { event in
      switch event {
      case .record(let record, _, let place):
        records += 1
        guard record.kind != .opened else { break }
        let expected = positions[record.connection] ?? 0
        if record.position != expected {
          damage(
            place,
            "connection \(record.connection) goes on at \(record.position), \(expected) expected")
        }
        positions[record.connection] = record.position + UInt64(record.length)
        bytes += record.length
      case .tornTail(let place):
        torn += 1
        print("torn tail: \(place): a batch that was on its way when a server died, or still is")
      case .damage(let place, let what):
        damage(place, what)
      case .endOfSegment(_, let count):
        segments += 1
        batches += count
      }
    }
    print(
      """
      \(segments) segments, \(batches) batches, \(records) records of \(positions.count) \
      connections, \(bytes) bytes (\(ByteCount(bytes))); \(torn) torn tails, \(damages) damages
      """)
    if damages > 0 { throw ExitCode.failure }
  }
}
