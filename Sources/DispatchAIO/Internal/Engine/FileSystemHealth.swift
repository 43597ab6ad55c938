// SPDX-License-Identifier: Apache-2.0
//
// The health of a file system: whether the submission of writes to it is slow. While it is frozen
// (fsfreeze(8), and so each snapshot by LVM or a backup), `io_submit` of a write sleeps until it is
// thawed: the kernel takes the freeze protection before it looks at RWF_NOWAIT. Nothing predicts
// it. So the loop sleeps in the first such submission, and offloads the writes of that file system
// from then on, until they are fast.

internal import CKernel
internal import Synchronization

/// The health of one file system, shared by all its files and by all contexts. Everything in it is
/// a hint.
final class FileSystemHealth: Sendable {
  /// The time in nanoseconds beyond which a submission on the loop counts as slow.
  static let slowSubmit: UInt64 = 10_000_000
  /// The same for a write by an offload thread, which may have to wait for a slow disk.
  static let slowWrite: UInt64 = 100_000_000
  /// The shortest time for which writes are offloaded, in nanoseconds.
  static let probation: UInt64 = 1_000_000_000

  private static let all = Lock<[UInt64: FileSystemHealth]>([:])

  /// The time until which writes are offloaded, by the monotonic clock; 0 while they are fast.
  private let slowUntil = Atomic<UInt64>(0)
  /// The number of writes that offload threads are making.
  private let writesUnderWay = Atomic<Int>(0)
  /// The time at which the last of them ended.
  private let lastEnd = Atomic<UInt64>(0)

  /// - Parameter device: The device of the file system, `st_dev`.
  static func of(_ device: UInt64) -> FileSystemHealth {
    all.withLock { all in
      if let health = all[device] { return health }
      let health = FileSystemHealth()
      all[device] = health
      return health
    }
  }

  /// Whether writes have to be offloaded.
  @inline(__always)
  var isSlow: Bool {
    slowUntil.load(ordering: .relaxed) != 0 && isStillSlow(now: ckernel_monotonic_nanoseconds())
  }

  func isStillSlow(now: UInt64) -> Bool {
    let until = slowUntil.load(ordering: .relaxed)
    if now < until { return true }
    if writesUnderWay.load(ordering: .relaxed) > 0,
      lastEnd.load(ordering: .relaxed) &+ Self.probation < until
    {
      // None has ended since: the file system is still slow.
      slowUntil.store(now &+ Self.probation, ordering: .relaxed)
      return true
    }
    slowUntil.store(0, ordering: .relaxed)
    return false
  }

  /// Records how long a submission of writes on the loop took.
  func submissionTook(_ nanoseconds: UInt64, now: UInt64) {
    if nanoseconds > Self.slowSubmit { noteSlowness(for: nanoseconds, now: now) }
  }

  private func noteSlowness(for nanoseconds: UInt64, now: UInt64) {
    slowUntil.store(now &+ max(Self.probation, nanoseconds), ordering: .relaxed)
  }

  /// Records that an offload thread begins a write.
  func writeBegins() { writesUnderWay.wrappingAdd(1, ordering: .relaxed) }

  /// Records that an offload thread has ended a write that it began at `start`.
  func writeEnded(start: UInt64, now: UInt64) {
    if now &- start > Self.slowWrite { noteSlowness(for: now &- start, now: now) }
    writesUnderWay.wrappingSubtract(1, ordering: .relaxed)
    lastEnd.store(now, ordering: .relaxed)
  }
}
