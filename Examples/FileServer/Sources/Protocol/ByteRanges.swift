// SPDX-License-Identifier: Apache-2.0

/// What a Range field asks for of a file (RFC 9110, 14).
enum ByteRanges: Equatable {
  /// All of it: there is no field, or one that means nothing here, or that asks for more than there
  /// is.
  case whole
  case one(Range<Int64>)
  case several([Range<Int64>])
  /// Nothing of it is in the file.
  case unsatisfiable

  /// More ranges than this are nobody's need, and each costs a read.
  static let limit = 32

  static func parse(_ field: Bytes, size: Int64) -> ByteRanges {
    guard let equals = field.firstIndex(of: UInt8(ascii: "=")),
      Bytes(rebasing: field[..<equals]).trimmed.equalsIgnoringCase("bytes")
    else { return .whole }
    let set = Bytes(rebasing: field[(equals + 1)...])
    // The common case makes no array.
    if set.firstIndex(of: UInt8(ascii: ",")) == nil {
      switch range(set.trimmed, size: size) {
      case .range(let range): return .one(range)
      case .beyond: return .unsatisfiable
      case .malformed: return .whole
      }
    }
    var ranges: [Range<Int64>] = []
    var (isMalformed, total, count) = (false, Int64(0), 0)
    set.forEachElement { element in
      count += 1
      guard count <= limit, !isMalformed else {
        isMalformed = true
        return
      }
      switch range(element, size: size) {
      case .range(let range):
        ranges.append(range)
        total += range.upperBound - range.lowerBound
      case .beyond: break
      case .malformed: isMalformed = true
      }
    }
    // Ranges that overlap so much that the whole is less: sent as the whole.
    if isMalformed || count == 0 || total > size { return .whole }
    switch ranges.count {
    case 0: return .unsatisfiable
    case 1: return .one(ranges[0])
    default: return .several(ranges)
    }
  }

  private enum One {
    case range(Range<Int64>)
    case beyond, malformed
  }

  private static func range(_ text: Bytes, size: Int64) -> One {
    guard let dash = text.firstIndex(of: UInt8(ascii: "-")) else { return .malformed }
    let (first, last) = (
      Bytes(rebasing: text[..<dash]).trimmed, Bytes(rebasing: text[(dash + 1)...]).trimmed
    )
    if first.isEmpty {
      guard let suffix = number(last) else { return .malformed }
      return suffix == 0 || size == 0 ? .beyond : .range(max(0, size - suffix)..<size)
    }
    guard let start = number(first) else { return .malformed }
    var end = size
    if !last.isEmpty {
      guard let given = number(last), given >= start else { return .malformed }
      if given < size { end = given + 1 }
    }
    return start < size ? .range(start..<end) : .beyond
  }

  /// A number of digits; one that is too large for any file is as large as there is.
  private static func number(_ text: Bytes) -> Int64? {
    if let number = text.decimal { return number }
    guard text.count > 18, text.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
    return .max
  }
}
