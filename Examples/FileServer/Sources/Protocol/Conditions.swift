// SPDX-License-Identifier: Apache-2.0

import HTTPRules

/// The conditions of a request, where they are in the bytes that were received.
private struct HeadConditions: ConditionFields {
  let head: RequestHead
  let bytes: Bytes

  func with<Result>(_ field: Conditions.Field, _ body: (Span<UInt8>) -> Result) -> Result? {
    let slice =
      switch field {
      case .ifMatch: head.ifMatch
      case .ifNoneMatch: head.ifNoneMatch
      case .ifModifiedSince: head.ifModifiedSince
      case .ifUnmodifiedSince: head.ifUnmodifiedSince
      case .ifRange: head.ifRange
      }
    guard let slice else { return nil }
    return body(slice.of(bytes).octets.span)
  }
}

extension Conditions {
  /// What becomes of a request.
  ///
  /// - Parameters:
  ///   - validator: of the file there is; `nil` if there is none.
  static func evaluate(_ head: RequestHead, _ bytes: Bytes, _ validator: Validator?) -> Outcome {
    evaluate(
      HeadConditions(head: head, bytes: bytes), isRead: head.method == .get || head.method == .head,
      validator)
  }

  /// Whether a Range field counts, given what If-Range says.
  static func rangeCounts(_ head: RequestHead, _ bytes: Bytes, _ validator: Validator) -> Bool {
    rangeCounts(HeadConditions(head: head, bytes: bytes), validator)
  }
}
