// SPDX-License-Identifier: Apache-2.0
//
// What the fields of a request ask of a file: a condition, a range, or all of it (RFC 9110, 13 and
// 14).

#if FlyingFox
internal import DispatchAIO
internal import FlyingFox

/// The facts of a file that its answers are made of.
struct FileFacts {
  let size: Int64
  /// A strong validator: the time of the last change, to the nanosecond, and the size.
  let eTag: String
  /// The time of the last change in whole seconds since 1970.
  let modified: Int64

  init(_ status: AIOFile.Status) {
    let time = status.modificationTime
    size = status.size
    modified = time.seconds
    eTag = """
      "\(String(time.seconds, radix: 16)).\(String(time.nanoseconds, radix: 16))-\
      \(String(status.size, radix: 16))"
      """
  }

  // MARK: Conditions

  enum Condition {
    case met, notModified, failed
  }

  /// Decides the conditions of a request, in the order of RFC 9110, 13.2.2.
  func condition(_ headers: HTTPHeaders) -> Condition {
    if let list = headers[.ifMatch] {
      guard lists(list, isWeak: false) else { return .failed }
    } else if let date = headers[.ifUnmodifiedSince].flatMap(HTTPDate.seconds), modified > date {
      return .failed
    }
    if let list = headers[.ifNoneMatch] {
      return lists(list, isWeak: true) ? .notModified : .met
    }
    if let date = headers[.ifModifiedSince].flatMap(HTTPDate.seconds), modified <= date {
      return .notModified
    }
    return .met
  }

  /// Whether a list of entity tags has the file's.
  ///
  /// - Parameter isWeak: Whether tags that are marked as weak count.
  private func lists(_ list: String, isWeak: Bool) -> Bool {
    list.split(separator: ",").contains { tag in
      var tag = tag.trimmed
      if tag == "*" { return true }
      if isWeak, tag.hasPrefix("W/") { tag = tag.dropFirst(2) }
      return tag == eTag
    }
  }

  // MARK: Ranges

  enum Extent: Equatable {
    case whole
    case part(Range<Int64>)
    case unsatisfiable
  }

  /// The bytes that a request asks for. Several ranges at once are answered by all of the file, as
  /// is a range that means nothing, and one of a version of the file that is no more (`If-Range`).
  func extent(_ headers: HTTPHeaders) -> Extent {
    guard let field = headers[.range] else { return .whole }
    if let version = headers[.ifRange]?.trimmed {
      guard version == eTag || HTTPDate.seconds(String(version)) == modified else { return .whole }
    }
    let halves = field.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard halves.count == 2, halves[0].trimmed.lowercased() == "bytes" else { return .whole }
    let ends = halves[1].trimmed.split(
      separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
    guard ends.count == 2 else { return .whole }
    let (first, last) = (ends[0].trimmed, ends[1].trimmed)
    if first.isEmpty {
      guard let count = Self.offset(last) else { return .whole }
      return count == 0 || size == 0 ? .unsatisfiable : .part(max(0, size - count)..<size)
    }
    guard let start = Self.offset(first) else { return .whole }
    var end = size
    if !last.isEmpty {
      guard let given = Self.offset(last), given >= start else { return .whole }
      if given < size { end = given + 1 }
    }
    return start < size ? .part(start..<end) : .unsatisfiable
  }

  /// A number of digits; one that is too large for any file is as large as there is.
  private static func offset(_ text: Substring) -> Int64? {
    guard !text.isEmpty, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
    return Int64(text) ?? .max
  }
}

extension StringProtocol where SubSequence == Substring {
  /// The text without blanks at its ends.
  fileprivate var trimmed: Substring {
    var text = self[...]
    while text.first == " " || text.first == "\t" { text.removeFirst() }
    while text.last == " " || text.last == "\t" { text.removeLast() }
    return text
  }
}

extension HTTPHeader {
  static let allow = HTTPHeader("Allow")
  static let ifMatch = HTTPHeader("If-Match")
  static let ifRange = HTTPHeader("If-Range")
  static let ifUnmodifiedSince = HTTPHeader("If-Unmodified-Since")
}
#endif
