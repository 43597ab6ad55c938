// SPDX-License-Identifier: Apache-2.0

#if FlyingFox
internal import Glibc

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
    var time = time_t(seconds)
    // Both are this function's, and used during the call; the zone's name, a pointer, is not used.
    var parts = unsafe tm()
    unsafe gmtime_r(&time, &parts)
    let year = unsafe parts.tm_year + 1900
    return unsafe """
    \(days[Int(parts.tm_wday)]), \(padded(parts.tm_mday)) \(months[Int(parts.tm_mon)]) \
    \(padded(year / 100))\(padded(year % 100)) \
    \(padded(parts.tm_hour)):\(padded(parts.tm_min)):\(padded(parts.tm_sec)) GMT
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
    // It is this function's, and used during the call.
    var parts = unsafe tm()
    unsafe (parts.tm_year, parts.tm_mon, parts.tm_mday) = (year - 1900, Int32(month), date)
    unsafe (parts.tm_hour, parts.tm_min, parts.tm_sec) = (hour, minute, second)
    return unsafe Int64(timegm(&parts))
  }

  private static func padded(_ number: Int32) -> String {
    number < 10 ? "0\(number)" : "\(number)"
  }

  private static func number(_ text: Substring, _ range: ClosedRange<Int32>) -> Int32? {
    guard text.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let number = Int32(text),
      range.contains(number)
    else { return nil }
    return number
  }
}
#endif
