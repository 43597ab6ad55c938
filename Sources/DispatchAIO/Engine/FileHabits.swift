// SPDX-License-Identifier: Apache-2.0
//
// Which requests on a file would make the kernel sleep in `io_submit`, as far as one knows. What is
// not known is tried with RWF_NOWAIT, whose refusals teach the rest:
//
//   - A write beyond the end allocates blocks and changes the size, under the inode's lock: known
//     from the size when the file was opened, and from every write since.
//   - A write into a hole, on a copy-on-write filesystem, or under somebody else's lock is refused
//     (-EAGAIN): a few times in a row, and the next ones do not try, except one in sixteen; the
//     first that is not refused makes the file fast again.
//   - A filesystem or kernel without NOWAIT says so (-EOPNOTSUPP): never again. ext4 does, for
//     buffered writes.
//   - A buffered request is done within `io_submit`. From the page cache that is a copy, which is
//     no sleep, but takes time: a large one goes to the sleeping side.
//   - tmpfs knows no NOWAIT, and waits for nothing but pages that were swapped out, which nobody can
//     tell beforehand: its requests go down as they are, large ones apart.

internal import Synchronization

/// How a request goes to the kernel.
enum Route: Equatable {
  /// From the loop, as it is: it cannot sleep.
  case plain
  /// From the loop with RWF_NOWAIT: where it would have to sleep, it is refused.
  case nowait
  /// From a thread that may sleep, into the same kernel context.
  case asleep
  /// By a system call of a thread that may sleep, because kernel AIO does not have it.
  case performed
}

/// Shared by every context that uses the file; everything is a hint, and so relaxed.
final class FileHabits: Sendable {
  /// What the loop copies in one request, at the most: 256 KiB take some 30 us.
  static var longestCopy: Int { 256 << 10 }
  /// After so many refusals in a row, requests stop trying …
  private static var patience: UInt32 { 4 }
  /// … except every so many.
  private static var probing: UInt32 { 16 }

  private let isDirect: Bool
  private let isMemory: Bool
  private let appends: Bool
  /// Bytes below this are known to be in the file.
  private let end: Atomic<Int64>
  /// How often in a row requests were refused, or did not try.
  private let readRefusals = Atomic<UInt32>(0)
  private let writeRefusals = Atomic<UInt32>(0)
  /// No NOWAIT at all.
  private let readsMustSleep = Atomic<Bool>(false)
  private let writesMustSleep = Atomic<Bool>(false)
  /// No IOCB_CMD_FSYNC.
  private let syncsMustSleep = Atomic<Bool>(false)

  init(_ traits: OpenFile.Traits, size: Int64) {
    isDirect = traits.isDirect
    isMemory = traits.isMemory
    appends = traits.appends
    end = Atomic(size)
  }

  // MARK: Deciding

  @inline(__always)
  func route(_ verb: Verb, offset: Int64, length: Int) -> Route {
    switch verb {
    case .read:
      if isMemory { return length <= Self.longestCopy ? .plain : .asleep }
      if !isDirect && length > Self.longestCopy { return .asleep }
      return tries(readsMustSleep, readRefusals) ? .nowait : .asleep
    case .write:
      if isMemory { return length <= Self.longestCopy ? .plain : .asleep }
      if !isDirect && length > Self.longestCopy { return .asleep }
      if appends || offset + Int64(length) > end.load(ordering: .relaxed) { return .asleep }
      return tries(writesMustSleep, writeRefusals) ? .nowait : .asleep
    case .fsync, .fdatasync:
      return syncsMustSleep.load(ordering: .relaxed) ? .performed : .plain
    }
  }

  @inline(__always)
  private func tries(_ mustSleep: borrowing Atomic<Bool>, _ refusals: borrowing Atomic<UInt32>)
    -> Bool
  {
    if mustSleep.load(ordering: .relaxed) { return false }
    if refusals.load(ordering: .relaxed) < Self.patience { return true }
    return refusals.add(1, ordering: .relaxed).newValue % Self.probing == 0
  }

  // MARK: Learning

  /// A request with RWF_NOWAIT was refused (-EAGAIN).
  func refused(_ verb: Verb) {
    switch verb {
    case .read: readRefusals.add(1, ordering: .relaxed)
    case .write: writeRefusals.add(1, ordering: .relaxed)
    case .fsync, .fdatasync: break
    }
  }

  /// A request with RWF_NOWAIT was done at once.
  @inline(__always)
  func accepted(_ verb: Verb) {
    switch verb {
    case .read:
      if readRefusals.load(ordering: .relaxed) != 0 { readRefusals.store(0, ordering: .relaxed) }
    case .write:
      if writeRefusals.load(ordering: .relaxed) != 0 { writeRefusals.store(0, ordering: .relaxed) }
    case .fsync, .fdatasync: break
    }
  }

  /// The kernel or the filesystem does not have what was asked for (-EOPNOTSUPP for RWF_NOWAIT,
  /// -EINVAL for a sync).
  func unsupported(_ verb: Verb) {
    switch verb {
    case .read: readsMustSleep.store(true, ordering: .relaxed)
    case .write: writesMustSleep.store(true, ordering: .relaxed)
    case .fsync, .fdatasync: syncsMustSleep.store(true, ordering: .relaxed)
    }
  }

  /// The file has grown: it is known to have the bytes below `offset`.
  @inline(__always)
  func extended(to offset: Int64) {
    var known = end.load(ordering: .relaxed)
    while offset > known {
      let (exchanged, seen) = end.compareExchange(
        expected: known, desired: offset, ordering: .relaxed)
      if exchanged { return }
      known = seen
    }
  }
}
