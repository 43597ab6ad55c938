// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import Synchronization

/// The handler of SIGINT, SIGTERM and SIGHUP: it ends the processes that were started, and removes
/// the files.
///
/// - Safety: `@unchecked Sendable` because `sources` is only set in `init`, and the rest is locked
///   or constant.
final class Interruption: @unchecked Sendable {
  private static let signals = [SIGINT, SIGTERM, SIGHUP]
  private let processes = Mutex<Set<Int32>>([])
  private var sources: [any DispatchSourceSignal] = []

  /// - Parameter cleanUp: Called after the processes have ended and the directory was removed.
  init(_ directory: String, cleanUp: @escaping @Sendable () -> Void = {}) {
    let queue = DispatchQueue(label: "aio-bench.signals")
    for number in Self.signals {
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
      source.setEventHandler { @Sendable [unowned self] in
        for process in processes.withLock({ $0 }) { kill(process, SIGKILL) }
        try? FileManager.default.removeItem(atPath: directory)
        cleanUp()
        exit(128 + number)
      }
      source.activate()
      sources.append(source)
    }
  }

  func started(_ process: Int32) { processes.withLock { _ = $0.insert(process) } }
  func ended(_ process: Int32) { processes.withLock { _ = $0.remove(process) } }

  func end() {
    for source in sources { source.cancel() }
    for number in Self.signals { signal(number, SIG_DFL) }
  }
}
