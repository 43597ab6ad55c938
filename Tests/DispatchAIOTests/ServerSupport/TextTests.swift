// SPDX-License-Identifier: Apache-2.0

import SystemPackage
import XCTest

@testable import ServerSupport

/// Arguments as text and back, and names in messages.
final class TextTests: XCTestCase {
  /// Any bytes become the same bytes again, by way of text that no other bytes become; what is
  /// UTF-8, and has none of the scalars that stand for bytes, is its own text.
  func testAnyBytesPassAsText() {
    var texts: [[UInt8]: [UInt8]] = [:]  // a `String` equals its other normal forms
    func check(_ bytes: [UInt8]) {
      let text = RawArgument.text(of: bytes)
      XCTAssertEqual(RawArgument.bytes(of: text), bytes)
      XCTAssertEqual(texts.updateValue(bytes, forKey: Array(text.utf8)) ?? bytes, bytes)
    }
    for plain in ["", "a=b", "é", "漢字/🙂", "e\u{301}"] {
      XCTAssertEqual(RawArgument.text(of: Array(plain.utf8)), plain)
      check(Array(plain.utf8))
    }
    for byte in UInt8.min...UInt8.max { check([byte]) }
    for odd in ["\u{10FF80}", "\u{10FFFF}", "\u{FFFD}", "\u{10FF7F}"] { check(Array(odd.utf8)) }
    let parts: [[UInt8]] = [
      [0xFF], [0xC3], [0xA9], [0xC3, 0xA9], [0xE2, 0x82], [0xF4, 0x8F, 0xBE, 0x80], [0xED, 0xA0],
      [0x80], [0x61], [0xF4, 0x8F],
    ]
    for a in parts { for b in parts { for c in parts { check(a + b + c) } } }
  }

  func testAPathKeepsItsBytes() {
    for bytes in [[0xFF], [0x61, 0xFE, 0x2F, 0xC3], Array("é".utf8)] as [[UInt8]] {
      let argument = PathArgument(argument: RawArgument.text(of: bytes))
      argument.path.withPlatformString { name in
        XCTAssertEqual((0..<argument.path.length).map { UInt8(bitPattern: name[$0]) }, bytes)
      }
    }
    XCTAssertTrue(PathArgument(argument: "a/").endsWithSlash)
    XCTAssertEqual(PathArgument(argument: "a/").description, "a/")
    XCTAssertEqual(PathArgument(argument: "/").description, "/")
  }

  func testWhatCouldForgeOrWorkATerminalIsEscaped() {
    let table: [(String, String)] = [
      ("plain é 漢字 🙂 a\\b", "plain é 漢字 🙂 a\\b"),
      ("a\nb\r\tc", "a\\nb\\r\\tc"),
      ("\u{1B}[2J\u{7F}\u{0}", "\\u{1B}[2J\\u{7F}\\u{0}"),
      ("\u{9B}31m", "\\u{9B}31m"),
      ("a\u{202E}b\u{2066}", "a\\u{202E}b\\u{2066}"),
      ("a\u{2028}b", "a\\u{2028}b"),
      ("a\u{AD}\u{200B}\u{FEFF}b\u{378}", "a\\u{AD}\\u{200B}\\u{FEFF}b\\u{378}"),
      (RawArgument.text(of: [0x61, 0xFF, 0x0A]), "a\\xFF\\n"),
    ]
    for (text, escaped) in table {
      XCTAssertEqual(text.escaped, escaped)
      XCTAssertEqual(escaped.escaped, escaped, "to escape twice changes something")
    }
    XCTAssertEqual("a\nb\t".escaped(keepsLines: true), "a\nb\\t")
    XCTAssertEqual(RawArgument.path(RawArgument.text(of: [0xFF, 0x1B])).escaped, "\\xFF\\u{1B}")
  }
}
