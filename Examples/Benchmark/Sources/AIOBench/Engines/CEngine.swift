// SPDX-License-Identifier: Apache-2.0

import CEngines
import Foundation

/// A loop in C over libaio: batching, or in the way of the C original.
struct CEngine: Engine {
  let batches: Bool

  func run(_ job: Job, _ meter: Meter) throws {
    let descriptor = try job.open()
    defer { close(descriptor) }
    var result = cengines_result()
    meter.fromC { samples, capacity, progress in
      var job = cengines_job(
        fd: descriptor, depth: Int32(job.depth), is_write: job.pattern.isWrite ? 1 : 0,
        is_random: job.pattern.isRandom ? 1 : 0, is_append: job.pattern == .append ? 1 : 0,
        fdatasync_every: Int32(job.fdatasyncEvery), verify: job.verifies ? 1 : 0,
        batches: batches ? 1 : 0, block: UInt64(job.blockSize), blocks: UInt64(job.blocks),
        runtime: UInt64(job.runtime * 1e9), seed: Offsets.randomState, samples: samples,
        samples_capacity: UInt64(capacity))
      let began = cengines_now()
      cengines_run(&job, &result, progress)
      return (Int(result.samples), began, began + result.elapsed)
    }
    meter.longestStall = result.longest_submit
    meter.wrong = Int(result.wrong)
    guard result.error == 0 else {
      throw BenchError("\(job.file): \(String(cString: strerror(result.error)))")
    }
  }
}
