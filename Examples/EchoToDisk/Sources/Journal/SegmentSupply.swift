// SPDX-License-Identifier: Apache-2.0
//
// The segments that the journal continues in: at least one is kept ready, because to make one takes
// as long as to write all of it. They are made on a queue beside the loop.

import Dispatch
import DispatchAIO
import Logging
import ServerSupport
import SystemPackage

/// The spare segments of a journal, and the making of the next one.
///
/// - Safety: `@unchecked Sendable` because it is confined to the loop's queue.
final class SegmentSupply: @unchecked Sendable {
  /// Called after a segment has been made, or has failed to be.
  var afterAttempt: () -> Void = {}
  /// The error of the last attempt to make a segment, after which one follows each second.
  private(set) var failure: (any Error)?

  private let loop: DispatchQueue
  private let maker = DispatchQueue(label: "echo-to-disk.segments")
  private let directory: JournalDirectory
  private let settings: Journal.Settings
  private let logger: Logger
  private var spares: [Segment]
  private var nextNumber: UInt64
  private var isMaking = false
  private(set) var space = JournalSpace()
  private var trimsUnderWay = 0

  /// Trims, and makes the first segment if there is no spare one. Blocks the calling thread for
  /// that.
  init(
    _ directory: JournalDirectory, _ settings: Journal.Settings, loop: DispatchQueue,
    logger: Logger
  ) throws {
    (self.directory, self.settings) = (directory, settings)
    (self.loop, self.logger) = (loop, logger)
    nextNumber = directory.nextSegment
    // The spare of an earlier run may be too small for a batch of this one; it is left unused.
    spares = directory.fresh.filter { $0.unit + settings.batchSize <= $0.size }
    // What the journal is known to have, before more is written.
    try directory.marks.updateEnd { end in
      end.isClean = false
      end.nextConnection = max(end.nextConnection, directory.nextConnection)
    }
    trimmed(Self.trim(directory, settings, room: spares.isEmpty ? settings.segmentSize : 0))
    while spares.isEmpty {
      do {
        spares = [try Self.make(nextNumber, directory, settings)]
      } catch let error as Segment.NumberTaken {
        logger.error("\(error)")
      }
      nextNumber += 1
    }
    measured(Self.measure(directory))
  }

  /// Marks the journal's end, durably, and calls back on the loop: with an error if that failed.
  func markEnd(
    _ change: @escaping @Sendable (inout JournalMark) -> Void,
    _ completion: @escaping @Sendable ((any Error)?) -> Void
  ) {
    let (loop, marks) = (loop, directory.marks)
    maker.async {
      var failure: (any Error)?
      do { try marks.updateEnd(change) } catch { failure = error }
      loop.async { [failure] in completion(failure) }
    }
  }

  /// The largest unit of the spare segments. Segments that are made later have no larger one.
  var largestUnit: Int { spares.map(\.unit).max() ?? 0 }

  /// Takes a spare segment, and starts to make the next one. `nil` if there is none now.
  func take() -> Segment? {
    guard !spares.isEmpty else {
      // After a failure the next attempt is scheduled already.
      if failure == nil { makeNext() }
      return nil
    }
    let segment = spares.removeFirst()
    trim()
    makeNext()
    return segment
  }

  private func makeNext() {
    guard spares.isEmpty, !isMaking else { return }
    isMaking = true
    let (number, directory, settings) = (nextNumber, directory, settings)
    maker.async { [self] in
      let result = Result { try Self.make(number, directory, settings) }
      let space = Self.measure(directory)
      loop.async {
        self.measured(space)
        self.finish(result)
      }
    }
  }

  private static func make(
    _ number: UInt64, _ directory: JournalDirectory, _ settings: Journal.Settings
  ) throws -> Segment {
    let segment: Segment
    do {
      segment = try Segment(
        making: number, in: directory.directory, directory.path, directory.identity,
        size: settings.segmentSize, syncs: settings.syncs)
    } catch {
      throw refusal(error, directory, settings)
    }
    // Before it is used, so that it is known to be missing if it is.
    try directory.marks.updateEnd { $0.made = max($0.made, number) }
    return segment
  }

