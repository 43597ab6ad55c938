// SPDX-License-Identifier: Apache-2.0
//
// Looking for what comes next, for a moment, before the loop's queue is let go.
//
// When the queue is idle, whatever happens next reaches it through Dispatch's manager thread: two
// hand-overs between threads, some 25 to 50 us each, which on a fast disk is as long as the disk
// itself takes, and comes twice per message (socket, write). So after something
// has happened the loop looks at the sockets and the completions itself for a while.
//
// Bounded: it looks for `longest` after the last thing that happened, and lets the queue's other
// blocks (timers, signals, new connections) run at least each `turn`. Adaptive: looking in vain is
// time lost, so with each time in a row that it is in vain, it is left out twice as often. And with
// nothing in flight and nobody sending, there is nothing to start it: an idle server takes no time.

import Dispatch
import Glibc

/// - Safety: `@unchecked Sendable` because it is confined to `queue`.
final class Polling: @unchecked Sendable {
  /// How long the queue's other blocks may have to wait because of it.
  private static let turn = Duration.milliseconds(1)
  /// The most times in a row that it is left out.
  private static let mostSkips = 63

  private let queue: DispatchQueue
  private let longest: Duration
  private let look: () -> Bool
  private let clock = ContinuousClock()
  private var isQueued = false
  private var backOff = 0
  private var skips = 0

  /// - Parameters:
  ///   - longest: how long to look after the last thing that happened; zero is not at all.
  ///   - look: looks once, acts on what there is, and says whether there was something. Called on
  ///     the queue.
  init(on queue: DispatchQueue, longest: Duration, look: @escaping () -> Bool) {
    (self.queue, self.longest, self.look) = (queue, longest, look)
  }

  /// Something has happened, so that more is to be expected soon. On the queue.
  func expectMore() {
    guard longest > .zero, !isQueued else { return }
    if skips > 0 {
      skips -= 1
      return
    }
    isQueued = true
    queue.async { [self] in run(after: false) }
  }

  /// - Parameter hasFound: whether something was found since it was last started.
  private func run(after hasFound: Bool) {
    var hasFound = hasFound
    let began = clock.now
    var last = began
    var now = began
    // `isQueued` meanwhile, so that what `look` does is no reason to queue another.
    repeat {
      let found = look()
      now = clock.now
      if found {
        hasFound = true
        last = now
      } else {
        // What is waited for may have to be done on this very processor: the kernel syncs from
        // worker threads that stay where the disk's interrupt came.
        sched_yield()
      }
    } while now - last < longest && now - began < Self.turn
    if now - last < longest {
      queue.async { [self, hasFound] in run(after: hasFound) }
      return
    }
    isQueued = false
    backOff = hasFound ? 0 : min(Self.mostSkips, 2 * backOff + 1)
    skips = backOff
  }
}
