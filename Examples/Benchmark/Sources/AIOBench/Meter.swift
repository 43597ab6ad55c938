// SPDX-License-Identifier: Apache-2.0

import CEngines
import Histogram
import Synchronization

/// The record of an engine's run. One thread at a time calls `completed`; `requests` may be read
/// from any.
///
/// - Safety: `@unchecked Sendable` because an engine calls it from one queue or thread only, and
///   `requests` is atomic.
final class Meter: @unchecked Sendable {
  private let samples: UnsafeMutableBufferPointer<UInt32>
  private var sampleCount = 0
  private var deadline: UInt64 = .max
  private let runtime: UInt64
  private let counter = Atomic<Int>(0)
  private(set) var began: UInt64 = 0
  private(set) var ended: UInt64 = 0
  /// The longest submission on the loop, in nanoseconds; `nil` if the engine does not tell.
  var longestStall: UInt64?
  var wrong = 0

  init(_ job: Job) {
    runtime = UInt64(job.runtime * 1e9)
    samples = .allocate(capacity: 16 << 20)
    // Touched now, so that no page fault is measured.
    samples.initialize(repeating: 0)
  }

  deinit { samples.deallocate() }

  var requests: Int { counter.load(ordering: .relaxed) }

  /// Starts the clock. To be called once, before the first request.
  func begin() -> UInt64 {
    began = cengines_now()
    deadline = began + runtime
    return began
  }

  /// Notes a request that has completed.
  ///
  /// - Returns: the time, and whether another request is to follow.
  @inline(__always)
  func completed(_ started: UInt64) -> (now: UInt64, continues: Bool) {
    let now = cengines_now()
    if sampleCount < samples.count {
      samples[sampleCount] = UInt32(clamping: now - started)
      sampleCount += 1
    }
    counter.store(counter.load(ordering: .relaxed) + 1, ordering: .relaxed)
    return (now, now < deadline)
  }

  func end() { ended = cengines_now() }

  /// Adds the record of another run, of the same job and at the same time.
  func add(_ other: Meter) {
    let count = min(other.sampleCount, samples.count - sampleCount)
    for index in 0..<count { samples[sampleCount + index] = other.samples[index] }
    sampleCount += count
    counter.add(other.requests, ordering: .relaxed)
    began = min(began, other.began)
    ended = max(ended, other.ended)
    wrong += other.wrong
  }

  /// Records the run of an engine in C, which gets the memory for its samples, and a counter.
  func fromC(
    _ body: (UnsafeMutablePointer<UInt32>, Int, UnsafeMutablePointer<UInt64>) -> (
      samples: Int, began: UInt64, ended: UInt64
    )
  ) {
    let progress = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    progress.initialize(to: 0)
    progressOfC = progress
    let result = body(samples.baseAddress!, samples.count, progress)
    (sampleCount, began, ended) = result
    counter.store(Int(progress.pointee), ordering: .relaxed)
  }

  private var progressOfC: UnsafeMutablePointer<UInt64>?

  /// The number of requests so far, also of an engine in C.
  var progress: Int {
    // A word that the other thread increments: any of its values will do for a progress line.
    progressOfC.map { Int($0.pointee) } ?? requests
  }

  /// The latencies, in nanoseconds.
  func histogram() -> Histogram<UInt64> {
    var histogram = Histogram<UInt64>(
      lowestDiscernibleValue: 1, highestTrackableValue: 1 << 33,
      numberOfSignificantValueDigits: .three)
    for index in 0..<sampleCount { histogram.record(UInt64(max(1, samples[index]))) }
    return histogram
  }
}
