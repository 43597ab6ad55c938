// SPDX-License-Identifier: Apache-2.0

import CEngines
import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

/// This library with async/await: an actor on the loop's executor, and a task for each request in
/// flight, which awaits one after the other.
struct AsyncEngine: Engine {
  /// Whether the tasks prefer the loop, on which the actor is.
  var prefersLoop = true

  func run(_ job: Job, _ meter: Meter) throws {
    let context = try AIOContext(queueDepth: min(job.depth + 1, 65536))
    let file = try AIOFile(
      adopting: FileDescriptor(rawValue: try job.open()), path: FilePath(job.file))
    let runner = Runner(job, meter, context, file, prefersLoop)
    let done = DispatchSemaphore(value: 0)
    let failure = Failure()
    Task {
      do {
        try await runner.run()
      } catch {
        failure.error = error
      }
      await context.close()
      done.signal()
    }
    done.wait()
    meter.longestStall = UInt64(context.statistics.longestSubmit / .nanoseconds(1))
    if let error = failure.error { throw error }
  }

  /// - Safety: `@unchecked Sendable` because it is written before the signal, and read after.
  private final class Failure: @unchecked Sendable {
    var error: (any Error)?
  }

  private actor Runner {
    let job: Job
    let meter: Meter
    let context: AIOContext
    let file: AIOFile
    nonisolated var unownedExecutor: UnownedSerialExecutor {
      context.executor.asUnownedSerialExecutor()
    }
    private let prefersLoop: Bool
    private var offsets: Offsets
    private var written = 0
    private var isSyncing = false

    init(_ job: Job, _ meter: Meter, _ context: AIOContext, _ file: AIOFile, _ prefersLoop: Bool) {
      self.prefersLoop = prefersLoop
      (self.job, self.meter, self.context, self.file) = (job, meter, context, file)
      offsets = Offsets(job)
    }

    func run() async throws {
      let now = meter.begin()
      try await withThrowingTaskGroup(of: Void.self) { group in
        for _ in 0..<job.depth {
          group.addTask(executorPreference: prefersLoop ? context.taskExecutor : nil) {
            try await self.work(now)
          }
        }
        try await group.waitForAll()
      }
      meter.end()
    }

    /// One request after the other.
    private func work(_ began: UInt64) async throws {
      var buffer = AIOUniqueBuffer(count: job.blockSize)
      var (started, continues) = (began, true)
      while continues {
        let offset = offsets.removeFirst()
        let count: Int
        if job.pattern.isWrite {
          if job.verifies {
            buffer.withUnsafeMutableBytes {
              cengines_stamp($0.baseAddress, UInt64($0.count), UInt64(offset))
            }
          }
          count = try await context.write(file, at: offset, from: buffer)
        } else {
          count = try await context.read(file, at: offset, into: &buffer)
        }
        guard count == job.blockSize else {
          throw BenchError("\(count) of \(job.blockSize) bytes at \(offset)")
        }
        if job.verifies && !job.pattern.isWrite {
          buffer.withUnsafeBytes {
            if cengines_check($0.baseAddress, UInt64($0.count), UInt64(offset)) == 0 {
              meter.wrong += 1
            }
          }
        }
        (started, continues) = meter.completed(started)
        if job.fdatasyncEvery > 0 { try await sync() }
      }
    }

    private func sync() async throws {
      written += 1
      guard written >= job.fdatasyncEvery, !isSyncing else { return }
      written = 0
      isSyncing = true
      defer { isSyncing = false }
      try await context.fdatasync(file)
    }
  }
}
