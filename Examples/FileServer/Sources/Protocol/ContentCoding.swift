// SPDX-License-Identifier: Apache-2.0

/// How a file may be compressed that is beside the one asked for, best first.
enum ContentCoding: Int, CaseIterable, Sendable {
  case brotli, zstd, gzip

  /// What Accept-Encoding and Content-Encoding call it.
  var name: StaticString {
    switch self {
    case .brotli: "br"
    case .zstd: "zstd"
    case .gzip: "gzip"
    }
  }

  /// What the file's name has at its end.
  var suffix: StaticString {
    switch self {
    case .brotli: ".br"
    case .zstd: ".zst"
    case .gzip: ".gz"
    }
  }

  /// The codings that an Accept-Encoding field takes, in the order in which they are to be tried.
  static func accepted(by field: Bytes) -> [ContentCoding] {
    // In thousandths; `nil` where nothing was said.
    var weights: [Int?] = [nil, nil, nil]
    var others: Int?
    field.forEachElement { element in
      let end = element.firstIndex(of: UInt8(ascii: ";")) ?? element.count
      let name = Bytes(rebasing: element[..<end]).trimmed
      let weight = weight(Bytes(rebasing: element[end...]))
      if name.equals("*") { others = weight }
      for coding in allCases where name.equalsIgnoringCase(coding.name) {
        weights[coding.rawValue] = weight
      }
      if name.equalsIgnoringCase("x-gzip") { weights[gzip.rawValue] = weight }
    }
    return allCases.map { ($0, weights[$0.rawValue] ?? others ?? 0) }
      .filter { $0.1 > 0 }
      // Stable: the server's order where the client has none.
      .sorted { ($1.1, $0.0.rawValue) < ($0.1, $1.0.rawValue) }.map(\.0)
  }

  /// Of `;q=0.5`, in thousandths; what is malformed is 0.
  private static func weight(_ parameters: Bytes) -> Int {
    guard !parameters.isEmpty else { return 1000 }
    let text = Bytes(rebasing: parameters[1...]).trimmed
    guard text.count >= 3, lowercased(text[0]) == UInt8(ascii: "q"), text[1] == UInt8(ascii: "=")
    else { return text.isEmpty ? 1000 : 0 }
    let number = Bytes(rebasing: text[2...])
    guard let whole = Bytes(rebasing: number[..<1]).decimal, whole <= 1 else { return 0 }
    guard number.count > 1 else { return Int(whole) * 1000 }
    guard number[1] == UInt8(ascii: "."), number.count <= 5 else { return 0 }
    var fraction = 0
    for index in 2..<5 {
      let digit = index < number.count ? Int(number[index]) - 0x30 : 0
      guard (0...9).contains(digit) else { return 0 }
      fraction = fraction * 10 + digit
    }
    return min(1000, Int(whole) * 1000 + fraction)
  }
}
