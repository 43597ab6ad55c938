// SPDX-License-Identifier: Apache-2.0

/// A source of events of a descriptor, as `Readiness` drives it. Everything here is called under
/// the lock of `Readiness`.
protocol ReadinessSource: AnyObject, Sendable {
  /// The descriptor that is watched; -1 for a timer.
  var fd: Int32 { get }
  /// Whether it is a source of writability, rather than of readability.
  var isWriter: Bool { get }
  /// Whether events are delivered.
  var isRunning: Bool { get }
  var eventHandler: Block? { get }

  /// Called before the event handler runs.
  ///
  /// - Returns: Whether there is still an event.
  func willRun(_ state: inout Readiness.State) -> Bool
  /// Ends the source, and adds its cancel handler to those of the state.
  func cancel(_ state: inout Readiness.State)
}

/// A timer, as `Readiness` drives it. Times are in nanoseconds.
protocol ReadinessTimer: ReadinessSource {
  /// The time of the next event, by the monotonic clock; 0 if there is none. Of a single one, until
  /// it is delivered.
  var deadline: UInt64 { get }
  /// The time between events; 0 for a single one.
  var interval: UInt64 { get }
  /// The number of its entry in the heap of timers; 0 if it has none.
  var number: UInt64 { get set }

  /// Counts the events that are due, and moves the deadline to the next, if there is one.
  func fired(now: UInt64)
}
