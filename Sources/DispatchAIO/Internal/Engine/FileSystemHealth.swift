// SPDX-License-Identifier: Apache-2.0
//
// Whether the writes of a file system are slow to be taken. While a file system is frozen
// (fsfreeze(8), and so each snapshot by LVM or a backup), `io_submit` of a write sleeps until it is
// thawed: the kernel takes the freeze protection before it looks at RWF_NOWAIT. Nothing tells of it
// beforehand. So the first such submission is waited for, and from then on the writes of that file
// system are offloaded, until it has passed.

internal import CLinux
internal import Synchronization

/// Shared by all files of a file system, and by all contexts; everything in it is a hint.
final class FileSystemHealth: Sendable {
  /// A submission that takes longer than this was not one that goes on at once, in nanoseconds.
  static let slowSubmit: UInt64 = 10_000_000
  /// The same for a write that an offload thread makes, which may have to wait for a slow disk.
  static let slowWrite: UInt64 = 100_000_000
  /// For how long writes are offloaded at least, in nanoseconds.
  static let probation: UInt64 = 1_000_000_000

  private static let all = Lock<[UInt64: FileSystemHealth]>([:])

  /// Until when writes are to be offloaded, by the monotonic clock; 0 while all is well.
  private let slowUntil = Atomic<UInt64>(0)
  /// How many writes offload threads are making.
  private let writesUnderWay = Atomic<Int>(0)
  /// When one of them ended last.
  private let lastEnd = Atomic<UInt64>(0)

  /// - Parameter device: `st_dev`.
  static func of(_ device: UInt64) -> FileSystemHealth {
    all.withLock { all in
      if let health = all[device] { return health }
      let health = FileSystemHealth()
      all[device] = health
      return health
    }
  }

  /// Whether writes are to be offloaded.
  @inline(__always)
  var isSlow: Bool {
    slowUntil.load(ordering: .relaxed) != 0 && isStillSlow(now: clinux_monotonic_nanoseconds())
  }

  func isStillSlow(now: UInt64) -> Bool {
    let until = slowUntil.load(ordering: .relaxed)
    if now < until { return true }
    if writesUnderWay.load(ordering: .relaxed) > 0,
      lastEnd.load(ordering: .relaxed) &+ Self.probation < until
    {
      // Not one has ended since: it has not passed.
      slowUntil.store(now &+ Self.probation, ordering: .relaxed)
      return true
    }
    slowUntil.store(0, ordering: .relaxed)
    return false
  }

  /// A submission of writes took so long, on the loop.
  func submissionTook(_ nanoseconds: UInt64, now: UInt64) {
    if nanoseconds > Self.slowSubmit { isSlow(for: nanoseconds, now: now) }
  }

  private func isSlow(for nanoseconds: UInt64, now: UInt64) {
    slowUntil.store(now &+ max(Self.probation, nanoseconds), ordering: .relaxed)
  }

  /// An offload thread begins a write.
  func writeBegins() { writesUnderWay.wrappingAdd(1, ordering: .relaxed) }

  /// An offload thread has ended a write that it began at `start`.
  func writeEnded(start: UInt64, now: UInt64) {
    if now &- start > Self.slowWrite { isSlow(for: now &- start, now: now) }
    writesUnderWay.wrappingSubtract(1, ordering: .relaxed)
    lastEnd.store(now, ordering: .relaxed)
  }
}
