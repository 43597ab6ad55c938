// SPDX-License-Identifier: Apache-2.0
//
// What the fields of a request ask of a file: a condition, a range, or all of it.

#if Hummingbird
internal import DispatchAIO
internal import Glibc
internal import HTTPRules
internal import HTTPTypes

/// The conditions among the fields of a request.
struct RequestConditions: ConditionFields {
  private let fields: HTTPFields
  /// Whether there are conditions beside If-Range. Most requests have none, and no validator is
  /// made for them.
  let areThere: Bool

  init(_ fields: HTTPFields) {
    self.fields = fields
    areThere =
      fields.contains(.ifMatch) || fields.contains(.ifNoneMatch)
      || fields.contains(.ifModifiedSince) || fields.contains(.ifUnmodifiedSince)
  }

  /// Whether the request is for no file but a new one.
  var areForNewFile: Bool { fields[.ifNoneMatch] == "*" }

  func with<Result>(_ field: Conditions.Field, _ body: (Span<UInt8>) -> Result) -> Result? {
    let name: HTTPField.Name =
      switch field {
      case .ifMatch: .ifMatch
      case .ifNoneMatch: .ifNoneMatch
      case .ifModifiedSince: .ifModifiedSince
      case .ifUnmodifiedSince: .ifUnmodifiedSince
      case .ifRange: .ifRange
      }
    return fields[name].map { body($0.utf8.span) }
  }

  /// The bytes that a GET asks for. Several ranges at once are answered by all of the file.
  func extent(of file: AIOFile) -> ByteRanges {
    guard let range = fields[.range],
      !fields.contains(.ifRange) || Conditions.rangeCounts(self, Validator(file.status))
    else { return .whole }
    let ranges = ByteRanges.parse(range.utf8.span, size: file.status.size)
    if case .several = ranges { return .whole }
    return ranges
  }
}

extension Validator {
  /// The validator of an answer that is made now.
  init(_ status: AIOFile.Status) {
    let modified = status.modificationTime
    self.init(
      seconds: modified.seconds, nanoseconds: modified.nanoseconds, size: status.size,
      changed: status.changeTime.seconds, now: Int64(time(nil)))
  }
}
#endif
