// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Glibc

/// SIGTERM and SIGINT as calls on a queue.
public final class ShutdownSignals {
  private static let signals = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT")]

  private var sources: [any DispatchSourceSignal] = []
  private var installed = 0

  /// - Parameters:
  ///   - queue: serial.
  ///   - whenInstalled: called on `queue` once both signals are handled. Before that they end the
  ///     process, so a server says that it is ready only now.
  ///   - handler: called on `queue` for each signal, with its number and name.
  public init(
    queue: DispatchQueue, whenInstalled: @escaping () -> Void,
    handler: @escaping (_ number: Int32, _ name: String) -> Void
  ) {
    for (number, name) in Self.signals {
      let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
      source.setEventHandler { handler(number, name) }
      source.setRegistrationHandler { [weak self] in
        guard let self else { return }
        installed += 1
        if installed == Self.signals.count { whenInstalled() }
      }
      source.activate()
      sources.append(source)
    }
  }

  deinit {
    for source in sources { source.cancel() }
  }
}
