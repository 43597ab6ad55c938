// SPDX-License-Identifier: Apache-2.0

import CEngines
import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

/// This library, callbacks.
struct DispatchAIOEngine: Engine {
  /// Whether completions go to another queue than the context's.
  var elsewhere = false
  var submission = AIOContext.Options.Submission.nonblocking
  var waiting = AIOContext.Options.Waiting.sleeping
  /// The way of the file to the disk; if `nil`, as the job says.
  var caching: AIOFile.Caching?

  func run(_ job: Job, _ meter: Meter) throws {
    var job = job
    if let caching { job.isDirect = caching == .direct }
    var options = AIOContext.Options()
    options.submission = submission
    options.waiting = waiting
    try Self.raiseFileLimit(job.files * job.contexts)
    let meters = [meter] + (1..<job.contexts).map { _ in Meter(job) }
    let runners = try meters.enumerated().map { number, meter in
      let context = try AIOContext(queueDepth: min(job.depth + 1, 65536), options: options)
      let files = try (0..<job.files).map { _ in
        try AIOFile(
          adopting: FileDescriptor(rawValue: try job.open()), path: FilePath(job.file),
          isAutomatic: caching == .automatic)
      }
      let queue = elsewhere ? DispatchQueue(label: "aio-bench.elsewhere.\(number)") : nil
      return Runner(job, meter, context, files, queue)
    }
    for runner in runners { (runner.queue ?? runner.context.queue).async { runner.begin() } }
    for runner in runners { runner.done.wait() }
    for runner in runners {
      let closed = DispatchSemaphore(value: 0)
      runner.context.close { closed.signal() }
      closed.wait()
      if let failure = runner.failure { throw failure }
    }
    meter.longestStall = runners.map {
      UInt64($0.context.statistics.longestSubmit / .nanoseconds(1))
    }.max()
    for other in meters.dropFirst() { meter.add(other) }
  }

  private static func raiseFileLimit(_ files: Int) throws {
    var limit = rlimit()
    getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    let needed = rlim_t(files + 64)
    guard limit.rlim_cur < needed else { return }
    limit.rlim_cur = needed
    limit.rlim_max = max(limit.rlim_max, needed)
    guard setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
      throw BenchError("\(files) open files are more than `ulimit -n` allows")
    }
  }

  /// - Safety: `@unchecked Sendable` because it is confined to the queue of its completions.
  private final class Runner: @unchecked Sendable {
    let job: Job
    let meter: Meter
    let context: AIOContext
    let files: [AIOFile]
    private var nextFile = 0
    let queue: DispatchQueue?
    let done = DispatchSemaphore(value: 0)
    var failure: (any Error)?
    private var offsets: Offsets
    private var inFlight = 0
    private var written = 0
    private var isSyncing = false

    init(
      _ job: Job, _ meter: Meter, _ context: AIOContext, _ files: [AIOFile],
      _ queue: DispatchQueue?
    ) {
      (self.job, self.meter, self.context) = (job, meter, context)
      (self.files, self.queue) = (files, queue)
      offsets = Offsets(job)
    }

    func begin() {
      let now = meter.begin()
      for _ in 0..<job.depth {
        inFlight += 1
        submit(AIOBuffer(count: job.blockSize), now)
      }
    }

    private func submit(_ buffer: AIOBuffer, _ started: UInt64) {
      let offset = offsets.removeFirst()
      let file = files[nextFile]
      nextFile = nextFile + 1 == files.count ? 0 : nextFile + 1
      do {
        if job.pattern.isWrite {
          if job.verifies {
            buffer.withUnsafeMutableBytes {
              cengines_stamp($0.baseAddress, UInt64($0.count), UInt64(offset))
            }
          }
          try context.write(file, at: offset, from: buffer, queue: queue) { [self] result in
            completed(result, buffer, offset, started)
          }
        } else {
          try context.read(file, at: offset, into: buffer, queue: queue) { [self] result in
            completed(result, buffer, offset, started)
          }
        }
      } catch {
        failed(error)
      }
    }

    private func completed(
      _ result: Result<Int, AIOError>, _ buffer: AIOBuffer, _ offset: Int64, _ started: UInt64
    ) {
      switch result {
      case .success(job.blockSize): break
      case .success(let count):
        return failed(BenchError("\(count) of \(job.blockSize) bytes at \(offset)"))
      case .failure(let error): return failed(error)
      }
      if job.verifies && !job.pattern.isWrite {
        buffer.withUnsafeBytes {
          if cengines_check($0.baseAddress, UInt64($0.count), UInt64(offset)) == 0 {
            meter.wrong += 1
          }
        }
      }
      let (now, continues) = meter.completed(started)
      if continues && failure == nil {
        submit(buffer, now)
        if job.fdatasyncEvery > 0 { sync() }
      } else {
        ended()
      }
    }

    private func sync() {
      written += 1
      guard written >= job.fdatasyncEvery, !isSyncing else { return }
      written = 0
      isSyncing = true
      do {
        try context.fdatasync(files[0], queue: queue) { [self] result in
          isSyncing = false
          if case .failure(let error) = result { failure = error }
        }
      } catch {
        failure = error
      }
    }

    private func failed(_ error: any Error) {
      failure = error
      ended()
    }

    private func ended() {
      inFlight -= 1
      guard inFlight == 0 else { return }
      meter.end()
      done.signal()
    }
  }
}
