// SPDX-License-Identifier: Apache-2.0

import Foundation

extension Double {
  /// The number with so many decimal places.
  func text(_ places: Int) -> String { String(format: "%.\(places)f", self) }

  /// The number with three digits and a unit: 13.9k, 1.20M.
  var rate: String {
    switch self {
    case 1e6...: "\((self / 1e6).text(2))M"
    case 1e5...: "\((self / 1e3).text(0))k"
    case 1e3...: "\((self / 1e3).text(1))k"
    default: text(0)
    }
  }
}

func median(_ values: [Double]) -> Double {
  let sorted = values.sorted()
  guard !sorted.isEmpty else { return .nan }
  let middle = sorted.count / 2
  return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

func writeJSON(_ value: some Encodable, to path: String) throws {
  let encoder = JSONEncoder()
  encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
  try encoder.encode(value).write(to: URL(fileURLWithPath: path))
}

/// Prints a table: the first column left-aligned, the others right-aligned.
func printColumns(_ head: [String], _ rows: [[String]]) {
  let widths = head.indices.map { column in
    rows.reduce(head[column].count) { max($0, $1[column].count) }
  }
  for row in [head] + rows {
    print(
      row.indices.map { column in
        let space = String(repeating: " ", count: widths[column] - row[column].count)
        return column == 0 ? row[column] + space : space + row[column]
      }.joined(separator: "  "))
  }
}

/// A line of progress on standard error, rewritten each time. Nothing is written if that is no
/// terminal.
enum ProgressLine {
  static let isShown = isatty(STDERR_FILENO) == 1

  static func show(_ text: String) {
    guard isShown else { return }
    FileHandle.standardError.write(Data("\r\u{1b}[K\(text)".utf8))
  }

  static func clear() { show("") }
}
