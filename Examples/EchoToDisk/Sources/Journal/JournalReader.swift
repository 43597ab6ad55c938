// SPDX-License-Identifier: Apache-2.0
//
// Reading a journal, also while a daemon is writing it. For the commands `list`, `replay` and
// `verify`, and for the daemon's start; blocks the calling thread.

import SystemPackage

/// A reader of a journal's batches in order, which tells what is torn from what is damaged, and
/// continues behind what is damaged.
struct JournalReader {
  enum Event {
    /// A batch of which at least the header is readable; its records follow.
    case batch(BatchHeader)
    case record(RecordHeader, payload: UnsafeRawBufferPointer, JournalPlace)
    /// A batch that was being written when a daemon died, or still is.
    case tornTail(JournalPlace)
    /// Something that was durable is missing or unreadable, or a file is where it must not be.
    case damage(JournalPlace, String)
    /// Bytes of a connection that are missing before a record.
    case gap(connection: UInt64, Range<UInt64>, JournalPlace)
    /// The end of a segment, and how many batches it had.
    case endOfSegment(UInt64, batches: Int)
  }

  let inspection: JournalInspection

  /// - Throws: an `Errno`, or a `JournalError` if there is no journal.
  init(
    directory: FilePath, read: @escaping FileWindow.Read = FileWindow.systemRead
  ) throws {
    inspection = try JournalInspection(directory, read: read)
    guard !inspection.isEmpty else { throw JournalError.noJournal(in: directory) }
  }

  init(_ inspection: JournalInspection) { self.inspection = inspection }

  /// Calls `visit` for everything in the journal, in order. While a daemon is writing, that is the
  /// journal as it was at some moment since the call.
  ///
  /// - Parameter start: the index of the segment to begin with; what is before is neither read nor
  ///   missed.
  func read(from start: Int = 0, _ visit: (Event) throws -> Void) throws {
    try withoutActuallyEscaping(visit) { visit in
      let reading = JournalReading(inspection, visit)
      try reading.run(from: start)
    }
  }
}
