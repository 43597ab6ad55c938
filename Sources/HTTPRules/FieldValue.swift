// SPDX-License-Identifier: Apache-2.0
//
// Reading a field's value (RFC 9110, 5.6) where it is: no String is made of it.

extension Span<UInt8> {
  /// A place without the blanks at its ends.
  package func trimmed(_ place: Range<Int>) -> Range<Int> {
    var (start, end) = (place.lowerBound, place.upperBound)
    while start < end, isBlank(start) { start += 1 }
    while end > start, isBlank(end - 1) { end -= 1 }
    return start..<end
  }

  private func isBlank(_ index: Int) -> Bool { self[index] == 0x20 || self[index] == 0x09 }

  func firstIndex(of byte: UInt8, in place: Range<Int>) -> Int? {
    place.first { self[$0] == byte }
  }

  /// Whether a text stands at a place.
  func has(_ text: StaticString, at place: Range<Int>) -> Bool {
    // The bytes of a literal are always there.
    place.count == text.utf8CodeUnitCount
      && (0..<place.count).allSatisfy {
        unsafe self[place.lowerBound + $0] == text.utf8Start[$0]
      }
  }

  /// Whether a text stands at a place, in upper or lower case. It is in lower case itself.
  func hasIgnoringCase(_ text: StaticString, at place: Range<Int>) -> Bool {
    // As above. The letters differ from their large ones in one bit.
    place.count == text.utf8CodeUnitCount
      && (0..<place.count).allSatisfy {
        unsafe self[place.lowerBound + $0] | 0x20 == text.utf8Start[$0]
      }
  }

  /// Whether bytes stand at a place.
  func has(_ bytes: [UInt8], at place: Range<Int>) -> Bool {
    place.count == bytes.count
      && (0..<place.count).allSatisfy { self[place.lowerBound + $0] == bytes[$0] }
  }

  /// The number at a place, of decimal digits and nothing else; the largest there is, if it is
  /// larger.
  func decimal(_ place: Range<Int>) -> Int64? {
    guard !place.isEmpty else { return nil }
    var number: Int64 = 0
    for index in place {
      let digit = self[index] &- 0x30
      guard digit < 10 else { return nil }
      let (tens, isTooLarge) = number.multipliedReportingOverflow(by: 10)
      let (sum, isStillTooLarge) = tens.addingReportingOverflow(Int64(digit))
      number = isTooLarge || isStillTooLarge ? .max : sum
    }
    return number
  }

  /// Calls `body` for each element of a list with commas, trimmed; those that are empty are left
  /// out. No comma in quotes is a separator.
  package func forEachElement(in list: Range<Int>, _ body: (Range<Int>) -> Void) {
    var (start, isQuoted) = (list.lowerBound, false)
    for index in list.lowerBound...list.upperBound {
      if index < list.upperBound {
        if self[index] == UInt8(ascii: "\"") { isQuoted.toggle() }
        guard self[index] == UInt8(ascii: ","), !isQuoted else { continue }
      }
      let element = trimmed(start..<index)
      if !element.isEmpty { body(element) }
      start = index + 1
    }
  }
}
