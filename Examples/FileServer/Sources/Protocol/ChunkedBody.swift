// SPDX-License-Identifier: Apache-2.0

/// Takes the chunks out of a chunked body (RFC 9112, 7.1), however its bytes are cut.
struct ChunkedBody {
  private enum State {
    case size, sizeBlank, sizeExtension, sizeEnd
    case data, dataCR, dataLF
    case trailer, trailerEnd
    case done
  }

  private var state = State.size
  private var left: Int64 = 0
  private var digits = 0
  /// Bytes behind a size in its line, or of the trailer, which are passed over.
  private var ignored = 0
  private var lineLength = 0

  var isDone: Bool { state == .done }

  struct Malformed: Error {}

  /// Takes bytes of the body.
  ///
  /// - Parameter room: how many bytes of data may be taken at the most.
  /// - Returns: how many bytes were used; those of them that are data were given to `body`.
  mutating func take(
    _ bytes: Bytes, room: Int, _ body: (Bytes) -> Void
  ) throws(Malformed) -> Int {
    var (position, room) = (0, room)
    while position < bytes.count, state != .done {
      if state == .data {
        let count = min(bytes.count - position, room, Int(clamping: left))
        guard count > 0 else { break }
        body(Bytes(rebasing: bytes[position..<position + count]))
        position += count
        room -= count
        left -= Int64(count)
        if left == 0 { state = .dataCR }
        continue
      }
      try step(bytes[position])
      position += 1
    }
    return position
  }

  private mutating func step(_ byte: UInt8) throws(Malformed) {
    switch state {
    case .size, .sizeBlank, .sizeExtension: try size(byte)
    case .sizeEnd:
      guard byte == 10, digits > 0 else { throw Malformed() }
      (state, lineLength, digits) = (left == 0 ? .trailer : .data, 0, 0)
    case .dataCR:
      guard byte == 13 else { throw Malformed() }
      state = .dataLF
    case .dataLF:
      guard byte == 10 else { throw Malformed() }
      state = .size
    case .trailer:
      // As in a size's line.
      guard byte != 10 else { throw Malformed() }
      try ignore()
      if byte == 13 { state = .trailerEnd } else { lineLength += 1 }
    case .trailerEnd:
      guard byte == 10 else { throw Malformed() }
      state = lineLength == 0 ? .done : .trailer
      lineLength = 0
    case .data, .done: break
    }
  }

  private mutating func size(_ byte: UInt8) throws(Malformed) {
    if byte == 13 {
      state = .sizeEnd
      return
    }
    // By itself it is no end of a line.
    guard byte != 10 else { throw Malformed() }
    switch (state, byte) {
    case (.sizeExtension, _): try ignore()
    case (_, UInt8(ascii: ";")): state = .sizeExtension
    case (_, 0x20), (_, 0x09):
      try ignore()
      state = .sizeBlank
    case (.size, _): try digit(byte)
    // Behind a blank there is an extension, or nothing.
    default: throw Malformed()
    }
  }

  private mutating func digit(_ byte: UInt8) throws(Malformed) {
    let digit: UInt8
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = byte - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = byte - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): digit = byte - UInt8(ascii: "A") + 10
    default: throw Malformed()
    }
    digits += 1
    guard digits <= 15 else { throw Malformed() }
    left = (digits == 1 ? 0 : left) << 4 | Int64(digit)
  }

  private mutating func ignore() throws(Malformed) {
    ignored += 1
    guard ignored <= 8192 else { throw Malformed() }
  }
}
