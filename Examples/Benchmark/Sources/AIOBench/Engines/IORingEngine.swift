// SPDX-License-Identifier: Apache-2.0

import CEngines
import Foundation
import SystemPackage

/// swift-system's IORing, in a loop of its own that waits in the kernel.
struct IORingEngine: Engine {
  func run(_ job: Job, _ meter: Meter) throws {
    guard job.fdatasyncEvery == 0 else { throw BenchError("IORing has no fdatasync") }
    let descriptor = FileDescriptor(rawValue: try job.open())
    defer { try? descriptor.close() }
    // The number of entries has to be a power of two.
    var entries: UInt32 = 1
    while entries < job.depth { entries *= 2 }
    var ring: IORing
    do {
      ring = try IORing(queueDepth: entries)
    } catch {
      throw BenchError("io_uring: \(error)")
    }
    var requests = Requests(job, meter)
    defer { requests.deallocate() }
    while requests.isActive {
      requests.prepare(&ring, descriptor)
      try ring.submitPreparedRequests()
      var took: [(Int, Int32)] = []
      try ring.blockingConsumeCompletions(minimumCount: 1) { completion, error, _ in
        if let error { throw BenchError("io_uring: \(error)") }
        guard let completion else { return }
        took.append((Int(completion.context), completion.result))
      }
      for (index, result) in took { requests.complete(index, result) }
    }
    meter.end()
    if let failure = requests.failure { throw failure }
  }

  /// The requests of a run, by index: their memory, offsets and times.
  private struct Requests {
    let job: Job
    let meter: Meter
    private(set) var failure: BenchError?
    private var offsets: Offsets
    private let memory: [UnsafeMutableRawBufferPointer]
    private var places: [Int64]
    private var started: [UInt64]
    /// The requests to be made next.
    private var ready: [Int]
    private var inFlight = 0

    /// Starts the clock.
    init(_ job: Job, _ meter: Meter) {
      (self.job, self.meter) = (job, meter)
      offsets = Offsets(job)
      memory = (0..<job.depth).map { _ in
        .allocate(byteCount: job.blockSize, alignment: 4096)
      }
      places = Array(repeating: 0, count: job.depth)
      started = Array(repeating: meter.begin(), count: job.depth)
      ready = Array(0..<job.depth)
    }

    func deallocate() { for memory in memory { memory.deallocate() } }

    var isActive: Bool { !ready.isEmpty || inFlight > 0 }

    /// Prepares all requests that are ready.
    mutating func prepare(_ ring: inout IORing, _ descriptor: FileDescriptor) {
      for index in ready {
        let offset = offsets.removeFirst()
        places[index] = offset
        if job.pattern.isWrite {
          if job.verifies {
            cengines_stamp(
              memory[index].baseAddress, UInt64(job.blockSize), UInt64(offset))
          }
          _ = ring.prepare(
            request: .write(
              memory[index], into: descriptor, at: UInt64(offset), context: UInt64(index)))
        } else {
          _ = ring.prepare(
            request: .read(
              descriptor, into: memory[index], at: UInt64(offset), context: UInt64(index)))
        }
      }
      inFlight += ready.count
      ready.removeAll(keepingCapacity: true)
    }

    /// Notes a completion, after which the request is ready for the next while there is time.
    mutating func complete(_ index: Int, _ result: Int32) {
      inFlight -= 1
      if result != job.blockSize {
        failure = BenchError("\(job.file): io_uring answers \(result)")
      }
      if job.verifies && !job.pattern.isWrite,
        cengines_check(memory[index].baseAddress, UInt64(job.blockSize), UInt64(places[index]))
          == 0
      {
        meter.wrong += 1
      }
      let (now, continues) = meter.completed(started[index])
      if continues && failure == nil {
        started[index] = now
        ready.append(index)
      }
    }
  }
}
