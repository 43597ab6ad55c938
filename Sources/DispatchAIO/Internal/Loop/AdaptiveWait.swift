// SPDX-License-Identifier: Apache-2.0
//
// Whether a turn waits for the next completion in the ring, for a bounded moment, before it gives
// the queue back to Dispatch. To be woken through the source takes two hand-overs between threads,
// which cost more than a fast disk does; where the disk is slow, waiting would only keep the
// queue's other blocks from running. So it is measured how long completions let wait.
//
// To wait is to sleep in io_getevents; to look at the ring over and over is faster on an idle
// machine, and costs processor time for which a container with a quota is stopped later: only on
// demand. A wait ends when another thread has something for the loop (see TurnScheduler). It does
// not end for the queue's other blocks; so, while requests are made by others than completion
// handlers, say by the handlers of sockets, which share the queue and cannot run meanwhile, the
// loop does not wait: the requests that those would make are worth more than the time saved.

/// What is known of the waits so far. In nanoseconds.
struct AdaptiveWait {
  enum Way {
    /// Looking at the ring over and over.
    case spin
    /// Sleeping in io_getevents.
    case sleep
  }

  struct Settings: Sendable {
    /// The longest that the loop sleeps in the ring at a time; 0: never.
    var sleepBound: UInt64
    /// The longest that it looks at the ring over and over; 0: never.
    var spinBound: UInt64 = 0
  }

  /// With more in flight than this, spinning does not pay.
  private static let mostToSpin = 2
  /// Where waiting does not pay, one in so many waits is made all the same, to find out when it
  /// does. The same for requests from elsewhere: so many waits without, and they are forgotten.
  private static let retryInterval = 16

  private let settings: Settings
  /// How long the next completion lets wait, on average over the last eight waits or so.
  private var expected: UInt64
  private var skipped = 0
  /// How many more chances to pass because of requests from elsewhere.
  private var deferring = 0
  private(set) var waits = 0
  private(set) var successes = 0

  init(_ settings: Settings) {
    self.settings = settings
    expected = max(settings.sleepBound, settings.spinBound) / 2
  }

  /// Requests were made by others than completion handlers.
  mutating func deferToOthers() { deferring = Self.retryInterval }

  /// Whether to wait now, and how.
  ///
  /// - Parameters:
  ///   - inKernel: how many requests of the loop's are in flight.
  ///   - offloaded: how many are with offload threads.
  ///   - isPolling: whether descriptors or timers may become ready.
  mutating func way(inKernel: Int, offloaded: Int, isPolling: Bool) -> Way? {
    guard inKernel + offloaded > 0 || isPolling else { return nil }
    let way: Way
    if settings.spinBound > 0, inKernel + offloaded > 0, inKernel <= Self.mostToSpin {
      way = .spin
    } else {
      guard settings.sleepBound > 0 else { return nil }
      way = .sleep
      if deferring > 0 {
        deferring -= 1
        return nil
      }
    }
    if expected > longest(way) {
      skipped += 1
      guard skipped >= Self.retryInterval else { return nil }
      skipped = 0
    }
    return way
  }

  /// The longest to wait at a time.
  func longest(_ way: Way) -> UInt64 {
    way == .spin ? settings.spinBound : settings.sleepBound
  }

  mutating func waited(_ nanoseconds: UInt64, successfully: Bool) {
    waits += 1
    if successfully { successes += 1 }
    // In vain: who knows how long it would have been.
    let sample = successfully ? nanoseconds : 2 * nanoseconds
    expected = expected - expected / 8 + sample / 8
  }
}
