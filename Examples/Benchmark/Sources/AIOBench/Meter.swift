// SPDX-License-Identifier: Apache-2.0

import CEngines
import Histogram
import Synchronization

/// Takes note of what an engine does. One thread at a time calls `completed`; anyone may look at
/// `requests` meanwhile.
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
  /// The longest that the loop was kept by one thing, in nanoseconds; `nil` where nobody knows.
  var longestStall: UInt64?
  var wrong = 0

  init(_ job: Job) {
    runtime = UInt64(job.runtime * 1e9)
    samples = .allocate(capacity: 16 << 20)
    // Touched now rather than while time is measured.
    samples.initialize(repeating: 0)
  }

  deinit { samples.deallocate() }

  var requests: Int { counter.load(ordering: .relaxed) }

  /// To be called once, when the first request is made.
  func begin() -> UInt64 {
    began = cengines_now()
    deadline = began + runtime
    return began
  }

  /// Takes note of a request that has completed.
  ///
  /// - Returns: now, and whether another is wanted in its place.
  @inline(__always)
  func completed(_ started: UInt64) -> (now: UInt64, goesOn: Bool) {
    let now = cengines_now()
    if sampleCount < samples.count {
      samples[sampleCount] = UInt32(clamping: now - started)
      sampleCount += 1
    }
    counter.store(counter.load(ordering: .relaxed) + 1, ordering: .relaxed)
    return (now, now < deadline)
  }

  func end() { ended = cengines_now() }

  /// Adds what another one, of the same job, has measured meanwhile.
  func add(_ other: Meter) {
    let count = min(other.sampleCount, samples.count - sampleCount)
    for index in 0..<count { samples[sampleCount + index] = other.samples[index] }
    sampleCount += count
    counter.add(other.requests, ordering: .relaxed)
    began = min(began, other.began)
    ended = max(ended, other.ended)
    wrong += other.wrong
  }

  /// For an engine in C: the same memory, and its counter.
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

  /// What `requests` is, also while an engine in C is at work.
  var progress: Int {
    // A word that the other thread counts up: whichever value is read will do for a progress line.
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
