// SPDX-License-Identifier: Apache-2.0
//
// Whether what a client has is what there is (RFC 9110, 13).

/// What tells a version of a file from another.
struct Validator: Equatable {
  /// With its quotes.
  var tag: [UInt8]
  /// In seconds since 1970.
  var modified: Int64
}

enum Conditions {
  enum Outcome { case proceed, notModified, failed }

  /// What becomes of a request.
  ///
  /// - Parameters:
  ///   - validator: of the file there is; `nil` if there is none.
  static func evaluate(
    _ head: RequestHead, _ bytes: Bytes, _ validator: Validator?
  ) -> Outcome {
    if let field = head.ifMatch {
      guard matches(field.of(bytes), validator, isStrong: true) else { return .failed }
    } else if let field = head.ifUnmodifiedSince, let date = HTTPDate.parse(field.of(bytes)) {
      guard let validator, validator.modified <= date else { return .failed }
    }
    let isRead = head.method == .get || head.method == .head
    if let field = head.ifNoneMatch {
      if matches(field.of(bytes), validator, isStrong: false) {
        return isRead ? .notModified : .failed
      }
    } else if isRead, let field = head.ifModifiedSince, let validator,
      let date = HTTPDate.parse(field.of(bytes)), validator.modified <= date
    {
      return .notModified
    }
    return .proceed
  }

  /// Whether a Range field counts, given what If-Range says.
  static func rangeCounts(_ head: RequestHead, _ bytes: Bytes, _ validator: Validator) -> Bool {
    guard let field = head.ifRange else { return true }
    let value = field.of(bytes)
    if value.first == UInt8(ascii: "\"") { return value.elementsEqual(validator.tag) }
    // A weak tag does not do for parts; a date has to be the very same.
    return HTTPDate.parse(value) == validator.modified
  }

  private static func matches(_ list: Bytes, _ validator: Validator?, isStrong: Bool) -> Bool {
    guard let validator else { return false }
    if list.equals("*") { return true }
    var found = false
    list.forEachElement { element in
      var tag = element
      if tag.count > 2, tag[0] == UInt8(ascii: "W"), tag[1] == UInt8(ascii: "/") {
        if isStrong { return }
        tag = Bytes(rebasing: tag[2...])
      }
      if tag.elementsEqual(validator.tag) { found = true }
    }
    return found
  }
}
