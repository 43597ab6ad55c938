// SPDX-License-Identifier: Apache-2.0
//
// Engines of threads around pread and pwrite, with the completions on one loop, as programs without
// asynchronous I/O have them.

import CEngines
import Dispatch
import Foundation
import NIOCore
import NIOPosix

/// A file whose requests are made by threads that may block.
struct BlockingFile: Sendable {
  let descriptor: Int32
  let job: Job

  /// - Returns: an errno, or 0.
  func transfer(_ memory: UnsafeMutableRawBufferPointer, at offset: Int64) -> Int32 {
    let count: Int
    if job.pattern.isWrite {
      if job.verifies {
        cengines_stamp(memory.baseAddress, UInt64(memory.count), UInt64(offset))
      }
      count = pwrite(descriptor, memory.baseAddress, memory.count, off_t(offset))
    } else {
      count = pread(descriptor, memory.baseAddress, memory.count, off_t(offset))
    }
    if count == memory.count { return 0 }
    return count < 0 ? errno : EIO
  }
}

/// The loop's side of a blocking engine.
///
/// - Safety: `@unchecked Sendable` because it is confined to the loop.
final class BlockingRunner: @unchecked Sendable {
  typealias Memory = UnsafeMutableRawBufferPointer
  let job: Job
  let meter: Meter
  let file: BlockingFile
  let done = DispatchSemaphore(value: 0)
  private(set) var failure: BenchError?
  /// Makes a request; `completed` is to be called on the loop when it is done.
  private let start: @Sendable (BlockingRunner, Memory, Int64, _ started: UInt64) -> Void
  private var offsets: Offsets
  private var inFlight = 0
  private var written = 0
  private var memory: [Memory] = []

  init(
    _ job: Job, _ meter: Meter, _ file: BlockingFile,
    start: @escaping @Sendable (BlockingRunner, Memory, Int64, _ started: UInt64) -> Void
  ) {
    (self.job, self.meter, self.file, self.start) = (job, meter, file, start)
    offsets = Offsets(job)
  }

  deinit { for memory in memory { memory.deallocate() } }

  func begin() {
    let now = meter.begin()
    for _ in 0..<job.depth {
      memory.append(.allocate(byteCount: job.blockSize, alignment: 4096))
      memory.last?.initializeMemory(as: UInt8.self, repeating: 0x55)
    }
    inFlight = job.depth
    for memory in memory { start(self, memory, offsets.removeFirst(), now) }
  }

  func completed(_ errno: Int32, _ memory: Memory, _ offset: Int64, _ started: UInt64) {
    if errno != 0 { failure = BenchError("\(job.file): \(String(cString: strerror(errno)))") }
    if job.verifies && !job.pattern.isWrite,
      cengines_check(memory.baseAddress, UInt64(memory.count), UInt64(offset)) == 0
    {
      meter.wrong += 1
    }
    let (now, continues) = meter.completed(started)
    if continues && failure == nil { return start(self, memory, offsets.removeFirst(), now) }
    inFlight -= 1
    if inFlight == 0 {
      meter.end()
      done.signal()
    }
  }

  /// Whether this write is one that an fdatasync follows. On the loop.
  func syncsNow() -> Bool {
    guard job.fdatasyncEvery > 0 else { return false }
    written += 1
    return written % job.fdatasyncEvery == 0
  }
}

/// A concurrent Dispatch queue and `pread`.
struct ConcurrentQueueEngine: Engine {
  func run(_ job: Job, _ meter: Meter) throws {
    let file = BlockingFile(descriptor: try job.open(), job: job)
    defer { close(file.descriptor) }
    let loop = DispatchQueue(label: "aio-bench.loop")
    let workers = DispatchQueue(label: "aio-bench.workers", attributes: .concurrent)
    let runner = BlockingRunner(job, meter, file) { runner, memory, offset, started in
      let syncs = runner.syncsNow()
      nonisolated(unsafe) let memory = memory  // the request's, until it completes
      workers.async {
        let errno = file.transfer(memory, at: offset)
        if syncs { fdatasync(file.descriptor) }
        loop.async { runner.completed(errno, memory, offset, started) }
      }
    }
    loop.async { runner.begin() }
    runner.done.wait()
    if let failure = runner.failure { throw failure }
  }
}

/// SwiftNIO's thread pool and `pread`, with as many threads as requests in flight.
struct NIOThreadPoolEngine: Engine {
  func run(_ job: Job, _ meter: Meter) throws {
    let file = BlockingFile(descriptor: try job.open(), job: job)
    defer { close(file.descriptor) }
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let pool = NIOThreadPool(numberOfThreads: job.depth)
    pool.start()
    defer {
      try? pool.syncShutdownGracefully()
      try? group.syncShutdownGracefully()
    }
    let loop = group.next()
    let runner = BlockingRunner(job, meter, file) { runner, memory, offset, started in
      let syncs = runner.syncsNow()
      nonisolated(unsafe) let memory = memory  // the request's, until it completes
      pool.runIfActive(eventLoop: loop) {
        let errno = file.transfer(memory, at: offset)
        if syncs { fdatasync(file.descriptor) }
        return errno
      }.whenSuccess { runner.completed($0, memory, offset, started) }
    }
    loop.execute { runner.begin() }
    runner.done.wait()
    if let failure = runner.failure { throw failure }
  }
}
