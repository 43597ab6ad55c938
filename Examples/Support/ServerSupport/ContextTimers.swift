// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO

extension AIOContext {
  /// Calls back on the context's queue at each interval, until the timer that is returned is
  /// cancelled.
  public func every(
    _ interval: Duration, _ body: @escaping @Sendable () -> Void
  ) throws(AIOError) -> AIOTimerSource {
    try timer(after: interval, repeating: interval.dispatchInterval, body)
  }

  /// Calls back on the context's queue once, unless the timer that is returned is cancelled before.
  public func once(
    after interval: Duration, _ body: @escaping @Sendable () -> Void
  ) throws(AIOError) -> AIOTimerSource {
    try timer(after: interval, repeating: .never, body)
  }

  private func timer(
    after interval: Duration, repeating: DispatchTimeInterval,
    _ body: @escaping @Sendable () -> Void
  ) throws(AIOError) -> AIOTimerSource {
    let timer = try makeTimerSource()
    timer.schedule(deadline: .now() + interval.dispatchInterval, repeating: repeating)
    timer.setEventHandler(body)
    timer.activate()
    return timer
  }
}
