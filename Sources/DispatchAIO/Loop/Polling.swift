// SPDX-License-Identifier: Apache-2.0
//
// Whether the loop waits for the next completion itself, for a bounded moment, before it goes back
// to its source. To be woken through the source takes two hand-overs between threads, which cost
// more than a fast disk does; where the disk is slow, waiting would only keep the queue's other
// blocks from running. So it is measured how long completions let wait.
//
// There are two ways. With one or two requests in flight, all depends on the next completion, and
// the loop looks at the ring over and over: to be woken costs tens of microseconds on an idle
// virtual machine, and this is the fastest there is. (Requests on the sleeping side do not count:
// an append goes through two threads.) Otherwise the disk is kept busy by the rest, and the loop
// sleeps in io_getevents: it saves the hand-overs' processor time. That is done only
// while requests come from completion handlers alone. If others make them too, say the handlers of
// sockets, which share the queue and cannot run meanwhile, then the requests that those would make
// are worth more than the time saved.

/// What is known of the waits so far. In nanoseconds.
struct Polling {
  enum Way {
    /// Looking at the ring over and over.
    case spin
    /// Sleeping in io_getevents.
    case sleep
  }

  /// With more in flight than this, spinning does not pay.
  private static let mostToSpin = 2
  /// The longest that completions may let wait on average for spinning to pay.
  private static let longestToSpin: UInt64 = 200_000
  /// Where waiting does not pay, one in so many waits is made all the same, to find out when it
  /// does. The same for requests from elsewhere: so many waits without, and they are forgotten.
  private static let probing = 16

  /// The longest that the loop waits at a time; 0: never.
  let bound: UInt64
  /// How long the next completion lets wait, on average over the last eight waits or so.
  private var expected: UInt64
  private var skipped = 0
  /// How many more chances to pass because of requests from elsewhere.
  private var deferring = 0
  private(set) var waits = 0
  private(set) var successes = 0

  init(bound: UInt64) {
    self.bound = bound
    expected = min(bound, Self.longestToSpin) / 2
  }

  /// Requests came from elsewhere than a completion handler.
  mutating func deferToOthers() { deferring = Self.probing }

  /// Whether to wait now, and how.
  ///
  /// - Parameters:
  ///   - inKernel: how many requests are in flight.
  ///   - asleep: how many of them are on the sleeping side.
  mutating func way(inKernel: Int, asleep: Int) -> Way? {
    guard bound > 0, inKernel > 0 else { return nil }
    let way: Way
    if inKernel - asleep <= Self.mostToSpin {
      way = .spin
    } else {
      if deferring > 0 {
        deferring -= 1
        return nil
      }
      way = .sleep
    }
    if expected > longest(way) {
      skipped += 1
      guard skipped >= Self.probing else { return nil }
      skipped = 0
    }
    return way
  }

  /// The longest to wait at a time.
  func longest(_ way: Way) -> UInt64 {
    way == .spin ? min(bound, Self.longestToSpin) : bound
  }

  mutating func waited(_ nanoseconds: UInt64, successfully: Bool) {
    waits += 1
    if successfully { successes += 1 }
    // In vain: who knows how long it would have been.
    let sample = successfully ? nanoseconds : 2 * nanoseconds
    expected = expected - expected / 8 + sample / 8
  }
}
