// SPDX-License-Identifier: Apache-2.0

import Dispatch

extension Duration {
  /// The same for Dispatch.
  public var dispatchInterval: DispatchTimeInterval { .nanoseconds(Int(self / .nanoseconds(1))) }
}

/// A timer that is always scheduled, so that Dispatch has the descriptor of its timers from before
/// the first connection on: it makes it for the first and closes it after the last, and a process
/// that has none left by then would get no timer. The library uses one where the kernel refuses.
///
/// - Safety: `nonisolated(unsafe)` because it is never touched after it was made.
nonisolated(unsafe) let lastingTimer: any DispatchSourceTimer = {
  let timer = DispatchSource.makeTimerSource(queue: DispatchQueue(label: "ServerSupport.timer"))
  timer.schedule(deadline: .now() + .seconds(3600), repeating: .seconds(3600))
  timer.activate()
  return timer
}()
