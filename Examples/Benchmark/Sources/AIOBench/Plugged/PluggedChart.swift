// SPDX-License-Identifier: Apache-2.0

import Foundation

/// The chart of what `plugged` has measured: bars beside those of dispatch-pread, for each job and
/// number of connections.
struct PluggedChart {
  private let report: PluggedReport
  private let columns: [PluggedReport.Column]
  private let servers: [PluggedServer]

  init(_ report: PluggedReport) {
    self.report = report
    columns = report.columns
    servers = PluggedServer.allCases.filter { server in
      report.results.contains { $0.server == server.rawValue }
    }
  }

  func svg(title: String) -> String {
    var svg = """
      <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 620" font-family="sans-serif" font-size="13">
      <rect width="1000" height="620" fill="#ffffff"/>
      <text x="500" y="26" text-anchor="middle" font-size="16">\(Draw.escape(title))</text>

      """
    svg += panel(y: 70, "requests per second, dispatch-pread = 1") {
      report.ratio($0, to: .dispatchPread, $1)?.rate
    }
    svg += panel(y: 325, "processor time per request, dispatch-pread = 1") {
      report.ratio($0, to: .dispatchPread, $1)?.processor
    }
    for (index, server) in servers.enumerated() {
      let (x, y) = (60 + index % 4 * 235, 572 + index / 4 * 22)
      svg += """
        <rect x="\(x)" y="\(y - 11)" width="22" height="12" fill="\(colour(index))"/>
        <text x="\(x + 30)" y="\(y)">\(server.rawValue)</text>

        """
    }
    return svg + "</svg>"
  }

  private func colour(_ index: Int) -> String { Draw.colours[index % Draw.colours.count] }

  private func panel(
    y top: Double, _ title: String, _ value: (PluggedServer, PluggedReport.Column) -> Double?
  ) -> String {
    let (left, width, height) = (60.0, 920.0, 190.0)
    let all = columns.flatMap { column in servers.compactMap { value($0, column) } }
    // One that is far off leaves room for the others: it is cut, and its number tells.
    let high = min(5, max(1, (all.max() ?? 1) * 1.05))
    var svg = """
      <text x="\(left + width / 2)" y="\(top - 14)" text-anchor="middle">\(title)</text>

      """
    for tick in stride(from: 0, through: high, by: high > 2.5 ? 1 : 0.5) {
      let y = top + height * (1 - tick / high)
      svg += """
        <line x1="\(left)" y1="\(y)" x2="\(left + width)" y2="\(y)" stroke="#dddddd"/>
        <text x="\(left - 8)" y="\(y + 4)" text-anchor="end">\(tick.text(1))</text>

        """
    }
    let group = width / Double(max(1, columns.count))
    let bar = group * 0.86 / Double(max(1, servers.count))
    for (place, column) in columns.enumerated() {
      let x = left + group * Double(place)
      for (index, server) in servers.enumerated() {
        guard let value = value(server, column) else { continue }
        let size = height * min(value, high) / high
        let start = x + group * 0.07 + bar * Double(index)
        svg += """
          <rect x="\(start.text(1))" y="\((top + height - size).text(1))" width="\((bar * 0.92).text(1))" height="\(size.text(1))" fill="\(colour(index))"/>
          <text x="\((start + bar * 0.46).text(1))" y="\((top + height - size - 3).text(1))" text-anchor="middle" font-size="8">\(value.text(value < 9.95 ? 1 : 0))</text>

          """
      }
      svg += """
        <text x="\((x + group / 2).text(1))" y="\(top + height + 18)" text-anchor="middle">\(column.name)</text>

        """
    }
    return svg
  }
}
