// SPDX-License-Identifier: Apache-2.0

import Foundation

/// The tables that `plugged` prints.
struct PluggedTables {
  private let report: PluggedReport
  private let markdown: Bool

  init(_ report: PluggedReport, markdown: Bool) {
    (self.report, self.markdown) = (report, markdown)
  }

  /// Which servers are told beside which.
  private static let comparisons: [(PluggedServer, PluggedServer)] = [
    (.cRing, .dispatchPread), (.nginx, .dispatchPread), (.aioHTTPD, .cRing), (.aioHTTPD, .nginx),
    (.plugged, .dispatchPread), (.plugged, .concurrent), (.plugged, .dispatchIO),
    (.plugged, .cRing), (.hummingbird, .hummingbirdMemory), (.hummingbirdAIO, .hummingbirdMemory),
    (.hummingbirdAIO, .hummingbird),
    (.flyingFoxMemoryAIO, .flyingFoxMemory), (.flyingFox, .flyingFoxMemory),
    (.flyingFoxAIO, .flyingFoxMemory), (.flyingFoxAIO, .flyingFox),
  ]

  func printAll() {
    let columns = report.columns
    if !columns.isEmpty {
      heading("rate / processor time per request, medians of the ratios within a round")
      let rows: [[String]] = Self.comparisons.compactMap { one, other in
        let cells = columns.map { column in
          report.ratio(one, to: other, column).map {
            "\($0.rate.text(2)) / \($0.processor.text(2))"
          } ?? "–"
        }
        return cells.allSatisfy { $0 == "–" }
          ? nil : ["\(one.rawValue) to \(other.rawValue)"] + cells
      }
      table([""] + columns.map(\.name), rows)
      if markdown {
        heading(
          "requests per second, processor time per request in us, 99 % of answers within us; medians"
        )
        table([""] + columns.map(\.name), serverRows(columns))
      }
    }
    if !report.idle.isEmpty {
      heading("\(report.settings.idleConnections) idle connections")
      table(
        ["", "processor time in 10 s", "memory per connection"],
        report.idle.map {
          [
            $0.server, "\($0.processorSeconds.text(2)) s",
            "\(($0.bytesPerConnection / 1024).text(1)) KiB",
          ]
        })
    }
  }

  private func serverRows(_ columns: [PluggedReport.Column]) -> [[String]] {
    PluggedServer.allCases.compactMap { server in
      let cells = columns.map { column in
        let own = report.results(server, column)
        guard !own.isEmpty else { return "–" }
        let modes = Set(own.map(\.mode)).subtracting([""]).sorted().joined(separator: ", ")
        let late = median(own.compactMap { $0.latency["99"] })
        return "\(median(own.map(\.rate)).rate), \(median(own.map(\.processorTime)).text(1)), "
          + late.text(0) + (modes.isEmpty ? "" : " (\(modes))")
      }
      return cells.allSatisfy { $0 == "–" } ? nil : [server.rawValue] + cells
    }
  }

  /// What one job did at one number of connections.
  func printColumn(_ column: PluggedReport.Column) {
    print("\n\(column.job.rawValue), \(column.connections) connections, medians")
    let rows: [[String]] = PluggedServer.allCases.compactMap { server in
      let own = report.results(server, column)
      guard !own.isEmpty else { return nil }
      let ratio = report.ratio(server, to: .dispatchPread, column)
      return [
        server.rawValue, Set(own.map(\.mode)).sorted().joined(separator: ","),
        median(own.map(\.rate)).rate, ratio.map { $0.rate.text(2) } ?? "–",
        median(own.map(\.processorTime)).text(1), ratio.map { $0.processor.text(2) } ?? "–",
        median(own.compactMap { $0.latency["50"] }).text(0),
        median(own.compactMap { $0.latency["99"] }).text(0),
      ]
    }
    printColumns(
      ["server", "reading", "req/s", "ratio", "cpu us", "ratio", "50 % us", "99 % us"], rows)
  }

  private func heading(_ text: String) { print(markdown ? "\n\(text):\n" : "\n\(text)") }

  private func table(_ head: [String], _ rows: [[String]]) {
    guard markdown else { return printColumns(head, rows) }
    let line = head.indices.map { $0 == 0 ? "---" : "---:" }
    for row in [head, line] + rows { print("| \(row.joined(separator: " | ")) |") }
  }
}
