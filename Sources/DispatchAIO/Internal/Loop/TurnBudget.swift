// SPDX-License-Identifier: Apache-2.0

internal import CKernel

/// The work and the time that one turn may take of the queue, and has taken.
struct TurnBudget {
  /// The most completions, or jobs, that a turn runs before the queue's other blocks run.
  private static let completionsPerTurn = 256
  /// The longest time in nanoseconds that a turn takes before they do; the clock is read between
  /// iterations.
  private static let longestTurn: UInt64 = 100_000
  /// The longest time of a turn by `process()`, whose caller schedules the queue's other work.
  private static let longestTurnByHand: UInt64 = 1_000_000

  let byHand: Bool
  /// The end of the turn's time, by the monotonic clock.
  let end: UInt64
  var completions = 0
  var jobs = 0
  /// The iterations that found something to do. After the first the clock is asked before each, so
  /// that a turn ends whatever its iterations do, or count.
  var iterations = 0
  /// Whether the turn has waited in the ring.
  var hasWaited = false
  /// Whether the turn has copied enough bytes for direct reads.
  var areCopiesUsedUp = false
  /// Whether it has found no completion to wait for.
  var isReadyToSleep = false

  init(byHand: Bool) {
    self.byHand = byHand
    end =
      ckernel_monotonic_nanoseconds()
      &+ (byHand ? Self.longestTurnByHand : Self.longestTurn)
  }

  var isLate: Bool { ckernel_monotonic_nanoseconds() > end }

  var completionsLeft: Int { Self.completionsPerTurn - completions }

  /// Whether the queue's other blocks have to run before the rest.
  var isUsedUp: Bool {
    max(completions, jobs) >= Self.completionsPerTurn || areCopiesUsedUp
      || (iterations > 0 || byHand) && isLate
  }
}
