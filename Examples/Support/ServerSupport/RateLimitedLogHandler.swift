// SPDX-License-Identifier: Apache-2.0
//
// A log that its clients cannot fill, and in which they cannot forge lines.

import Dispatch
import DispatchAIO
import Logging

/// A wrapper of a log handler. Of each kind of line, that is of each place in the source, it passes
/// on a burst of 20 and then 5 a second; the others are counted, and the count is logged after 10
/// seconds. What is logged at `debug` and `trace` was asked for, and is not limited. Control
/// characters are escaped in every line.
public struct RateLimitedLogHandler: LogHandler {
  private var handler: any LogHandler
  private let limit: LogRateLimit

  public init(_ handler: any LogHandler, limit: LogRateLimit = .shared) {
    (self.handler, self.limit) = (handler, limit)
  }

  public var logLevel: Logger.Level {
    get { handler.logLevel }
    set { handler.logLevel = newValue }
  }

  public var metadata: Logger.Metadata {
    get { handler.metadata }
    set { handler.metadata = newValue }
  }

  public var metadataProvider: Logger.MetadataProvider? {
    get { handler.metadataProvider }
    set { handler.metadataProvider = newValue }
  }

  public subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { handler[metadataKey: key] }
    set { handler[metadataKey: key] = newValue }
  }

  public func log(event: LogEvent) {
    var event = event
    event.message = "\(event.message.description.escaped)"
    if event.level > .debug, !limit.admits(event, to: handler) { return }
    handler.log(event: event)
  }
}

/// The lines of each kind that were logged and left out lately. From any thread.
public final class LogRateLimit: Sendable {
  /// The limit of the process's log.
  public static let shared = LogRateLimit()

  static let burst = 20.0
  static let linesPerSecond = 5.0
  static let reportInterval: Int64 = 10_000_000_000

  private static let reporter = DispatchQueue(label: "log.left-out")

  private struct Kind: Hashable {
    var file: String
    var line: UInt
  }

  private struct State {
    var tokens = LogRateLimit.burst
    var refilled: Int64
    var leftOut = 0
    var leftOutSince: Int64 = 0
    /// The last line that was left out, and where it was to go.
    var last: (event: LogEvent, handler: any LogHandler)?
  }

  /// As many as there are calls of a logger in the source.
  private let states = Lock<[Kind: State]>([:])
  private let now: @Sendable () -> Int64
  private let afterInterval: @Sendable (@escaping @Sendable () -> Void) -> Void

  /// - Parameters:
  ///   - now: the time, in nanoseconds.
  ///   - afterInterval: calls back after `reportInterval`.
  init(
    now: @escaping @Sendable () -> Int64 = {
      Int64(DispatchTime.now().uptimeNanoseconds)
    },
    afterInterval: @escaping @Sendable (@escaping @Sendable () -> Void) -> Void = {
      LogRateLimit.reporter.asyncAfter(
        deadline: .now() + .nanoseconds(Int(reportInterval)), execute: $0)
    }
  ) {
    (self.now, self.afterInterval) = (now, afterInterval)
  }

  /// Whether a line is to be logged. If not, it is counted.
  func admits(_ event: LogEvent, to handler: any LogHandler) -> Bool {
    let now = now()
    let kind = Kind(file: event.file, line: event.line)
    let (isAdmitted, isFirstLeftOut) = states.withLock { states in
      var state = states[kind] ?? State(refilled: now)
      defer { states[kind] = state }
      let seconds = Double(now - state.refilled) / 1e9
      state.tokens = min(Self.burst, state.tokens + seconds * Self.linesPerSecond)
      state.refilled = now
      if state.tokens >= 1 {
        state.tokens -= 1
        return (true, false)
      }
      if state.leftOut == 0 { state.leftOutSince = now }
      state.leftOut += 1
      state.last = (event, handler)
      return (false, state.leftOut == 1)
    }
    if isFirstLeftOut { afterInterval { self.report(kind) } }
    return isAdmitted
  }

  /// Logs what was left out and not reported yet: at the end of the process.
  public func reportAll() {
    for kind in states.withLock({ Array($0.keys) }) { report(kind) }
  }

  private func report(_ kind: Kind) {
    let now = now()
    let taken = states.withLock { states -> State? in
      guard let state = states[kind], state.leftOut > 0 else { return nil }
      states[kind]?.leftOut = 0
      states[kind]?.last = nil
      return state
    }
    guard let taken, let (last, handler) = taken.last else { return }
    var event = last
    let seconds = max(1, Int((Double(now - taken.leftOutSince) / 1e9).rounded()))
    event.message = """
      … \(taken.leftOut) more of these in the last \(seconds) s, the last: \(event.message)
      """
    handler.log(event: event)
  }
}
