// SPDX-License-Identifier: Apache-2.0

#if FlyingFox

/// Dates as HTTP has them (RFC 9110, 5.6.7), in seconds since 1970.
enum HTTPDate {
  private static let days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]
  private static let months = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
  ]

  /// `Sun, 06 Nov 1994 08:49:37 GMT`.
  static func text(_ seconds: Int64) -> String {
    // Four digits of a year are what the form has room for: until the end of 9999.
    let seconds = min(max(seconds, -62_167_219_200), 253_402_300_799)
    let day = (seconds - (seconds % 86400 + 86400) % 86400) / 86400
    let (year, month, date) = civil(day)
    let time = seconds - day * 86400
    return """
      \(days[Int(((day + 4) % 7 + 7) % 7)]), \(padded(date)) \(months[month - 1]) \
      \(padded(year / 100))\(padded(year % 100)) \
      \(padded(time / 3600)):\(padded(time / 60 % 60)):\(padded(time % 60)) GMT
      """
  }

  /// Reads the form of `text`, which is the only one that senders may use.
  ///
  /// - Returns: `nil` for anything else, which then counts as not sent.
  static func seconds(_ text: String) -> Int64? {
    let words = text.split { $0 == " " || $0 == "," || $0 == ":" }
    guard words.count == 8, words[7] == "GMT", let date = number(words[1], 1...31),
      let month = months.firstIndex(of: String(words[2])), let year = number(words[3], 0...9999),
      let hour = number(words[4], 0...23), let minute = number(words[5], 0...59),
      let second = number(words[6], 0...60)
    else { return nil }
    return day(year, Int64(month + 1), date) * 86400 + hour * 3600 + minute * 60 + second
  }

  private static func padded(_ number: Int64) -> String {
    number < 10 ? "0\(number)" : "\(number)"
  }

  private static func number(_ text: Substring, _ range: ClosedRange<Int64>) -> Int64? {
    guard text.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let number = Int64(text),
      range.contains(number)
    else { return nil }
    return number
  }

  // By the Gregorian calendar, whose years begin in March here, so that the odd day is a year's
  // last. Days count from 0000-03-01.

  private static func civil(_ day: Int64) -> (year: Int64, month: Int, date: Int64) {
    let shifted = day + 719_468
    let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
    let dayOfEra = shifted - era * 146_097
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let march = (5 * dayOfYear + 2) / 153
    let month = Int(march < 10 ? march + 3 : march - 9)
    return (
      yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, dayOfYear - (153 * march + 2) / 5 + 1
    )
  }

  private static func day(_ year: Int64, _ month: Int64, _ date: Int64) -> Int64 {
    let year = month <= 2 ? year - 1 : year
    let era = (year >= 0 ? year : year - 399) / 400
    let yearOfEra = year - era * 400
    let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + date - 1
    return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
  }
}
#endif
