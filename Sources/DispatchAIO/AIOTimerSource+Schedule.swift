// SPDX-License-Identifier: Apache-2.0

public import Dispatch

extension AIOTimerSource {
  /// Fires at a deadline, and then at an interval in seconds, as a `DispatchSourceTimer` takes it
  /// too. See ``schedule(deadline:repeating:leeway:)-(_,DispatchTimeInterval,_)``.
  ///
  /// - Precondition: The interval is more than 0.
  /// - Parameters:
  ///   - deadline: The first time, by the clock of `DispatchTime`; one that has passed is at once.
  ///   - repeating: The interval in seconds, more than 0; `.infinity` fires once.
  ///   - leeway: Accepted as Dispatch accepts it, and not used.
  public func schedule(
    deadline: DispatchTime, repeating: Double, leeway: DispatchTimeInterval = .nanoseconds(0)
  ) {
    guard repeating > 0 else {
      fatalError(
        "AIOTimerSource: repeating: \(repeating); it must be more than 0, or .infinity to fire once"
      )
    }
    let nanoseconds = repeating * 1e9
    // Beyond the largest number is never, in a human's life.
    let interval: DispatchTimeInterval =
      nanoseconds < Double(Int.max) ? .nanoseconds(Int(max(1, nanoseconds))) : .never
    schedule(deadline: deadline, repeating: interval, leeway: leeway)
  }
}

extension DispatchTimeInterval {
  /// Whether it is a time that passes; that of `.never` is none.
  var isPositive: Bool {
    switch self {
    case .seconds(let count), .milliseconds(let count), .microseconds(let count),
      .nanoseconds(let count):
      count > 0
    case .never: false
    @unknown default: false
    }
  }
}
