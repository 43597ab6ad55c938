// SPDX-License-Identifier: Apache-2.0
//
// What the fields of a request ask of a file: a condition, a range, or all of it.

#if FlyingFox
internal import DispatchAIO
internal import FlyingFox
internal import HTTPRules

/// The facts of a file that its answers are made of.
struct FileFacts {
  let size: Int64
  private let validator: Validator
  var eTag: String { validator.eTag }
  /// What Last-Modified says, in whole seconds since 1970.
  var modified: Int64 { validator.modified }

  /// - Parameter now: The time of the answer, in seconds since 1970.
  init(_ status: AIOFile.Status, now: Int64) {
    let time = status.modificationTime
    size = status.size
    validator = Validator(
      seconds: time.seconds, nanoseconds: time.nanoseconds, size: status.size,
      changed: status.changeTime.seconds, now: now)
  }

  /// What becomes of a request that reads.
  func condition(_ headers: HTTPHeaders) -> Conditions.Outcome {
    Conditions.evaluate(HeaderConditions(headers: headers), isRead: true, validator)
  }

  /// The bytes that a request asks for. Several ranges at once are answered by all of the file.
  func extent(_ headers: HTTPHeaders) -> ByteRanges {
    guard let field = headers[.range],
      Conditions.rangeCounts(HeaderConditions(headers: headers), validator)
    else { return .whole }
    let ranges = ByteRanges.parse(Array(field.utf8).span, size: size)
    if case .several = ranges { return .whole }
    return ranges
  }
}

/// The conditions among the headers of a request.
private struct HeaderConditions: ConditionFields {
  let headers: HTTPHeaders

  func with<Result>(_ field: Conditions.Field, _ body: (Span<UInt8>) -> Result) -> Result? {
    let name: HTTPHeader =
      switch field {
      case .ifMatch: .ifMatch
      case .ifNoneMatch: .ifNoneMatch
      case .ifModifiedSince: .ifModifiedSince
      case .ifUnmodifiedSince: .ifUnmodifiedSince
      case .ifRange: .ifRange
      }
    return headers[name].map { body(Array($0.utf8).span) }
  }
}

extension HTTPHeader {
  static let allow = HTTPHeader("Allow")
  static let ifMatch = HTTPHeader("If-Match")
  static let ifRange = HTTPHeader("If-Range")
  static let ifUnmodifiedSince = HTTPHeader("If-Unmodified-Since")
}
#endif
