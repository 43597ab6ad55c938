// SPDX-License-Identifier: Apache-2.0

/// The numbers of a server in the text format of Prometheus, version 0.0.4, which OpenMetrics'
/// collectors and most others read, too.
public struct MetricsText: Sendable {
  /// What a number is: a total, which only grows, a level, or the sum and the number of values.
  public enum Kind: String, Sendable {
    case counter, gauge, summary
  }

  /// A line of a family.
  struct Sample {
    /// What follows the family's name.
    var suffix = ""
    /// As ``MetricsText/labels(_:)`` has them.
    var labels = ""
    var value: Double
  }

  public private(set) var text = ""
  /// The names that are taken.
  private var names: Set<String> = []

  public init() {}

  /// Adds a family of one number: a counter or a gauge.
  public mutating func add(_ kind: Kind, _ name: String, _ help: String, _ value: Int) {
    add(kind, name, help, [Sample(value: Double(value))])
  }

  /// Adds a family, unless there is one of its name: a collector refuses a text that has two.
  mutating func add(_ kind: Kind, _ name: String, _ help: String, _ samples: [Sample]) {
    let names = kind == .summary ? [name, "\(name)_sum", "\(name)_count"] : [name]
    guard self.names.isDisjoint(with: names) else { return }
    self.names.formUnion(names)
    text += "# HELP \(name) \(Self.escaped(help))\n# TYPE \(name) \(kind.rawValue)\n"
    for sample in samples {
      text += "\(name)\(sample.suffix)\(sample.labels) \(Self.number(sample.value))\n"
    }
  }

  private static func number(_ value: Double) -> String {
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
    // A whole number without a point, as people read it.
    return Int(exactly: value).map(String.init) ?? "\(value)"
  }

  // MARK: Names and labels

  /// - Returns: The name of a metric, or, without colons, of a label, with an underscore for all
  ///   that it may not have.
  static func name(_ text: String, takesColons: Bool = true) -> String {
    let name = String(
      text.map { character in
        let isAllowed =
          character.isASCII && (character.isLetter || character.isNumber)
          || character == ":" && takesColons
        return isAllowed ? character : "_"
      })
    return name.first.map(\.isNumber) ?? true ? "_" + name : name
  }

  /// - Returns: The labels of a sample in braces, sorted by name; nothing, if there are none. Of
  ///   labels of one name it takes the first.
  static func labels(_ dimensions: [(String, String)]) -> String {
    let labels = Dictionary(
      dimensions.map { (name($0, takesColons: false), $1) }, uniquingKeysWith: { first, _ in first }
    ).sorted { $0.key < $1.key }
    guard !labels.isEmpty else { return "" }
    let pairs = labels.map { "\($0)=\"\(escaped($1, andQuotes: true))\"" }
    return "{\(pairs.joined(separator: ","))}"
  }

  /// - Returns: Text with an escape for what would end it.
  private static func escaped(_ text: String, andQuotes: Bool = false) -> String {
    var escaped = ""
    // A line feed after a carriage return is no character of its own, and ends the line.
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\\": escaped += "\\\\"
      case "\n": escaped += "\\n"
      case "\"" where andQuotes: escaped += "\\\""
      default: escaped.unicodeScalars.append(scalar)
      }
    }
    return escaped
  }
}
