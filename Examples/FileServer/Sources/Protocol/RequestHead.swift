// SPDX-License-Identifier: Apache-2.0
//
// A request's line and fields (RFC 9112), as places in the bytes that were received. What is not as
// the standard has it is refused rather than guessed at: two readings of one request, here and in a
// proxy, are how requests are smuggled.

import Glibc

struct RequestHead: Equatable {
  enum Method: Equatable {
    case get, head, put, options
    /// Known, and not answered by any file: 405. What is not known is 501 (RFC 9110, 9.1).
    case unsupported, unknown

    init(_ name: Bytes) {
      self =
        if name.equals("GET") {
          .get
        } else if name.equals("HEAD") {
          .head
        } else if name.equals("PUT") {
          .put
        } else if name.equals("OPTIONS") {
          .options
        } else if name.equals("POST") || name.equals("DELETE") || name.equals("PATCH")
          || name.equals("TRACE") || name.equals("CONNECT")
        {
          .unsupported
        } else {
          .unknown
        }
    }
  }

  var method = Method.unknown
  var target = Slice(start: 0, count: 0)
  /// HTTP/1.0, whose connections close unless the client asks otherwise.
  var isOld = false
  /// How many bytes it has, the empty line included.
  var length = 0
  /// Of the request's line.
  var line = Slice(start: 0, count: 0)

  var host: Slice?
  var range: Slice?
  var ifRange: Slice?
  var ifMatch: Slice?
  var ifNoneMatch: Slice?
  var ifModifiedSince: Slice?
  var ifUnmodifiedSince: Slice?
  var acceptEncoding: Slice?
  var userAgent: Slice?
  var referer: Slice?
  /// Of the body.
  var contentLength: Int64?
  var isChunked = false
  /// Whether the body is meant to be a part of a file.
  var isPartial = false
  var expectsContinue = false
  private var asksToClose = false
  private var asksToKeep = false

  /// Whether the client wants the connection to stay.
  var keepsAlive: Bool { !asksToClose && (!isOld || asksToKeep) }
  var isConditional: Bool {
    ifMatch != nil || ifNoneMatch != nil || ifModifiedSince != nil || ifUnmodifiedSince != nil
  }
  var hasBody: Bool { isChunked || contentLength ?? 0 > 0 }

  /// How much a request may take.
  struct Limits {
    var line = 8 << 10
    var head = 16 << 10
  }

  enum Parsed: Equatable {
    /// More bytes are needed.
    case incomplete
    /// A status to refuse it with, after which nothing more can be made of the bytes.
    case refused(Int)
    case complete(RequestHead)
  }

  /// The bytes behind the empty lines that may be before a request, which are passed over
  /// (RFC 9112, 2.2).
  static func skipEmptyLines(_ bytes: Bytes) -> Bytes {
    var start = 0
    while start + 1 < bytes.count, bytes[start] == 13, bytes[start + 1] == 10 { start += 2 }
    return Bytes(rebasing: bytes[start...])
  }

  /// Parses the head at the beginning of `bytes`, where no empty line is.
  ///
  /// - Parameter scanned: how many of the bytes were looked at in vain before; 0 at first.
  static func parse(_ bytes: Bytes, limits: Limits, scanned: inout Int) -> Parsed {
    guard let end = end(of: bytes, from: max(0, scanned - 3)) else {
      defer { scanned = bytes.count }
      return isHopeless(bytes, limits, scanned)
    }
    scanned = 0
    guard end <= limits.head else { return .refused(431) }
    let head = Bytes(rebasing: bytes[..<end])
    guard head.firstIndex(of: 0) == nil else { return .refused(400) }
    var result = RequestHead()
    result.length = end
    var position = 0
    guard let line = Self.line(head, &position) else { return .refused(400) }
    guard line.count <= limits.line else { return .refused(414) }
    if let status = result.parseLine(head, line) { return .refused(status) }
    while true {
      guard let field = Self.line(head, &position) else { return .refused(400) }
      if field.count == 0 { break }
      if let status = result.parseField(head, field) { return .refused(status) }
    }
    guard result.isOld || result.host != nil else { return .refused(400) }
    // Both are how one request is made to look like two.
    if result.isChunked && (result.contentLength != nil || result.isOld) { return .refused(400) }
    return .complete(result)
  }

