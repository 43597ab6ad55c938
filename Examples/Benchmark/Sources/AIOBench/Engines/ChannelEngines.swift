// SPDX-License-Identifier: Apache-2.0

import CEngines
import Dispatch
import Foundation

/// `DispatchIO`, one random-access channel.
struct DispatchIOEngine: Engine {
  func run(_ job: Job, _ meter: Meter) throws {
    guard job.fdatasyncEvery == 0 else { throw BenchError("dispatchio has no fdatasync") }
    let descriptor = try job.open()
    let loop = DispatchQueue(label: "aio-bench.loop")
    let closed = DispatchSemaphore(value: 0)
    let channel = DispatchIO(type: .random, fileDescriptor: descriptor, queue: loop) { _ in
      close(descriptor)
      closed.signal()
    }
    channel.setLimit(lowWater: job.blockSize)
    let runner = Runner(job, meter, channel, loop)
    loop.async { runner.begin() }
    runner.done.wait()
    channel.close()
    closed.wait()
    if let failure = runner.failure { throw failure }
  }

  /// - Safety: `@unchecked Sendable` because it is confined to the loop.
  private final class Runner: @unchecked Sendable {
    let job: Job
    let meter: Meter
    let channel: DispatchIO
    let loop: DispatchQueue
    let done = DispatchSemaphore(value: 0)
    var failure: BenchError?
    private var offsets: Offsets
    private var inFlight = 0

    init(_ job: Job, _ meter: Meter, _ channel: DispatchIO, _ loop: DispatchQueue) {
      (self.job, self.meter, self.channel, self.loop) = (job, meter, channel, loop)
      offsets = Offsets(job)
    }

    func begin() {
      let now = meter.begin()
      inFlight = job.depth
      for _ in 0..<job.depth { submit(now) }
    }

    private func submit(_ started: UInt64) {
      let offset = offsets.removeFirst()
      if job.pattern.isWrite {
        let memory = UnsafeMutableRawBufferPointer.allocate(
          byteCount: job.blockSize, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0x55)
        if job.verifies {
          cengines_stamp(memory.baseAddress, UInt64(memory.count), UInt64(offset))
        }
        let data = DispatchData(
          bytesNoCopy: UnsafeRawBufferPointer(memory),
          deallocator: .custom(nil, { memory.deallocate() }))
        channel.write(offset: off_t(offset), data: data, queue: loop) { [self] isDone, _, error in
          if isDone { completed(error, started) }
        }
      } else {
        var count = 0
        channel.read(offset: off_t(offset), length: job.blockSize, queue: loop) {
          [self] isDone, data, error in
          if job.verifies, let data, data.count > 0 {
            let bytes = [UInt8](data)
            if cengines_check(bytes, UInt64(bytes.count), UInt64(offset) + UInt64(count)) == 0 {
              meter.wrong += 1
            }
          }
          count += data?.count ?? 0
          if isDone { completed(error == 0 && count != job.blockSize ? EIO : error, started) }
        }
      }
    }

    private func completed(_ error: Int32, _ started: UInt64) {
      if error != 0 { failure = BenchError("\(job.file): \(String(cString: strerror(error)))") }
      let (now, continues) = meter.completed(started)
      if continues && failure == nil { return submit(now) }
      inFlight -= 1
      if inFlight == 0 {
        meter.end()
        done.signal()
      }
    }
  }
}
