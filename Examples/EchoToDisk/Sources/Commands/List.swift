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

      With --follow, prints the connections that there are, and goes on as a server writes, with a \
      row for each that opens or closes, until a signal ends it; damage is a warning then.

      When standard error is a terminal, shows how much has been read.
      """)

  @OptionGroup var journal: JournalArgument

  @Flag(help: "Print a JSON array of objects instead of a table.")
  var json = false

  @Flag(
    help: """
      Go on: print a row for each connection that opens or closes from now on. With --json, an \
      object a line.
      """)
  var follow = false

  func run() throws {
    var rows = ConnectionRows()
    var wasDamaged = false
    var hasHeader = false
    func damaged() -> Failure {
      Failure("the journal is damaged: see echo-to-disk verify \(journal.directory)")
    }
    let printChanges: (JournalInspection) throws -> Bool = { _ in
      try printRows(rows.takeChanged(), withHeader: !hasHeader)
      hasHeader = true
      if rows.isDamaged, !wasDamaged {
        wasDamaged = true
        FileDescriptor.writeError("warning: \(damaged())\n")
      }
      return false
    }
    try JournalReader.reading(
      journal.directory, showsProgress: true, until: follow ? printChanges : nil
    ) { rows.take($0) }
    try printRows(rows.takeChanged(), withHeader: true)
    if rows.isDamaged { throw damaged() }
  }

  private func printRows(_ rows: [ConnectionRows.Row], withHeader: Bool) throws {
    guard json else { return try printTable(rows, withHeader: withHeader) }
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    if follow {
      for row in rows {
        try printLine(String(decoding: try encoder.encode(row.following), as: UTF8.self))
      }
    } else {
      encoder.outputFormatting.insert(.prettyPrinted)
      try printLine(String(decoding: try encoder.encode(rows), as: UTF8.self))
    }
  }

  /// Prints a table, whose columns are wide enough for its rows or, if more are to follow, for
  /// most.
  private func printTable(_ rows: [ConnectionRows.Row], withHeader: Bool) throws {
    var columns = [("connection", true), ("peer", false), ("bytes", true), ("opened", false)]
    if follow { columns.append(("state", false)) }
    let cells = rows.map { row in
      [
        "\(row.connection)", row.peer?.escaped ?? "unknown", "\(row.bytes)",
        row.opened ?? "unknown", row.following.state ?? "",
      ]
    }
    let least = follow ? [10, 21, 12, 24, 0] : [0, 0, 0, 0]
    let widths = columns.indices.map { column in
      cells.reduce(max(columns[column].0.count, least[column])) { max($0, $1[column].count) }
    }
    for row in (withHeader ? [columns.map(\.0)] : []) + cells {
      let line = columns.indices.map { column in
        let space = String(repeating: " ", count: widths[column] - row[column].count)
        if columns[column].1 { return space + row[column] }
        return column == columns.count - 1 ? row[column] : row[column] + space
      }
      try printLine(line.joined(separator: "  "))
    }
  }
}

/// What a journal has of each connection.
struct ConnectionRows {
  struct Row: Encodable {
    let connection: UInt64
    /// `nil` where the beginning of the connection is not in the journal.
    var peer: String?
    var bytes: UInt64 = 0
    var opened: String?
    /// `open` or `closed`; `nil` in a list that does not follow.
    var state: String?
    fileprivate var isClosed = false

    private enum CodingKeys: CodingKey { case connection, peer, bytes, opened, state }

    var following: Row {
      var row = self
      row.state = isClosed ? "closed" : "open"
      return row
    }
  }

  private var rows: [UInt64: Row] = [:]
  private var changed: Set<UInt64> = []
  private(set) var isDamaged = false

  mutating func take(_ event: JournalReader.Event) {
    switch event {
    case .record(let record, let payload, _):
      let known = rows[record.connection]
      var row = known ?? Row(connection: record.connection)
      switch record.kind {
      case .opened:
        let time = Date(timeIntervalSince1970: Double(payload.get(Int64.self, at: 0)) / 1e9)
        row.opened = time.formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
        row.peer = String(decoding: payload[8...], as: UTF8.self)
      case .data: row.bytes += UInt64(record.length)
      case .closed: row.isClosed = true
      }
      if known == nil || record.kind != .data { changed.insert(record.connection) }
      rows[record.connection] = row
    case .damage, .gap: isDamaged = true
    case .batch, .tornTail, .endOfSegment: break
    }
  }

  /// The rows of connections that have been opened or closed since the last call, in order.
  mutating func takeChanged() -> [Row] {
    let taken = changed.sorted().compactMap { rows[$0] }
    changed = []
    // They change no more.
    for row in taken where row.isClosed { rows[row.connection] = nil }
    return taken
  }
}
