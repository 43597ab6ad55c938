// SPDX-License-Identifier: Apache-2.0
//
// Flushes and FUA: one fdatasync of an export at a time, for all that asked before it began.

import DispatchAIO

/// The commands of one export that wait for an fdatasync, and those that the running one answers.
struct SyncQueue {
  private(set) var isRunning = false
  private(set) var running: [Command] = []
  private(set) var waiting: [Command] = []

  var mayBegin: Bool { !isRunning && !waiting.isEmpty }

  mutating func append(_ command: Command) { waiting.append(command) }

  /// The fdatasync for the commands that wait has been submitted.
  mutating func begin() {
    isRunning = true
    swap(&running, &waiting)
  }

  /// The fdatasync has completed.
  ///
  /// - Returns: the commands to answer.
  mutating func end() -> [Command] {
    defer { running.removeAll(keepingCapacity: true) }
    isRunning = false
    return running
  }

  /// Removes the commands that wait.
  mutating func takeWaiting() -> [Command] {
    defer { waiting = [] }
    return waiting
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
      do throws(AIOError) {
        try context.fdatasync(exports[index].file) { [self] in synced(index, $0) }
        syncs[index].begin()
        statistics.syncs += 1
      } catch {
        guard !error.isRetryable else {
          wantsSync = true
          continue
        }
        for command in syncs[index].takeWaiting() { fail(command, .inputOutput, "\(error)") }
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
    for command in commands {
      switch result {
      case .success: command.connection!.finish(command)
      case .failure(let error): fail(command, .inputOutput, "\(error)")
      }
    }
  }
}
