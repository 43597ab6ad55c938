// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import Synchronization

/// The handler of SIGINT and SIGTERM: it ends the server and removes the files.
///
/// - Safety: `@unchecked Sendable` because `sources` is only set in `init`, and the rest is atomic
///   or constant.
final class Interruption: @unchecked Sendable {
  private let server = Atomic<Int32>(0)
  private var sources: [any DispatchSourceSignal] = []

  init(_ directory: String) {
    let queue = DispatchQueue(label: "aio-bench.signals")
    for number in [SIGINT, SIGTERM] {
      signal(number, SIG_IGN)
      let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
      source.setEventHandler { @Sendable [unowned self] in
        let process = server.load(ordering: .relaxed)
        if process > 0 { kill(process, SIGKILL) }
        try? FileManager.default.removeItem(atPath: directory)
        exit(128 + number)
      }
      source.activate()
      sources.append(source)
    }
  }

  func started(_ process: Int32) { server.store(process, ordering: .relaxed) }
  func ended() { server.store(0, ordering: .relaxed) }

  func end() {
    for source in sources { source.cancel() }
    for number in [SIGINT, SIGTERM] { signal(number, SIG_DFL) }
  }
}
