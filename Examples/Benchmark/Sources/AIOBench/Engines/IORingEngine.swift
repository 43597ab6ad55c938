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
    // Its entries are a power of two.
    var entries: UInt32 = 1
    while entries < job.depth { entries *= 2 }
    var ring: IORing
    do {
      ring = try IORing(queueDepth: entries)
    } catch {
      throw BenchError("io_uring: \(error)")
    }
    var offsets = Offsets(job)
    let memory = (0..<job.depth).map { _ in
      UnsafeMutableRawBufferPointer.allocate(byteCount: job.blockSize, alignment: 4096)
    }
    defer { for memory in memory { memory.deallocate() } }
    var places = [Int64](repeating: 0, count: job.depth)
    var started = [UInt64](repeating: meter.begin(), count: job.depth)
    var waiting = Array(0..<job.depth)
    var inFlight = 0
    var failure: BenchError?
    while !waiting.isEmpty || inFlight > 0 {
      for index in waiting {
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
      inFlight += waiting.count
      waiting.removeAll(keepingCapacity: true)
      try ring.submitPreparedRequests()
      var took: [(Int, Int32)] = []
      try ring.blockingConsumeCompletions(minimumCount: 1) { completion, error, _ in
        if let error { throw BenchError("io_uring: \(error)") }
        guard let completion else { return }
        took.append((Int(completion.context), completion.result))
      }
      for (index, result) in took {
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
        let (now, goesOn) = meter.completed(started[index])
        if goesOn && failure == nil {
          started[index] = now
          waiting.append(index)
        }
      }
    }
    meter.end()
    if let failure { throw failure }
  }
}
