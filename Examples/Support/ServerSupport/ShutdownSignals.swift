// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Glibc

/// The signals that ask a program to end: SIGTERM, SIGINT, SIGQUIT and SIGHUP, as a call on a
/// queue.
///
/// The first is given to the program. A second SIGTERM, SIGINT or SIGQUIT ends the process at once,
/// with the status 128 + its number, even while the program's queue is busy. A second SIGHUP does
/// not, because a terminal that is closed sends one, and its shell another. Nor does the same
/// signal within a tenth of a second: who signals a program and then its process group
/// (`timeout(1)`) sends two, and means one. A SIGHUP that is ignored when the process starts
/// (`nohup`) stays so.
public final class ShutdownSignals {
  private static let signals = [
    (SIGTERM, "SIGTERM"), (SIGINT, "SIGINT"), (SIGQUIT, "SIGQUIT"), (SIGHUP, "SIGHUP"),
  ]

  /// The state of the signals.
  ///
  /// - Safety: `@unchecked Sendable` because it is confined to `queue`.
  private final class State: @unchecked Sendable {
    let queue = DispatchQueue(label: "signals")
    var missing: Int
    /// The first signal, and until when it counts once.
    var first: (number: Int32, until: DispatchTime)?
    init(_ count: Int) { missing = count }
  }

  private var sources: [any DispatchSourceSignal] = []

  /// - Parameters:
  ///   - queue: serial.
  ///   - whenInstalled: called on `queue` once all signals are handled. Before that they end the
  ///     process, so a server says that it is ready only now.
  ///   - handler: called on `queue` once, for the first signal, with its number and name.
  public init(
    queue: DispatchQueue, whenInstalled: @escaping () -> Void,
    handler: @escaping (_ number: Int32, _ name: String) -> Void
  ) {
    let signals = Self.signals.filter { $0.0 != SIGHUP || !Self.isIgnored(SIGHUP) }
    let state = State(signals.count)
    // Called on `queue` only, as the initializer says.
    nonisolated(unsafe) let (whenInstalled, handler) = (whenInstalled, handler)
    for (number, name) in signals {
      // A queue of its own, which nothing but these handlers can keep busy.
      let source = DispatchSource.makeSignalSource(signal: number, queue: state.queue)
      source.setEventHandler {
        guard let first = state.first else {
          state.first = (number, .now() + .milliseconds(100))
          return queue.async { handler(number, name) }
        }
        if number != SIGHUP, number != first.number || .now() > first.until { _exit(128 + number) }
      }
      source.setRegistrationHandler {
        state.missing -= 1
        if state.missing == 0 { queue.async { whenInstalled() } }
      }
      source.activate()
      sources.append(source)
    }
  }

  deinit {
    for source in sources { source.cancel() }
  }

  /// Leaves the process to its queues, as `dispatchMain()` does, for programs that handle these
  /// signals. On the main thread.
  ///
  /// `dispatchMain()` ends the main thread, and has it handle signals on what was the stack of its
  /// caller, in memory that the Address Sanitizer still takes for the caller's. Here the thread
  /// stays, and these signals are blocked in it, so that they go where Dispatch waits for them.
  public static func runQueuesForever() -> Never {
    var set = sigset_t()
    sigemptyset(&set)
    for (number, _) in signals { sigaddset(&set, number) }
    pthread_sigmask(SIG_BLOCK, &set, nil)
    while true { pause() }
  }

  private static func isIgnored(_ number: Int32) -> Bool {
    var action = sigaction()
    guard sigaction(number, nil, &action) == 0 else { return false }
    return unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self)
      == unsafeBitCast(SIG_IGN, to: Int.self)
  }
}
