// SPDX-License-Identifier: Apache-2.0

/// Dates as HTTP has them (RFC 9110, 5.6.7), and back. In seconds since 1970.
package enum HTTPDate {
  private static let days: [StaticString] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]
  private static let months: [StaticString] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
  ]

  /// The times that four digits of a year can tell. A file's can be any.
  private static let range: ClosedRange<Int64> = -62_167_219_200...253_402_300_799

  /// `Sun, 06 Nov 1994 08:49:37 GMT`.
  ///
  /// - Parameter seconds: If the year has no four digits, the nearest that has is told.
  package static func bytes(_ seconds: Int64) -> InlineArray<29, UInt8> {
    let moment = Moment(seconds)
    var text = Text()
    text.append(days[moment.weekday])
    text.append(", ")
    text.append(moment, between: " ", beforeTime: " ")
    text.append(" GMT")
    return text.bytes
  }

  /// The same, as a String.
  package static func text(_ seconds: Int64) -> String {
    let bytes = bytes(seconds)
    return String(decoding: bytes.indices.map { bytes[$0] }, as: UTF8.self)
  }

  /// `06/Nov/1994:08:49:37 +0000`, as access logs have it.
  package static func logText(_ seconds: Int64) -> String {
    var text = Text()
    text.append(Moment(seconds), between: "/", beforeTime: ":")
    text.append(" +0000")
    return String(decoding: (0..<text.count).map { text.bytes[$0] }, as: UTF8.self)
  }

  /// The three forms that clients may send; `nil` for anything else, which is then as if not sent.
  package static func parse(_ text: Span<UInt8>) -> Int64? {
    var words: [Range<Int>] = []
    var start = 0
    for index in 0...text.count {
      let isSeparator =
        index == text.count || [0x20, 0x2c, 0x2d, 0x3a].contains(text[index])  // blank , - :
      guard isSeparator else { continue }
      if index > start { words.append(start..<index) }
      start = index + 1
    }
    guard words.count == 8 || words.count == 7 else { return nil }
    // Sun Nov  6 08:49:37 1994, or Sun, 06 Nov 1994 08:49:37 GMT, or Sunday, 06-Nov-94 08:49:37 GMT
    let isC = words.count == 7
    let order = isC ? (date: 2, month: 1, year: 6, time: 3) : (date: 1, month: 2, year: 3, time: 4)
    if !isC, !text.has("GMT", at: words[7]) { return nil }
    var month: Int?
    for (index, name) in months.enumerated() where text.has(name, at: words[order.month]) {
      month = index + 1
    }
    guard let month, let date = text.decimal(words[order.date]),
      var year = text.decimal(words[order.year]), let hour = text.decimal(words[order.time]),
      let minute = text.decimal(words[order.time + 1]),
      let second = text.decimal(words[order.time + 2]),
      (1...31).contains(date), hour < 24, minute < 60, second <= 60, year < 10000
    else { return nil }
    if words[order.year].count == 2 { year += year < 70 ? 2000 : 1900 }
    let midnight = Moment.day(year, month, date) * 86400
    // A day that its month does not have is one of the next month's.
    guard Moment(midnight).date == date else { return nil }
    return midnight + hour * 3600 + minute * 60 + second
  }

  /// A moment by the Gregorian calendar, in UTC.
  private struct Moment {
    let year: Int64
    /// From 1 on.
    let month: Int
    let date: Int64
    /// From Sunday on.
    let weekday: Int
    /// The seconds of the day.
    let time: Int64

    init(_ seconds: Int64) {
      let seconds = min(max(seconds, range.lowerBound), range.upperBound)
      let day = Self.floorDivide(seconds, 86400)
      weekday = Int((((day + 4) % 7) + 7) % 7)
      time = seconds - day * 86400
      // Years begin in March here, so that the odd day is a year's last.
      let shifted = day + 719468
      let era = Self.floorDivide(shifted, 146097)
      let dayOfEra = shifted - era * 146097
      let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146096) / 365
      let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
      let shiftedMonth = (5 * dayOfYear + 2) / 153
      month = Int(shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9)
      year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
      date = dayOfYear - (153 * shiftedMonth + 2) / 5 + 1
    }

    /// The number of a date's day since 1970.
    static func day(_ year: Int64, _ month: Int, _ date: Int64) -> Int64 {
      let (year, month) = (month <= 2 ? year - 1 : year, Int64(month))
      let era = floorDivide(year, 400)
      let yearOfEra = year - era * 400
      let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + date - 1
      return era * 146097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719468
    }

    private static func floorDivide(_ a: Int64, _ b: Int64) -> Int64 {
      a >= 0 ? a / b : -((-a + b - 1) / b)
    }
  }

  /// A text that is being written.
  private struct Text {
    var bytes = InlineArray<29, UInt8>(repeating: 0)
    private(set) var count = 0

    mutating func append(_ byte: UInt8) {
      bytes[count] = byte
      count += 1
    }

    mutating func append(_ text: StaticString) {
      // The bytes of a literal are always there.
      for index in 0..<text.utf8CodeUnitCount { append(unsafe text.utf8Start[index]) }
    }

    /// The date, what is between its parts, and the time.
    mutating func append(
      _ moment: Moment, between separator: StaticString, beforeTime: StaticString
    ) {
      append(two: moment.date)
      append(separator)
      append(months[moment.month - 1])
      append(separator)
      append(two: moment.year / 100)
      append(two: moment.year % 100)
      append(beforeTime)
      append(two: moment.time / 3600)
      append(":")
      append(two: moment.time / 60 % 60)
      append(":")
      append(two: moment.time % 60)
    }

    mutating func append(two number: Int64) {
      append(UInt8(ascii: "0") + UInt8(number / 10))
      append(UInt8(ascii: "0") + UInt8(number % 10))
    }
  }
}
