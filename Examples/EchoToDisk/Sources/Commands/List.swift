// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation
import ServerSupport
import SystemPackage

struct List: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "List the connections in a journal.",
    discussion: """
      One row per connection: its number, its peer, how many of its bytes are in the journal, and \
      when it was opened (UTC). Exits as verify does: with 1 when the journal is damaged; what is \
      readable is listed. In the table, what a terminal would act on is escaped.
      """)

  @OptionGroup var journal: JournalArgument

  @Flag(help: "Print a JSON array of objects instead of a table.")
  var json = false

  struct Row: Encodable {
    let connection: UInt64
    /// `nil` where the beginning of the connection is not in the journal.
    var peer: String?
    var bytes: UInt64 = 0
    var opened: String?
  }

  func run() throws {
    var rows: [UInt64: Row] = [:]
    var damages = 0
    try JournalReader.reading(journal.directory) { event in
      switch event {
      case .record(let record, let payload, _):
        var row = rows[record.connection] ?? Row(connection: record.connection)
        switch record.kind {
        case .opened:
          let time = Date(timeIntervalSince1970: Double(payload.get(Int64.self, at: 0)) / 1e9)
          row.opened = time.formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
          row.peer = String(decoding: payload[8...], as: UTF8.self)
        case .data: row.bytes += UInt64(record.length)
        case .closed: break
        }
        rows[record.connection] = row
      case .damage, .gap: damages += 1
      case .batch, .tornTail, .endOfSegment: break
      }
    }
    let sorted = rows.values.sorted { $0.connection < $1.connection }
    if json {
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
      try printLine(String(decoding: try encoder.encode(sorted), as: UTF8.self))
    } else {
      try printTable(sorted)
    }
    if damages > 0 {
      throw Failure("the journal is damaged: see echo-to-disk verify \(journal.directory)")
    }
  }

  private func printTable(_ rows: [Row]) throws {
    let columns = [("connection", true), ("peer", false), ("bytes", true), ("opened", false)]
    let cells = rows.map { row in
      [
        "\(row.connection)", row.peer.map(escaped) ?? "unknown", "\(row.bytes)",
        row.opened ?? "unknown",
      ]
    }
    let widths = columns.indices.map { column in
      cells.reduce(columns[column].0.count) { max($0, $1[column].count) }
    }
    for row in [columns.map(\.0)] + cells {
      let line = columns.indices.map { column in
        let space = String(repeating: " ", count: widths[column] - row[column].count)
        return columns[column].1 ? space + row[column] : row[column] + space
      }
      try printLine(line.joined(separator: "  ").trimmingCharacters(in: .whitespaces))
    }
  }
}

extension JournalReader {
  /// Reads the journal in `directory`, with errors put into words for a command's user.
  static func reading(_ directory: FilePath, _ visit: (Event) throws -> Void) throws {
    do {
      try JournalReader(directory: directory).read(visit)
    } catch let errno as Errno {
      throw Failure("\(directory): \(errno)")
    } catch let error as JournalError {
      throw Failure(error.description)
    }
  }
}
