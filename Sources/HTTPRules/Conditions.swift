// SPDX-License-Identifier: Apache-2.0
//
// Whether what a client has is what there is (RFC 9110, 13).

/// What tells a version of a file from another.
package struct Validator: Equatable {
  /// With its quotes.
  package let tag: [UInt8]
  /// What Last-Modified says, in seconds since 1970.
  package let modified: Int64
  /// Whether the date tells this version from all others (RFC 9110, 8.8.2.2): within the second of
  /// the last change there may be another change.
  let isDateStrong: Bool

  /// - Parameters:
  ///   - modified: As of `lastModified`.
  ///   - now: The time of the answer, in seconds since 1970.
  package init(tag: [UInt8], modified: Int64, now: Int64) {
    (self.tag, self.modified, isDateStrong) = (tag, modified, modified < now)
  }

  /// What Last-Modified says of a file. All times are in seconds since 1970.
  ///
  /// A file's time of modification can be set to one in the future, which must not be sent
  /// (RFC 9110, 8.8.2.1). The time at which it was set is said instead, so that a client is told
  /// the same each time; `now` counts if the clock was set back. The time of the last change is not
  /// asked otherwise, because some file systems have none that is true.
  package static func lastModified(_ modified: Int64, changed: Int64, now: Int64) -> Int64 {
    modified <= now ? modified : min(changed, now)
  }

  /// A strong validator of a file: the time at which its contents changed last, to the nanosecond,
  /// and its size.
  ///
  /// - Parameters:
  ///   - changed: The time at which an attribute changed last, in seconds since 1970.
  ///   - now: The time of the answer, in seconds since 1970.
  package init(seconds: Int64, nanoseconds: Int, size: Int64, changed: Int64, now: Int64) {
    let tag = """
      "\(String(seconds, radix: 16)).\(String(nanoseconds, radix: 16))-\(String(size, radix: 16))"
      """
    let modified = Self.lastModified(seconds, changed: changed, now: now)
    self.init(tag: Array(tag.utf8), modified: modified, now: now)
  }

  /// The tag as the value of a field.
  package var eTag: String { String(decoding: tag, as: UTF8.self) }
}

/// The fields of a request that decide whether a file is sent, and what of it.
package protocol ConditionFields {
  /// Calls `body` with the value of a field, if the request has it.
  func with<Result>(_ field: Conditions.Field, _ body: (Span<UInt8>) -> Result) -> Result?
}

package enum Conditions {
  package enum Field {
    case ifMatch, ifNoneMatch, ifModifiedSince, ifUnmodifiedSince, ifRange
  }

  package enum Outcome { case proceed, notModified, failed }

  /// What becomes of a request, in the order of RFC 9110, 13.2.2.
  ///
  /// - Parameters:
  ///   - isRead: Whether it is a GET or a HEAD.
  ///   - validator: That of the file there is; `nil` if there is none.
  package static func evaluate(
    _ fields: some ConditionFields, isRead: Bool, _ validator: Validator?
  ) -> Outcome {
    if let matches = fields.with(.ifMatch, { lists($0, validator, isStrong: true) }) {
      guard matches else { return .failed }
    } else if let date = fields.with(.ifUnmodifiedSince, HTTPDate.parse) ?? nil {
      guard let validator, validator.modified <= date else { return .failed }
    }
    if let matches = fields.with(.ifNoneMatch, { lists($0, validator, isStrong: false) }) {
      guard !matches else { return isRead ? .notModified : .failed }
    } else if isRead, let validator,
      let date = fields.with(.ifModifiedSince, HTTPDate.parse) ?? nil, validator.modified <= date
    {
      return .notModified
    }
    return .proceed
  }

  /// Whether a Range field counts, given what If-Range says.
  package static func rangeCounts(
    _ fields: some ConditionFields, _ validator: Validator
  ) -> Bool {
    fields.with(.ifRange) { value in
      let all = 0..<value.count
      if value.count > 0, value[0] == UInt8(ascii: "\"") {
        return value.has(validator.tag, at: all)
      }
      // Nothing weak does for parts; a date has to be the very same.
      return validator.isDateStrong && HTTPDate.parse(value) == validator.modified
    } ?? true
  }

  /// Whether a list of entity tags has that of the file there is.
  private static func lists(_ list: Span<UInt8>, _ validator: Validator?, isStrong: Bool) -> Bool {
    guard let validator else { return false }
    if list.has("*", at: 0..<list.count) { return true }
    var found = false
    list.forEachElement(in: 0..<list.count) { element in
      var tag = element
      if tag.count > 2, list.has("W/", at: tag.lowerBound..<tag.lowerBound + 2) {
        if isStrong { return }
        tag = tag.lowerBound + 2..<tag.upperBound
      }
      if list.has(validator.tag, at: tag) { found = true }
    }
    return found
  }
}
