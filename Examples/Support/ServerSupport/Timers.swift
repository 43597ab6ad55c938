// SPDX-License-Identifier: Apache-2.0

import Dispatch

extension Duration {
  /// The same for Dispatch.
  public var dispatchInterval: DispatchTimeInterval { .nanoseconds(Int(self / .nanoseconds(1))) }
}

/// A timer that is always scheduled, so that Dispatch has the descriptor of its timers from before
/// the first connection on: it makes it for the first and closes it after the last, and a process
/// that has none left by then would get no timer.
///
/// - Safety: `nonisolated(unsafe)` because it is never touched after it was made.
nonisolated(unsafe) let lastingTimer: any DispatchSourceTimer =
  DispatchQueue.global(qos: .utility).every(.seconds(3600)) {}

extension DispatchQueue {
  /// Calls back on the queue at each interval, until the timer that is returned is cancelled or
  /// released.
  public func every(
    _ interval: Duration, _ body: @escaping () -> Void
  ) -> any DispatchSourceTimer {
    let timer = DispatchSource.makeTimerSource(queue: self)
    timer.schedule(
      deadline: .now() + interval.dispatchInterval, repeating: interval.dispatchInterval,
      leeway: .milliseconds(10))
    timer.setEventHandler(handler: body)
    timer.activate()
    return timer
  }
}
