// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import ServerSupport
import SystemPackage

struct Replay: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write a connection's bytes to standard output.",
    discussion: """
      Exactly the bytes that the client sent and that are in the journal. Exits with 0 when all of \
      them are known to be there. When a part of them is missing, stops before it and exits with \
      1. When bytes may be missing at the end, because the journal is damaged behind them and nothing \
      tells where the connection ended, or at the beginning, because they have been trimmed, says \
      so and exits with 3.

      With --follow, goes on as a server writes, until the connection has ended: until it is \
      recorded that it has, or the server that it was with has been stopped, or started anew. Waits for \
      a connection that there has not been yet. SIGINT ends it before.

      When standard error is a terminal, and standard output is none, shows how much has been read.
      """)

  /// The exit status when bytes may be missing.
  static let mayBeMissing = ExitCode(3)

  @OptionGroup var journal: JournalArgument

  @Option(help: ArgumentHelp("The connection's number; see list.", valueName: "n"))
  var connection: UInt64

  @Flag(help: "Go on with what is written from now on, until the connection has ended.")
  var follow = false

  func run() throws {
    var replay = ConnectionReplay(connection)
    let output = FileDescriptor.standardOutput
    // A server gives no number again, and marks at its start and end which it has not given.
    let isDone: (JournalInspection) -> Bool = { inspection in
      replay.isComplete || inspection.marks.end?.nextConnection ?? 0 > connection
    }
    try JournalReader.reading(
      journal.directory, showsProgress: isatty(STDOUT_FILENO) == 0, until: follow ? isDone : nil
    ) { event in
      try replay.take(event) { bytes in try writingOutput { _ = try output.writeAll(bytes) } }
      if case .damaged(let reason) = replay.outcome { throw Failure(reason) }
    }
    switch replay.outcome {
    case .complete: break
    case .damaged(let reason): throw Failure(reason)
    case .mayLackBytes(let reason): try warn(reason)
    case .unknown:
      throw Failure(
        "no connection \(connection) in \(journal.directory); `echo-to-disk list` shows them")
    }
  }

  private func warn(_ text: String) throws {
    // The exit status says it, too.
    FileDescriptor.writeError("warning: \(text); `echo-to-disk verify` tells more\n")
    throw Self.mayBeMissing
  }
}

/// The bytes of one connection, and whether they are all.
struct ConnectionReplay {
  enum Outcome {
    case complete
    /// A part is missing; what was given is before it.
    case damaged(String)
    case mayLackBytes(String)
    /// The journal has no such connection, and is sound.
    case unknown
  }

  let connection: UInt64
  private var position: UInt64 = 0
  private var isKnown = false
  /// Whether the journal has the record that it closed.
  private(set) var isComplete = false
  private var isTrimmed = false
  private var gap: String?
  /// The first damage behind what is known.
  private var damage: JournalPlace?

  init(_ connection: UInt64) { self.connection = connection }

  /// Takes an event of a reading, in order.
  ///
  /// - Parameter write: called with bytes of the connection, unless some before them are missing.
  mutating func take(
    _ event: JournalReader.Event, write: (UnsafeRawBufferPointer) throws -> Void
  ) rethrows {
    switch event {
    case .damage(let place, _): damage = damage ?? place
    case .gap(connection, let range, let place):
      gap =
        gap ?? """
          the bytes of connection \(connection) from position \(range.lowerBound) on are damaged; \
          the next that are there are in \(place)
          """
    case .record(let record, let payload, _) where record.connection == connection && gap == nil:
      if !isKnown, record.kind != .opened, record.position > 0 {
        (isTrimmed, position) = (true, record.position)
      }
      isKnown = true
      // What was damaged before had none of its bytes: they would be missing here.
      damage = nil
      if record.kind == .closed { isComplete = true }
      guard record.kind == .data else { return }
      try write(payload)
      position += UInt64(record.length)
    case .batch, .record, .gap, .tornTail, .endOfSegment: break
    }
  }

  var outcome: Outcome {
    if let gap { return .damaged(gap) }
    if let damage, !isComplete {
      // The damaged bytes may be another connection's, or none.
      return .mayLackBytes(
        isKnown
          ? """
          the journal is damaged behind them, at \(damage) first: bytes of connection \
          \(connection) from position \(position) on may be missing
          """
          : "no connection \(connection) is readable; the journal is damaged, at \(damage) first")
    }
    if !isKnown { return .unknown }
    return isTrimmed
      ? .mayLackBytes("the beginning of connection \(connection) has been trimmed") : .complete
  }
}
