// SPDX-License-Identifier: Apache-2.0

import Glibc
import ServerSupport
import SystemPackage

/// How much of a journal has been read, as a line on a terminal.
final class ReadingProgress {
  private let bar: ProgressBar
  private let sizes: [UInt64: Int]
  /// The segment that is being read, and how much of it has been.
  private var place = (segment: UInt64(0), offset: 0)

  /// - Parameter isShown: whether it may be shown, if standard error is a terminal.
  init(_ inspection: JournalInspection, isShown: Bool) {
    bar = ProgressBar(isShown: isShown && isatty(STDERR_FILENO) == 1)
    sizes = Dictionary(
      inspection.segments.map { ($0.number, $0.space) }, uniquingKeysWith: { first, _ in first })
    bar.begin("", inspection.segments.map { 0..<Int64($0.space) })
  }

  func take(_ event: JournalReader.Event) {
    switch event {
    case .batch(let header): move(to: header.segment, header.end)
    case .endOfSegment(let segment, _): move(to: segment, sizes[segment] ?? 0)
    case .record, .tornTail, .damage, .gap: break
    }
  }

  private func move(to segment: UInt64, _ offset: Int) {
    bar.add(offset - (place.segment == segment ? place.offset : 0))
    place = (segment, offset)
  }

  func clear() { bar.clear() }
}

extension JournalReader {
  /// Reads the journal in `directory`, with errors put into words for a command's user.
  ///
  /// - Parameters:
  ///   - showsProgress: whether a terminal may show how much has been read.
  ///   - isDone: if not `nil`, what is written meanwhile is read, too, until this returns true: it
  ///     is called when all is read that was there.
  static func reading(
    _ directory: FilePath, showsProgress: Bool,
    until isDone: ((JournalInspection) throws -> Bool)? = nil, _ visit: (Event) throws -> Void
  ) throws {
    do {
      let reader = try JournalReader(directory: directory)
      let progress = ReadingProgress(reader.inspection, isShown: showsProgress)
      defer { progress.clear() }
      func take(_ event: Event) throws {
        progress.take(event)
        try visit(event)
      }
      guard let isDone else { return try reader.read(take) }
      try reader.follow(
        until: {
          progress.clear()
          return try isDone($0)
        }, take)
    } catch let errno as Errno {
      throw Failure("\(directory): \(errno)")
    } catch let error as JournalError {
      throw Failure(error.description)
    }
  }
}