  /// The place after the empty line.
  private static func end(of bytes: Bytes, from start: Int) -> Int? {
    var position = start
    while let feed = bytes.firstIndex(of: 10, from: position) {
      if feed >= start + 3, bytes[feed - 1] == 13, bytes[feed - 2] == 10, bytes[feed - 3] == 13 {
        return feed + 1
      }
      position = feed + 1
    }
    return nil
  }

  /// What is to be said of bytes without an empty line.
  private static func isHopeless(_ bytes: Bytes, _ limits: Limits, _ scanned: Int) -> Parsed {
    var position = scanned
    while let feed = bytes.firstIndex(of: 10, from: position) {
      // No line ends without a CR.
      if feed == 0 || bytes[feed - 1] != 13 { return .refused(400) }
      position = feed + 1
    }
    guard let first = bytes.firstIndex(of: 10) else {
      return bytes.count > limits.line ? .refused(414) : .incomplete
    }
    if first > limits.line { return .refused(414) }
    return bytes.count >= limits.head ? .refused(431) : .incomplete
  }

  /// The line at `position`, without its end; `nil` if there is a CR or an LF by itself.
  private static func line(_ head: Bytes, _ position: inout Int) -> Slice? {
    guard let feed = head.firstIndex(of: 10, from: position), feed > position,
      head[feed - 1] == 13
    else { return nil }
    let line = Slice(start: position, count: feed - 1 - position)
    guard line.of(head).firstIndex(of: 13) == nil else { return nil }
    position = feed + 1
    return line
  }

  /// - Returns: the status to refuse it with, if any.
  private mutating func parseLine(_ head: Bytes, _ line: Slice) -> Int? {
    self.line = line
    let end = line.start + line.count
    guard let first = head.firstIndex(of: 0x20, from: line.start), first < end,
      let second = head.firstIndex(of: 0x20, from: first + 1), second < end
    else { return 400 }
    let name = Bytes(rebasing: head[line.start..<first])
    guard Self.isToken(name) else { return 400 }
    let version = Bytes(rebasing: head[second + 1..<end])
    guard version.count == 8, Bytes(rebasing: version[..<5]).equals("HTTP/"), version[6] == 0x2e,
      (0x30...0x39).contains(version[5]), (0x30...0x39).contains(version[7])
    else { return 400 }
    guard version[5] == UInt8(ascii: "1") else { return 505 }
    isOld = version[7] == UInt8(ascii: "0")
    target = Slice(start: first + 1, count: second - first - 1)
    // Blanks and the like. Letters beyond ASCII are not as the standard has it either, but clients
    // send them as they are, and nobody takes them for anything else.
    for byte in target.of(head) where byte <= 0x20 || byte == 0x7f { return 400 }
    guard target.count > 0 else { return 400 }
    method = Method(name)
    return nil
  }

  private mutating func parseField(_ head: Bytes, _ line: Slice) -> Int? {
    let bytes = line.of(head)
    // A line that begins with a blank would continue the one before, which is obsolete.
    guard let colon = bytes.firstIndex(of: UInt8(ascii: ":")),
      Self.isToken(Bytes(rebasing: bytes[..<colon]))
    else { return 400 }
    let name = Bytes(rebasing: bytes[..<colon])
    var (first, end) = (line.start + colon + 1, line.start + line.count)
    while first < end, head[first] == 0x20 || head[first] == 0x09 { first += 1 }
    while end > first, head[end - 1] == 0x20 || head[end - 1] == 0x09 { end -= 1 }
    return take(name, Slice(start: first, count: end - first), head)
  }

