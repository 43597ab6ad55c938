// SPDX-License-Identifier: Apache-2.0

import CEngines
import Dispatch
import DispatchAIO
import Foundation

/// The vocabulary that `DispatchIO` and `AIOChannel` share.
protocol RandomAccessChannel: AnyObject, SendableMetatype {
  func setLimit(lowWater: Int)
  func close()
  func read(
    offset: off_t, length: Int, queue: DispatchQueue,
    ioHandler: @escaping @Sendable (Bool, DispatchData?, Int32) -> Void)
  func write(
    offset: off_t, data: DispatchData, queue: DispatchQueue,
    ioHandler: @escaping @Sendable (Bool, DispatchData?, Int32) -> Void)
}

extension DispatchIO: RandomAccessChannel {
  func close() { close(flags: []) }
}

extension AIOChannel: RandomAccessChannel {
  func close() { close(flags: []) }
}

/// `DispatchIO`, one random-access channel.
struct DispatchIOEngine: Engine {
  func run(_ job: Job, _ meter: Meter) throws {
    let loop = DispatchQueue(label: "aio-bench.loop")
    try ChannelRun.run(job, meter, "dispatchio", on: loop) { descriptor, whenClosed in
      DispatchIO(type: .random, fileDescriptor: descriptor, queue: loop, cleanupHandler: whenClosed)
    }
  }
}

/// `AIOChannel`, one channel.
struct ChannelEngine: Engine {
  func run(_ job: Job, _ meter: Meter) throws {
    let context = try AIOContext(queueDepth: min(job.depth + 1, 65536))
    try ChannelRun.run(job, meter, "dispatch-aio-channel", on: context.queue) {
      AIOChannel(
        type: .random, fileDescriptor: $0, queue: context.queue, on: context, cleanupHandler: $1)
    }
  }
}

private enum ChannelRun {
  static func run<C: RandomAccessChannel>(
    _ job: Job, _ meter: Meter, _ name: String, on loop: DispatchQueue,
    _ makeChannel: (Int32, @escaping @Sendable (Int32) -> Void) -> C
  ) throws {
    guard job.fdatasyncEvery == 0 else { throw BenchError("\(name) has no fdatasync") }
    let descriptor = try job.open()
    let closed = DispatchSemaphore(value: 0)
    let channel = makeChannel(descriptor) { _ in
      Glibc.close(descriptor)
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
  private final class Runner<C: RandomAccessChannel>: @unchecked Sendable {
    let job: Job
    let meter: Meter
    let channel: C
    let loop: DispatchQueue
    let done = DispatchSemaphore(value: 0)
    var failure: BenchError?
    private var offsets: Offsets
    private var inFlight = 0

    init(_ job: Job, _ meter: Meter, _ channel: C, _ loop: DispatchQueue) {
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
        // Handlers run one after the other.
        nonisolated(unsafe) var count = 0
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
