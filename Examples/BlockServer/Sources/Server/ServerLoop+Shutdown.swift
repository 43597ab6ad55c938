// SPDX-License-Identifier: Apache-2.0
//
// The end of a loop: answer what has been received, make it durable, close the context.

import Dispatch
import DispatchAIO
import ServerSupport

extension ServerLoop {
  /// Answers what has been received, closes every connection, makes all durable, and closes the
  /// context; then calls back, on the queue, with whether all is durable. From any thread.
  ///
  /// - Parameter timeout: the time that clients have to receive their answers.
  func drain(
    timeout: Duration, _ completion: @escaping @Sendable (_ isDurable: Bool) -> Void
  ) {
    context.async { [self] in
      isDraining = true
      whenDrained = completion
      let deadline = ContinuousClock.now + timeout
      drainTimer.setEventHandler { [unowned self] in
        drainConnections(isLate: ContinuousClock.now > deadline)
      }
      drainTimer.schedule(deadline: .now(), repeating: .milliseconds(10))
      drainTimer.activate()
    }
  }

  private func drainConnections(isLate: Bool) {
    for connection in connections.values {
      connection.drain()
      if isLate { connection.close("did not take its answers in time") }
    }
    endIfDrained()
  }

  /// Ends the loop if it drains, no connection is left, and no command is in use.
  func endIfDrained() {
    guard isDraining, connections.isEmpty, commands.isIdle, let completion = whenDrained
    else { return }
    whenDrained = nil
    drainTimer.cancel()
    let group = DispatchGroup()
    let failed = Lock(false)
    @Sendable func fail(_ error: AIOError) {
      logger.error("\(error)")
      failed.withLock { $0 = true }
    }
    for export in exports where !export.description.isReadOnly {
      if let error = export.syncs.failure { fail(error) }
      group.enter()
      do throws(AIOError) {
        try context.fdatasync(export.file) { result in
          if case .failure(let error) = result { fail(error) }
          group.leave()
        }
      } catch {
        fail(error)
        group.leave()
      }
    }
    group.notify(queue: queue) { [self] in
      context.close { completion(!failed.withLock { $0 }) }
    }
  }
}
