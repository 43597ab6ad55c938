// SPDX-License-Identifier: Apache-2.0

@testable import BlockServer

/// What clients send, right and wrong.
enum Message {
  static let cookie: UInt64 = 0x0123_4567_89ab_cdef

  static func bytes<Number: FixedWidthInteger>(_ number: Number) -> [UInt8] {
    withUnsafeBytes(of: number.bigEndian) { Array($0) }
  }

  static func clientFlags(_ flags: UInt32 = 3) -> [UInt8] { bytes(flags) }

  static func optionHeader(_ option: UInt32, length: UInt32) -> [UInt8] {
    Array("IHAVEOPT".utf8) + bytes(option) + bytes(length)
  }

  static func option(_ option: UInt32, _ data: [UInt8] = []) -> [UInt8] {
    optionHeader(option, length: UInt32(data.count)) + data
  }

  /// The data of INFO and GO.
  static func info(_ export: String, _ items: [UInt16]) -> [UInt8] {
    info(raw: Array(export.utf8), items)
  }

  static func info(raw export: [UInt8], _ items: [UInt16]) -> [UInt8] {
    bytes(UInt32(export.count)) + export + bytes(UInt16(items.count)) + items.flatMap { bytes($0) }
  }

  /// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
  static func queries(_ export: String, _ queries: [String], count: UInt32? = nil) -> [UInt8] {
    bytes(UInt32(export.utf8.count)) + Array(export.utf8) + bytes(count ?? UInt32(queries.count))
      + queries.flatMap { bytes(UInt32($0.utf8.count)) + Array($0.utf8) }
  }

  static func request(
    _ command: UInt16, flags: UInt16 = 0, cookie: UInt64 = cookie, offset: UInt64, length: UInt32
  ) -> [UInt8] {
    bytes(NBD.requestMagic) + bytes(flags) + bytes(command) + bytes(cookie) + bytes(offset)
      + bytes(length)
  }

  struct Malformed: Error {}

  static func optionReplies(_ bytes: [UInt8]) throws -> [(
    option: UInt32, type: UInt32, data: [UInt8]
  )] {
    var replies: [(option: UInt32, type: UInt32, data: [UInt8])] = []
    var position = 0
    try bytes.withUnsafeBytes { bytes in
      while position < bytes.count {
        guard bytes.count - position >= 20,
          bytes.number(UInt64.self, at: position) == NBD.optionReplyMagic
        else { throw Malformed() }
        let length = Int(bytes.number(UInt32.self, at: position + 16))
        guard bytes.count - position >= 20 + length else { throw Malformed() }
        replies.append(
          (
            bytes.number(at: position + 8), bytes.number(at: position + 12),
            Array(bytes[position + 20..<position + 20 + length])
          ))
        position += 20 + length
      }
    }
    return replies
  }

  // MARK: At random

  /// A session that keeps to the protocol.
  static func conversation(
    _ generator: inout SeededGenerator, exports: [String] = ["disk", "still"],
    size: UInt64 = 1_000_000
  ) -> [UInt8] {
    let export = exports.randomElement(using: &generator) ?? ""
    var bytes = clientFlags()
    for _ in 0..<Int.random(in: 0...6, using: &generator) {
      switch Int.random(in: 0..<7, using: &generator) {
      case 0: bytes += option(3)
      case 1: bytes += option(8)
      case 2: bytes += option(9, queries(export, []))
      case 3: bytes += option(10, queries(export, ["base:allocation"]))
      case 4: bytes += option(6, info(export, [0, 1, 3]))
      case 5: bytes += option(UInt32.random(in: 11...200, using: &generator), [1, 2, 3])
      default: bytes += option(5)
      }
    }
    bytes += option(7, info(export, [3]))
    for _ in 0..<Int.random(in: 0...30, using: &generator) {
      let command = UInt16.random(in: 0...8, using: &generator)
      if command == 2 && !generator.oneIn(5) { continue }
      let isFlush = command == 3 || command == 2
      let length = isFlush ? 0 : UInt32.random(in: 0...9000, using: &generator)
      bytes += request(
        command, flags: generator.oneIn(4) ? 1 : 0,
        cookie: .random(in: 0...(.max), using: &generator),
        offset: isFlush ? 0 : .random(in: 0...(size - 10_000), using: &generator), length: length)
      if command == 1 { bytes += [UInt8](repeating: 7, count: Int(length)) }
    }
    return bytes
  }

  /// Some bytes changed, left out, doubled, or cut off.
  static func mutated(_ bytes: [UInt8], _ generator: inout SeededGenerator) -> [UInt8] {
    var bytes = bytes
    for _ in 0..<Int.random(in: 1...6, using: &generator) where bytes.count > 4 {
      let place = Int.random(in: 0..<bytes.count, using: &generator)
      let count = Int.random(in: 1...min(40, bytes.count - place), using: &generator)
      switch Int.random(in: 0..<6, using: &generator) {
      case 0: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &generator)
      case 1: bytes[place] = [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &generator) ?? 0
      case 2: bytes.removeSubrange(place..<place + count)
      case 3: bytes.insert(contentsOf: bytes[place..<place + count], at: place)
      case 4:
        for index in place..<place + count {
          bytes[index] = UInt8.random(in: 0...255, using: &generator)
        }
      default: if generator.oneIn(3) { bytes.removeSubrange(place...) }
      }
    }
    return bytes
  }
}
