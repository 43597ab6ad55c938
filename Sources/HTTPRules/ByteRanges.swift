// SPDX-License-Identifier: Apache-2.0

/// What a Range field asks for of a file (RFC 9110, 14).
package enum ByteRanges: Equatable {
  /// All of it: there is no field, or one that means nothing here, or that asks for more than there
  /// is.
  case whole
  case one(Range<Int64>)
  case several([Range<Int64>])
  /// Nothing of it is in the file.
  case unsatisfiable

  /// More ranges than this are nobody's need, and each costs a read.
  package static let limit = 32

  /// - Parameters:
  ///   - field: The field's value.
  ///   - size: The file's, in bytes.
  package static func parse(_ field: Span<UInt8>, size: Int64) -> ByteRanges {
    let all = 0..<field.count
    guard let equals = field.firstIndex(of: UInt8(ascii: "="), in: all),
      field.hasIgnoringCase("bytes", at: field.trimmed(0..<equals))
    else { return .whole }
    let set = (equals + 1)..<field.count
    // The common case makes no array.
    if field.firstIndex(of: UInt8(ascii: ","), in: set) == nil {
      switch range(field, field.trimmed(set), size: size) {
      case .range(let range): return .one(range)
      case .beyond: return .unsatisfiable
      case .malformed: return .whole
      }
    }
    return several(field, set, size: size)
  }

  private static func several(_ field: Span<UInt8>, _ set: Range<Int>, size: Int64) -> ByteRanges {
    var ranges: [Range<Int64>] = []
    // What the ranges may still have. A multipart body adds its parts' heads to that, and the
    // length of all has to be a number.
    var left = min(size, .max - (1 << 20))
    var (isWhole, count) = (false, 0)
    field.forEachElement(in: set) { element in
      count += 1
      guard count <= limit, !isWhole else {
        isWhole = true
        return
      }
      switch range(field, element, size: size) {
      case .range(let range):
        ranges.append(range)
        // No range is longer than the file, so that this does not overflow. Ranges that overlap so
        // much that the whole is less are sent as the whole.
        left -= range.upperBound - range.lowerBound
        isWhole = left < 0
      case .beyond: break
      case .malformed: isWhole = true
      }
    }
    if isWhole || count == 0 { return .whole }
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

  private static func range(_ field: Span<UInt8>, _ place: Range<Int>, size: Int64) -> One {
    guard let dash = field.firstIndex(of: UInt8(ascii: "-"), in: place) else { return .malformed }
    let first = field.trimmed(place.lowerBound..<dash)
    let last = field.trimmed((dash + 1)..<place.upperBound)
    if first.isEmpty {
      guard let suffix = field.decimal(last) else { return .malformed }
      return suffix == 0 || size == 0 ? .beyond : .range(max(0, size - suffix)..<size)
    }
    guard let start = field.decimal(first) else { return .malformed }
    var end = size
    if !last.isEmpty {
      guard let given = field.decimal(last), given >= start else { return .malformed }
      if given < size { end = given + 1 }
    }
    return start < size ? .range(start..<end) : .beyond
  }
}
