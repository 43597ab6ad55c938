// SPDX-License-Identifier: Apache-2.0
//
// From a request's target to a path beneath the directory that is served. The kernel keeps the path
// beneath (openat2 with RESOLVE_BENEATH); here is what no client asks for in good faith.

struct TargetPath: Equatable {
  /// The path, with a zero byte at its end: relative, without a slash at either end; `.` for the
  /// directory itself.
  var bytes: [UInt8]
  /// The target ends with a slash.
  var isDirectory: Bool

  enum Refusal: Error, Equatable {
    /// Not as the standard has it, or with `..` or a zero byte in it.
    case malformed
    /// Nothing that is served has such a name.
    case notFound
  }

  /// What path a target means. `bytes` of the result is reused.
  static func decode(_ target: Bytes, into result: inout TargetPath) throws(Refusal) {
    var position = try pathStart(target)
    result.bytes.removeAll(keepingCapacity: true)
    var segment = 0
    while position < target.count {
      let byte = target[position]
      if byte == UInt8(ascii: "?") || byte == UInt8(ascii: "#") { break }
      position += 1
      switch byte {
      case UInt8(ascii: "/"):
        try close(segment: segment, of: &result.bytes)
        if let last = result.bytes.last, last != UInt8(ascii: "/") {
          result.bytes.append(UInt8(ascii: "/"))
        }
        segment = result.bytes.count
      case UInt8(ascii: "%"):
        guard position + 1 < target.count, let high = hex(target[position]),
          let low = hex(target[position + 1])
        else { throw .malformed }
        position += 2
        let decoded = high << 4 | low
        guard decoded != 0 else { throw .malformed }
        // It is no separator, and no file has it in its name.
        guard decoded != UInt8(ascii: "/") else { throw .notFound }
        result.bytes.append(decoded)
      default: result.bytes.append(byte)
      }
    }
    try close(segment: segment, of: &result.bytes)
    result.isDirectory = result.bytes.isEmpty || result.bytes.last == UInt8(ascii: "/")
    if result.bytes.last == UInt8(ascii: "/") { result.bytes.removeLast() }
    if result.bytes.isEmpty { result.bytes.append(UInt8(ascii: ".")) }
    result.bytes.append(0)
  }

  /// Where the path begins: a target may be a whole URL, of which only the host has to be there
  /// (RFC 9110, 4.2.1).
  private static func pathStart(_ target: Bytes) throws(Refusal) -> Int {
    guard let first = target.first else { throw .malformed }
    if first == UInt8(ascii: "/") { return 0 }
    let scheme = "http://" as StaticString
    guard target.count > 7, Bytes(rebasing: target[..<7]).equalsIgnoringCase(scheme) else {
      throw .malformed
    }
    var end = 7
    while end < target.count, !"/?#".utf8.contains(target[end]) { end += 1 }
    let authority = Bytes(rebasing: target[7..<end])
    // A port by itself is no host, and a user's name is none that anybody needs here.
    guard let host = authority.first, host != UInt8(ascii: ":"), RequestHead.isHost(authority)
    else { throw .malformed }
    return end
  }

  /// A segment is complete: from `segment` to the end of `bytes`.
  private static func close(segment: Int, of bytes: inout [UInt8]) throws(Refusal) {
    guard segment < bytes.count, bytes[segment] == UInt8(ascii: ".") else { return }
    let name = bytes[segment...]
    if name.elementsEqual("..".utf8) || name.elementsEqual(".".utf8) { throw .malformed }
    // Of what begins with a dot, which is hidden, only what is meant for the world.
    guard segment == 0, name.elementsEqual(".well-known".utf8) else { throw .notFound }
  }

  private static func hex(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
    default: nil
    }
  }
}