  private func finish(_ result: Result<Segment, any Error>) {
    isMaking = false
    switch result {
    case .success(let segment):
      if failure != nil { logger.notice("the journal has its next segment") }
      failure = nil
      nextNumber += 1
      spares.append(segment)
    case .failure(let error as Segment.NumberTaken):
      logger.error("\(error)")
      nextNumber += 1
      return makeNext()
    case .failure(let error):
      if failure == nil {
        logger.error("cannot make the journal's next segment, retrying each second: \(error)")
      }
      failure = error
      loop.asyncAfter(deadline: .now() + .seconds(1)) { self.makeNext() }
    }
    afterAttempt()
  }

  // MARK: Trimming

  /// Trims what has become too old meanwhile, unless a trimming is under way.
  func trimAgain() {
    if trimsUnderWay == 0 { trim() }
  }

  /// Trims what is not to be kept, if there is a limit.
  private func trim() {
    guard settings.retention.isLimited else { return }
    trimsUnderWay += 1
    let (directory, settings) = (directory, settings)
    let room = spares.isEmpty ? settings.segmentSize : 0
    maker.async { [self] in
      let result = Self.trim(directory, settings, room: room)
      let space = Self.measure(directory)
      loop.async {
        self.trimsUnderWay -= 1
        self.measured(space)
        self.trimmed(result)
      }
    }
  }

  private static func trim(
    _ directory: JournalDirectory, _ settings: Journal.Settings, room: Int
  ) -> Result<JournalTrim.Outcome, any Error> {
    guard settings.retention.isLimited else { return .success(.init()) }
    return Result {
      let trim = try JournalTrim(directory.path, directory.directory)
      return try trim.run(
        before: trim.first(keeping: settings.retention, room: room), directory.marks)
    }
  }

  private func trimmed(_ result: Result<JournalTrim.Outcome, any Error>) {
    switch result {
    case .success(let outcome):
      space.trimmedSegments += outcome.segments
      space.trimmedBytes += outcome.bytes
      if outcome.segments > 0 {
        logger.info(
          """
          \(outcome.segments) segments trimmed, \(ByteCount(outcome.bytes)); \
          the journal begins with segment \(outcome.first)
          """)
      }
      if let busy = outcome.busy {
        logger.notice("segment \(busy) is being read; what is not to be kept is trimmed later")
      }
    case .failure(let error): logger.error("the journal cannot be trimmed: \(error)")
    }
  }

  private static func measure(_ directory: JournalDirectory) -> (segments: Int, bytes: Int)? {
    // What cannot be measured is not news: nothing can be made or trimmed then, either.
    try? directory.directory.segmentSpace()
  }

  private func measured(_ space: (segments: Int, bytes: Int)?) {
    if let space { (self.space.segments, self.space.bytes) = space }
  }

  /// An error of making a segment, in words for the daemon's user: what the library says of it is
  /// for a program that writes.
  private static func refusal(
    _ error: any Error, _ directory: JournalDirectory, _ settings: Journal.Settings
  ) -> any Error {
    let errno = error as? Errno ?? (error as? AIOError)?.errno
    let size = ByteCount(settings.segmentSize)
    switch errno {
    case .noSpace, .diskQuotaExceeded:
      return JournalError(
        """
        no room for a segment of \(size) in \(directory.path) (\(errno ?? .noSpace)): make some, \
        trim the journal, or choose a smaller --segment-size
        """)
    case .fileTooLarge:
      return JournalError(
        """
        a segment of \(size) in \(directory.path) passes `ulimit -f` or the filesystem's limit: \
        choose a smaller --segment-size
        """)
    default: return error
    }
  }
}