  private mutating func take(_ name: Bytes, _ value: Slice, _ head: Bytes) -> Int? {
    switch name.count {
    case 4 where name.equalsIgnoringCase("host"):
      guard Self.isHost(value.of(head)) else { return 400 }
      return Self.once(&host, value)
    case 5 where name.equalsIgnoringCase("range"): return Self.once(&range, value)
    case 6 where name.equalsIgnoringCase("expect"):
      guard value.of(head).equalsIgnoringCase("100-continue") else { return 417 }
      expectsContinue = true
    case 7 where name.equalsIgnoringCase("referer"): referer = value
    case 8 where name.equalsIgnoringCase("if-range"): return Self.once(&ifRange, value)
    case 8 where name.equalsIgnoringCase("if-match"): return Self.once(&ifMatch, value)
    case 10 where name.equalsIgnoringCase("connection"): takeConnection(value.of(head))
    case 10 where name.equalsIgnoringCase("user-agent"): userAgent = value
    case 13 where name.equalsIgnoringCase("if-none-match"): return Self.once(&ifNoneMatch, value)
    case 13 where name.equalsIgnoringCase("content-range"): isPartial = true
    case 14 where name.equalsIgnoringCase("content-length"):
      guard let length = value.of(head).decimal, contentLength ?? length == length else {
        return 400
      }
      contentLength = length
    case 15 where name.equalsIgnoringCase("accept-encoding"): acceptEncoding = value
    case 17 where name.equalsIgnoringCase("if-modified-since"):
      return Self.once(&ifModifiedSince, value)
    case 17 where name.equalsIgnoringCase("transfer-encoding"):
      guard !isChunked else { return 400 }
      guard value.of(head).equalsIgnoringCase("chunked") else { return 501 }
      isChunked = true
    case 19 where name.equalsIgnoringCase("if-unmodified-since"):
      return Self.once(&ifUnmodifiedSince, value)
    default: break
    }
    return nil
  }

  /// Takes a field by which a file may be replaced or not, or other bytes be sent: a request with
  /// two of them means one thing to who takes the first, and another to who takes the last.
  ///
  /// - Returns: the status to refuse it with, if any.
  private static func once(_ field: inout Slice?, _ value: Slice) -> Int? {
    guard field == nil else { return 400 }
    field = value
    return nil
  }

  /// Whether the bytes may be a host, with a port or without (RFC 3986, 3.2.2).
  static func isHost(_ bytes: Bytes) -> Bool {
    for byte in bytes {
      switch byte {
      case 0...0x20, 0x7f..., UInt8(ascii: "\""), UInt8(ascii: "#"), UInt8(ascii: "/"),
        UInt8(ascii: "<"), UInt8(ascii: ">"), UInt8(ascii: "?"), UInt8(ascii: "@"),
        UInt8(ascii: "\\"), UInt8(ascii: "^"), UInt8(ascii: "`"),
        UInt8(ascii: "{")...UInt8(ascii: "}"):
        return false
      default: continue
      }
    }
    return true
  }

  private mutating func takeConnection(_ value: Bytes) {
    value.forEachElement { option in
      if option.equalsIgnoringCase("close") { asksToClose = true }
      if option.equalsIgnoringCase("keep-alive") { asksToKeep = true }
    }
  }

  /// Whether the bytes are a name as methods and fields have it.
  private static func isToken(_ bytes: Bytes) -> Bool {
    guard !bytes.isEmpty else { return false }
    for byte in bytes {
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "_"),
        UInt8(ascii: "!"), UInt8(ascii: "#")...UInt8(ascii: "'"), UInt8(ascii: "*"),
        UInt8(ascii: "+"), UInt8(ascii: "."), UInt8(ascii: "^"), UInt8(ascii: "`"),
        UInt8(ascii: "|"), UInt8(ascii: "~"):
        continue
      default: return false
      }
    }
    return true
  }
}
