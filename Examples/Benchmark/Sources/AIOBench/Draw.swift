// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation

struct Draw: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Draw a comparison: throughput and processor time against depth, as an SVG.",
    discussion: """
      Reads what `compare --json` or `plugged --json` wrote; writes the SVG to standard output. The \
      chart of `plugged` has bars, for each job and number of connections.
      """)

  @Argument(
    help: "The file that compare --json or plugged --json wrote.",
    completion: .file(extensions: ["json"]))
  var json: String

  @Option(help: "What to write above it.")
  var title = ""

  static let colours = [
    "#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#7d5ba6", "#4a4e69", "#00798c", "#a44a3f",
  ]

  func run() throws {
    let data = try Data(contentsOf: URL(fileURLWithPath: json))
    if let report = try? JSONDecoder().decode(PluggedReport.self, from: data) {
      return print(PluggedChart(report).svg(title: title))
    }
    let all = try JSONDecoder().decode([Measurement].self, from: data)
    var names: [String] = []
    for measurement in all where !names.contains(measurement.engine) {
      names.append(measurement.engine)
    }
    let depths = Set(all.map(\.depth)).sorted()
    let rows = depths.flatMap { depth in
      Comparison.rows(all.filter { $0.depth == depth }, names)
    }
    guard !rows.isEmpty else { throw BenchError("\(json): no measurements") }
    var svg = """
      <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 470" font-family="sans-serif" font-size="13">
      <rect width="1000" height="470" fill="#ffffff"/>
      <text x="500" y="26" text-anchor="middle" font-size="16">\(Self.escape(title))</text>

      """
    svg += chart(
      rows, names, depths, x: 70, title: "requests per second (thousands)", { $0.rate / 1000 })
    svg += chart(
      rows, names, depths, x: 570, title: "processor time per request (us)", { $0.processor })
    for (index, name) in names.enumerated() {
      let (x, y) = (70 + index % 4 * 235, 425 + index / 4 * 22)
      let colour = Self.colours[index % Self.colours.count]
      svg += """
        <line x1="\(x)" y1="\(y - 4)" x2="\(x + 26)" y2="\(y - 4)" stroke="\(colour)" stroke-width="3"/>
        <text x="\(x + 33)" y="\(y)">\(Self.escape(name))</text>

        """
    }
    print(svg + "</svg>")
  }

  /// A chart with two logarithmic axes.
  private func chart(
    _ rows: [Comparison.Row], _ names: [String], _ depths: [Int], x left: Double, title: String,
    _ value: (Comparison.Row) -> Double
  ) -> String {
    let (width, height, top) = (370.0, 300.0, 70.0)
    let values = rows.map(value).filter { $0 > 0 }
    let low = pow(10, floor(log10(values.min() ?? 1)))
    let high = pow(10, ceil(log10(values.max() ?? 10)))
    func y(_ value: Double) -> Double {
      top + height - (log10(value / low) / max(0.01, log10(high / low))) * height
    }
    func x(_ depth: Int) -> Double {
      guard depths.count > 1 else { return left + width / 2 }
      let (first, last) = (log2(Double(depths[0])), log2(Double(depths.last!)))
      return left + (log2(Double(depth)) - first) / (last - first) * width
    }
    var svg = """
      <text x="\(left + width / 2)" y="54" text-anchor="middle">\(title)</text>

      """
    var tick = low
    while tick <= high * 1.001 {
      for step in [1.0, 2, 5] where tick * step <= high * 1.001 {
        let place = y(tick * step)
        svg += """
          <line x1="\(left)" y1="\(place)" x2="\(left + width)" y2="\(place)" stroke="#dddddd"/>
          <text x="\(left - 8)" y="\(place + 4)" text-anchor="end">\(number(tick * step))</text>

          """
      }
      tick *= 10
    }
    for depth in depths {
      svg += """
        <text x="\(x(depth))" y="\(top + height + 20)" text-anchor="middle">\(depth)</text>

        """
    }
    svg += """
      <text x="\(left + width / 2)" y="\(top + height + 38)" text-anchor="middle">requests in flight</text>

      """
    for (index, name) in names.enumerated() {
      let own = rows.filter { $0.engine == name && value($0) > 0 }
      let colour = Self.colours[index % Self.colours.count]
      let points = own.map { "\(x($0.depth).text(1)),\(y(value($0)).text(1))" }
      svg += """
        <polyline points="\(points.joined(separator: " "))" fill="none" stroke="\(colour)" stroke-width="2.5"/>

        """
      for point in points {
        let parts = point.split(separator: ",")
        svg += """
          <circle cx="\(parts[0])" cy="\(parts[1])" r="3.5" fill="\(colour)"/>

          """
      }
    }
    return svg
  }

  private func number(_ value: Double) -> String {
    value >= 1 ? value.text(0) : value.text(value >= 0.1 ? 1 : 2)
  }

  static func escape(_ text: String) -> String {
    text.replacingOccurrences(of: "&", with: "&amp;").replacingOccurrences(of: "<", with: "&lt;")
  }
}
