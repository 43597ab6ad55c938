// SPDX-License-Identifier: Apache-2.0

/// Dates as HTTP has them (RFC 9110, 5.6.7), and back. In seconds since 1970.
enum HTTPDate {
  private static let days: [StaticString] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]
  private static let months: [StaticString] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
  ]

  /// `Sun, 06 Nov 1994 08:49:37 GMT`.
  static func text(_ seconds: Int64) -> String {
    let output = OutputBuffer(capacity: 32)
    append(seconds, to: output)
    return String(decoding: output.bytes, as: UTF8.self)
  }

  /// The times that four digits of a year can tell. A file's can be any.
  private static let range: ClosedRange<Int64> = -62_167_219_200...253_402_300_799

  private static func clamped(_ seconds: Int64) -> Int64 {
    min(max(seconds, range.lowerBound), range.upperBound)
  }

  /// Appends `Sun, 06 Nov 1994 08:49:37 GMT`.
  ///
  /// - Parameter seconds: If the year has no four digits, the nearest that has is told.
  static func append(_ seconds: Int64, to output: OutputBuffer) {
    let seconds = clamped(seconds)
    let day = floorDivide(seconds, 86400)
    let (year, month, date) = civil(day)
    output.append(days[Int((((day + 4) % 7) + 7) % 7)])
    output.append(", ")
    append(two: date, to: output)
    output.append(byte: UInt8(ascii: " "))
    output.append(months[month - 1])
    output.append(byte: UInt8(ascii: " "))
    append(year: year, to: output)
    output.append(byte: UInt8(ascii: " "))
    append(time: seconds - day * 86400, to: output)
    output.append(" GMT")
  }

  /// `06/Nov/1994:08:49:37 +0000`, as access logs have it.
  static func logText(_ seconds: Int64) -> String {
    let output = OutputBuffer(capacity: 32)
    let seconds = clamped(seconds)
    let day = floorDivide(seconds, 86400)
    let (year, month, date) = civil(day)
    append(two: date, to: output)
    output.append(byte: UInt8(ascii: "/"))
    output.append(months[month - 1])
    output.append(byte: UInt8(ascii: "/"))
    append(year: year, to: output)
    output.append(byte: UInt8(ascii: ":"))
    append(time: seconds - day * 86400, to: output)
    output.append(" +0000")
    return String(decoding: output.bytes, as: UTF8.self)
  }

  private static func append(two number: Int64, to output: OutputBuffer) {
    output.append(byte: UInt8(ascii: "0") + UInt8(number / 10))
    output.append(byte: UInt8(ascii: "0") + UInt8(number % 10))
  }

  private static func append(year: Int64, to output: OutputBuffer) {
    append(two: year / 100, to: output)
    append(two: year % 100, to: output)
  }

  private static func append(time: Int64, to output: OutputBuffer) {
    append(two: time / 3600, to: output)
    output.append(byte: UInt8(ascii: ":"))
    append(two: time / 60 % 60, to: output)
    output.append(byte: UInt8(ascii: ":"))
    append(two: time % 60, to: output)
  }

  private static func floorDivide(_ a: Int64, _ b: Int64) -> Int64 {
    a >= 0 ? a / b : -((-a + b - 1) / b)
  }

  /// The date of a day since 1970, by the Gregorian calendar; years begin in March here, so that
  /// the odd day is a year's last.
  private static func civil(_ day: Int64) -> (year: Int64, month: Int, date: Int64) {
    let shifted = day + 719468
    let era = floorDivide(shifted, 146097)
    let dayOfEra = shifted - era * 146097
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let shiftedMonth = (5 * dayOfYear + 2) / 153
    let month = Int(shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9)
    return (
      yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month,
      dayOfYear - (153 * shiftedMonth + 2) / 5 + 1
    )
  }

  private static func day(_ year: Int64, _ month: Int64, _ date: Int64) -> Int64 {
    let year = month <= 2 ? year - 1 : year
    let era = floorDivide(year, 400)
    let yearOfEra = year - era * 400
    let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + date - 1
    return era * 146097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719468
  }

  /// The three forms that clients may send; `nil` for anything else, which is then as if not sent.
  static func parse(_ text: Bytes) -> Int64? {
    var words: [Bytes] = []
    var start = 0
    for index in 0...text.count {
      let isSeparator =
        index == text.count || [0x20, 0x2c, 0x2d, 0x3a].contains(text[index])  // blank , - :
      guard isSeparator else { continue }
      if index > start { words.append(Bytes(rebasing: text[start..<index])) }
      start = index + 1
    }
    guard words.count == 8 || words.count == 7 else { return nil }
    // Sun Nov  6 08:49:37 1994, or Sun, 06 Nov 1994 08:49:37 GMT, or Sunday, 06-Nov-94 08:49:37 GMT
    let isC = words.count == 7
    let order = isC ? (date: 2, month: 1, year: 6, time: 3) : (date: 1, month: 2, year: 3, time: 4)
    if !isC, !words[7].equals("GMT") { return nil }
    let month = months.firstIndex { words[order.month].equals($0) }
    guard let month, let date = words[order.date].decimal, var year = words[order.year].decimal,
      let hour = words[order.time].decimal, let minute = words[order.time + 1].decimal,
      let second = words[order.time + 2].decimal,
      (1...31).contains(date), hour < 24, minute < 60, second <= 60, year < 10000
    else { return nil }
    if words[order.year].count == 2 { year += year < 70 ? 2000 : 1900 }
    return day(year, Int64(month + 1), date) * 86400 + hour * 3600 + minute * 60 + second
  }
}
