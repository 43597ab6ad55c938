// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Glibc

/// SIGTERM and SIGINT as calls on a queue.
public final class ShutdownSignals {
  private var sources: [any DispatchSourceSignal] = []

  /// - Parameter handler: called on `queue` with the signal's name, each time one comes.
  public init(queue: DispatchQueue, _ handler: @escaping (String) -> Void) {
    for (number, name) in [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT")] {
      let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
      source.setEventHandler { handler(name) }
      source.activate()
      sources.append(source)
    }
  }

  deinit {
    for source in sources { source.cancel() }
  }
}
