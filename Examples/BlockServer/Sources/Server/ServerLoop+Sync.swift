// SPDX-License-Identifier: Apache-2.0
//
// Flushes and FUA: one fdatasync of an export at a time, for all that asked before it began.

import DispatchAIO

/// The commands of one export that wait for an fdatasync, and those that the running one answers.
struct SyncQueue {
  private enum State {
    case idle
    /// Another loop's fdatasync has to end first.
    case queued
    case running
  }

  private var state = State.idle
  private var running: [Command] = []
  private var waiting: [Command] = []

  var mayBegin: Bool { state == .idle && !waiting.isEmpty }

  mutating func append(_ command: Command) { waiting.append(command) }

  /// The fdatasync follows when another loop's has ended.
  mutating func wait() { state = .queued }
  mutating func endWait() { state = .idle }

  /// The fdatasync for the commands that wait has been submitted.
  mutating func begin() {
    state = .running
    swap(&running, &waiting)
  }

  /// The fdatasync has completed.
  ///
  /// - Returns: the commands to answer.
  mutating func end() -> [Command] {
    defer { running.removeAll(keepingCapacity: true) }
    state = .idle
    return running
  }

  /// Removes and returns the commands that wait: all, or those of a connection.
  mutating func takeWaiting(of connection: Connection? = nil) -> [Command] {
    guard let connection else {
      defer { waiting = [] }
      return waiting
    }
    let taken = waiting.filter { $0.connection === connection }
    if !taken.isEmpty { waiting.removeAll { $0.connection === connection } }
    return taken
  }
}

extension ServerLoop {
  /// Answers a command when all that was written before is durable.
  func sync(_ command: Command) {
    syncs[command.connection!.exportIndex].append(command)
    wantsSync = true
    workSoon()
  }

  /// Starts the fdatasyncs that were asked for in this turn. A running one may have begun before
  /// the writes that they cover, so they wait for its end.
  func startSyncs() {
    guard wantsSync else { return }
    wantsSync = false
    for index in syncs.indices where syncs[index].mayBegin {
      let export = exports[index]
      if let error = export.syncs.failure {
        for command in syncs[index].takeWaiting() { fail(command, error) }
        continue
      }
      let mayBegin = export.syncs.begin(whenEnded: { [self] in
        context.async { [self] in
          syncs[index].endWait()
          wantsSync = true
          workSoon()
        }
      })
      guard mayBegin else {
        syncs[index].wait()
        continue
      }
      do throws(AIOError) {
        try context.fdatasync(export.file) { [self] in synced(index, $0) }
        syncs[index].begin()
        statistics.syncs += 1
      } catch {
        export.syncs.end(error)
        guard !error.isRetryable else {
          wantsSync = true
          continue
        }
        for command in syncs[index].takeWaiting() { fail(command, error) }
      }
    }
  }

  private func synced(_ index: Int, _ result: Result<Int, AIOError>) {
    let commands = syncs[index].end()
    roomWasMade()
    if syncs[index].mayBegin {
      wantsSync = true
      workSoon()
    }
    guard case .failure(let error) = result else {
      exports[index].syncs.end(nil)
      for command in commands { command.connection!.finish(command) }
      return
    }
    exports[index].syncs.end(error)
    if exports[index].syncs.failure != nil {
      logger.error(
        """
        \(exports[index].path): \(error); what was written through the page cache may be lost, so \
        that every flush fails from now on; check the data, and start the server again
        """)
    }
    for command in commands { fail(command, error) }
  }

  private func fail(_ command: Command, _ error: AIOError) {
    fail(command, .inputOutput, "\(error)")
  }
}
