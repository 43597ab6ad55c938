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
    for export in exports where !export.description.isReadOnly {
      group.enter()
      syncLast(export) { [self] error in
        if let error {
          logger.error("\(error)")
          failed.withLock { $0 = true }
        }
        group.leave()
      }
    }
    group.notify(queue: queue) { [self] in
      context.close { completion(!failed.withLock { $0 }) }
    }
  }

  /// Makes an export durable, and calls back with why that failed. Other loops may answer flushes
  /// of it still, which have to be told of an error as well.
  private func syncLast(
    _ export: Export, _ completion: @escaping @Sendable (AIOError?) -> Void
  ) {
    let mayBegin = export.syncs.begin(whenEnded: { [self] in
      context.async { [self] in syncLast(export, completion) }
    })
    guard mayBegin else { return }
    let ended: @Sendable (AIOError?) -> Void = { error in
      export.syncs.end(error)
      completion(error ?? export.syncs.failure)
    }
    do throws(AIOError) {
      try context.fdatasync(export.file) { result in
        if case .failure(let error) = result { ended(error) } else { ended(nil) }
      }
    } catch {
      ended(error)
    }
  }
}
