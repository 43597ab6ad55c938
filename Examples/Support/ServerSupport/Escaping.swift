// SPDX-License-Identifier: Apache-2.0

import SystemPackage

extension String {
  /// The text with everything that could do more than be read written as an escape: control
  /// characters (`\n`, `\u{1B}`), what ends a line, what is not seen or turns the direction of
  /// writing around, and bytes that were not UTF-8 (`\xFF`). Clients and users choose names; in a
  /// log or on a terminal these would forge lines or work the terminal.
  ///
  /// A backslash stays as it is, so that to escape twice changes nothing.
  ///
  /// - Parameter keepsLines: whether line feeds stay.
  public func escaped(keepsLines: Bool = false) -> String {
    var text = ""
    for scalar in unicodeScalars {
      if scalar == "\n" && keepsLines {
        text += "\n"
      } else if let byte = RawArgument.byte(of: scalar) {
        text += "\\x" + String(byte, radix: 16, uppercase: true)
      } else if Self.isHarmful(scalar) {
        text += Self.escape(of: scalar)
      } else {
        text.unicodeScalars.append(scalar)
      }
    }
    return text
  }

  /// The same, where it is called for each line of a log: most have nothing to escape.
  public var escaped: String {
    let isPlain = utf8.allSatisfy { (0x20..<0x7F).contains($0) }
    return isPlain ? self : escaped(keepsLines: false)
  }

  private static func isHarmful(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator, .unassigned: true
    default: false
    }
  }

  private static func escape(of scalar: Unicode.Scalar) -> String {
    switch scalar {
    case "\n": "\\n"
    case "\r": "\\r"
    case "\t": "\\t"
    default: "\\u{" + String(scalar.value, radix: 16, uppercase: true) + "}"
    }
  }
}

extension FilePath {
  /// The path to be read by a person. (Its description has U+FFFD for what is not UTF-8.)
  public var escaped: String {
    withPlatformString { name in
      RawArgument.text(
        of: UnsafeBufferPointer(start: name, count: length).map(UInt8.init(bitPattern:)))
    }.escaped
  }
}
