// SPDX-License-Identifier: Apache-2.0

internal import CLinux

/// What one turn may take of the queue, and has taken.
struct TurnShare {
  /// How many completions, or jobs, a turn runs before it lets the queue's other blocks run.
  private static let completionsPerTurn = 256
  /// How long a turn may take before it does so, in nanoseconds; looked at between iterations.
  private static let longestTurn: UInt64 = 100_000
  /// The same for `process()`, whose caller sees to the queue's other work himself.
  private static let longestTurnByHand: UInt64 = 1_000_000

  let byHand: Bool
  /// When the turn's time is over, by the monotonic clock.
  let end: UInt64
  var completions = 0
  var jobs = 0
  /// Whether the turn has waited in the ring.
  var hasWaited = false
  /// Whether it has found nothing to wait for.
  var isReadyToSleep = false

  init(byHand: Bool) {
    self.byHand = byHand
    end =
      clinux_monotonic_nanoseconds()
      &+ (byHand ? Self.longestTurnByHand : Self.longestTurn)
  }

  var isLate: Bool { clinux_monotonic_nanoseconds() > end }

  var completionsLeft: Int { Self.completionsPerTurn - completions }

  /// Whether other blocks of the queue are to run before any more of this.
  var isUsedUp: Bool {
    max(completions, jobs) >= Self.completionsPerTurn
      || (completions + jobs > 0 || byHand) && isLate
  }
}
