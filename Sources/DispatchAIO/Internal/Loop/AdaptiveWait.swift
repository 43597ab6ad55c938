// SPDX-License-Identifier: Apache-2.0
//
// The decision whether a turn waits in the ring for the next completion, for a bounded time, before
// it returns the queue to Dispatch. A wake-up through the source takes two hand-overs between
// threads, which cost more than a fast disk does; with a slow disk, waiting would only keep the
// queue's other blocks from running. So the waits are measured.
//
// A wait sleeps in `io_getevents(2)`. Spinning on the ring is faster on an idle machine, and costs
// processor time for which a container with a quota is stopped later: it is for callers who ask for
// it. A wait ends when another thread has work for the loop (see TurnScheduler). It does not end
// for the queue's other blocks; so the loop does not wait while requests are made by blocks other
// than completion handlers, for example by the handlers of a Dispatch source, which share the queue
// and cannot run during a wait: the requests that they would make are worth more than the time
// saved.

/// The measurements of the waits so far, and their bounds. Times are in nanoseconds.
struct AdaptiveWait {
  enum Mode {
    /// Reads the ring repeatedly.
    case spin
    /// Sleeps in `io_getevents(2)`.
    case sleep
  }

  struct Settings: Sendable {
    /// The longest time to sleep in the ring; 0 for no sleep.
    var sleepBound: UInt64
    /// The longest time to spin on the ring; 0 for no spinning.
    var spinBound: UInt64 = 0
  }

  /// The most requests in flight with which spinning pays.
  private static let mostToSpin = 2
  /// The interval at which a wait is tried all the same where it does not pay, to find out whether
  /// it does by now; also the number of waits that are skipped after a request that no completion
  /// handler made.
  private static let retryInterval = 16

  private let settings: Settings
  /// The expected time until the next completion: a moving average over about eight waits.
  private var expected: UInt64
  private var skipped = 0
  /// The number of waits to skip because of requests that no completion handler made.
  private var deferring = 0
  private(set) var waits = 0
  private(set) var successes = 0

  init(_ settings: Settings) {
    self.settings = settings
    expected = max(settings.sleepBound, settings.spinBound) / 2
  }

  /// Records a request that no completion handler made.
  mutating func deferToOthers() { deferring = Self.retryInterval }

  /// Decides whether to wait now; `nil` if not.
  ///
  /// - Parameters:
  ///   - inKernel: The number of requests in flight that the loop submitted.
  ///   - offloaded: The number of offloaded requests.
  ///   - isPolling: Whether descriptors or timers may become ready.
  mutating func mode(inKernel: Int, offloaded: Int, isPolling: Bool) -> Mode? {
    guard inKernel + offloaded > 0 || isPolling else { return nil }
    let mode: Mode
    if settings.spinBound > 0, inKernel + offloaded > 0, inKernel <= Self.mostToSpin {
      mode = .spin
    } else {
      guard settings.sleepBound > 0 else { return nil }
      mode = .sleep
      if deferring > 0 {
        deferring -= 1
        return nil
      }
    }
    if expected > longest(mode) {
      skipped += 1
      guard skipped >= Self.retryInterval else { return nil }
      skipped = 0
    }
    return mode
  }

  /// The longest time to wait.
  func longest(_ mode: Mode) -> UInt64 {
    mode == .spin ? settings.spinBound : settings.sleepBound
  }

  mutating func waited(_ nanoseconds: UInt64, successfully: Bool, mode: Mode) {
    waits += 1
    if successfully { successes += 1 }
    // After a wait in vain the time is unknown, and estimated at twice as long. One that took far
    // longer than its bound says that this thread was not run, for example because the process had
    // used up its quota, and not that waiting does not pay: it counts as one in vain.
    let sample = min(successfully ? nanoseconds : 2 * nanoseconds, 2 * longest(mode))
    expected = expected - expected / 8 + sample / 8
  }
}
