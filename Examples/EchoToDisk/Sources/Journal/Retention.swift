// SPDX-License-Identifier: Apache-2.0

/// Which segments of a journal are kept: a segment is trimmed if one of the limits says so.
struct Retention: Sendable {
  /// The most bytes that all segments together take on disk. If `nil`, any number.
  var bytes: Int?
  /// The time for which a segment is kept after the last write to it. If `nil`, forever.
  var age: Duration?

  var isLimited: Bool { bytes != nil || age != nil }

  /// The number of the first segment to keep; that of the last one if none is.
  ///
  /// - Parameter room: the bytes that a segment about to be made will take.
  func first(of segments: [JournalInspection.SegmentFile], room: Int) -> UInt64 {
    var total = segments.reduce(room) { $0 + $1.space }
    let oldest = age.map { JournalFormat.now() - Int64($0 / .nanoseconds(1)) }
    for file in segments {
      let isTooMuch = bytes.map { total > $0 } ?? false
      // A spare is made long before it is written to.
      let isTooOld = oldest.map { max(file.modified, file.header.created) < $0 } ?? false
      guard isTooMuch || isTooOld else { return file.number }
      total -= file.space
    }
    return segments.last?.number ?? 0
  }
}

/// What a journal takes on disk, and what has been trimmed of it.
struct JournalSpace: Sendable {
  var segments = 0
  var bytes = 0
  var trimmedSegments = 0
  var trimmedBytes = 0
}
