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
//     no sleep, but takes time: a large one is offloaded. A buffered write to a file opened with
//     O_DSYNC or O_SYNC waits for the disk there (XFS syncs inside `io_submit`, NOWAIT or not).
//   - A memory file (tmpfs, ramfs, hugetlbfs) knows no NOWAIT, and waits for nothing but pages that
//     were swapped out, which nobody can tell beforehand: its requests go down as they are, large
//     ones apart.
//   - On a file system whose submissions were slow, as while it is frozen, writes are offloaded:
//     see FileSystemHealth.
//
// What is offloaded goes into the same kernel context by `io_submit` where the kernel goes on with
// it by itself, and is a plain system call where it is synchronous anyway: buffered transfers, and
// direct writes that extend the file (ext4 waits for those inside `io_submit`).

internal import Synchronization

/// Shared by every context that uses the file; everything is a hint, and so relaxed.
final class NowaitPredictor: Sendable {
  /// What the loop copies in one request, at the most: 256 KiB take some 30 us.
  static var longestCopy: Int { 256 << 10 }
  /// After so many refusals in a row, requests stop trying …
  private static var refusalThreshold: UInt32 { 4 }
  /// … except every so many.
  private static var retryInterval: UInt32 { 16 }

  private let isDirect: Bool
  private let isMemory: Bool
  private let appends: Bool
  private let needsSystemCalls: Bool
  private let health: FileSystemHealth
  /// Bytes below this are known to be in the file.
  private let end: Atomic<Int64>
  /// How often in a row requests were refused, or did not try. They wrap around, after which
  /// requests try as they did at first.
  private let readRefusals: Atomic<UInt32>
  private let writeRefusals: Atomic<UInt32>
  /// No NOWAIT at all.
  private let readsAreOffloaded = Atomic<Bool>(false)
  private let writesAreOffloaded: Atomic<Bool>
  /// No IOCB_CMD_FSYNC.
  private let syncsAreOffloaded = Atomic<Bool>(false)

  /// - Parameters:
  ///   - size: of the file, when it was opened.
  ///   - refusals: how many there have been; for tests.
  init(_ traits: OpenFile.Traits, size: Int64, refusals: UInt32 = 0) {
    isDirect = traits.isDirect
    isMemory = traits.isMemory
    appends = traits.appends
    needsSystemCalls = traits.needsSystemCalls
    health = FileSystemHealth.of(traits.device)
    end = Atomic(size)
    readRefusals = Atomic(refusals)
    writeRefusals = Atomic(refusals)
    writesAreOffloaded = Atomic(!traits.isDirect && !traits.isMemory && traits.syncsWrites)
  }

  // MARK: Deciding

  /// How a request goes down, which the kernel has not answered yet.
  @inline(__always)
  func route(_ verb: Verb, offset: Int64, length: Int) -> Route {
    if needsSystemCalls { return .syscall }
    switch verb {
    case .read:
      if isMemory { return length <= Self.longestCopy ? .inline : .syscall }
      if !isDirect && length > Self.longestCopy { return .syscall }
      return tries(readsAreOffloaded, readRefusals) ? .nowait : offloadRoute
    case .write:
      if isMemory { return length <= Self.longestCopy ? .inline : .syscall }
      if !isDirect && length > Self.longestCopy { return .syscall }
      if appends || offset + Int64(length) > end.load(ordering: .relaxed) { return .syscall }
      if health.isSlow { return offloadRoute }
      return tries(writesAreOffloaded, writeRefusals) ? .nowait : offloadRoute
    case .fsync, .fdatasync:
      return syncsAreOffloaded.load(ordering: .relaxed) ? .syscall : .inline
    }
  }

  /// How a request goes down that the loop must not submit.
  var offloadRoute: Route {
    @inline(__always) get { isDirect && !needsSystemCalls ? .offload : .syscall }
  }

  @inline(__always)
  private func tries(_ isOffloaded: borrowing Atomic<Bool>, _ refusals: borrowing Atomic<UInt32>)
    -> Bool
  {
    if isOffloaded.load(ordering: .relaxed) { return false }
    if refusals.load(ordering: .relaxed) < Self.refusalThreshold { return true }
    return refusals.wrappingAdd(1, ordering: .relaxed).newValue % Self.retryInterval == 0
  }

  // MARK: Learning

  /// A request with RWF_NOWAIT was refused (-EAGAIN).
  func refused(_ verb: Verb) {
    switch verb {
    case .read: readRefusals.wrappingAdd(1, ordering: .relaxed)
    case .write: writeRefusals.wrappingAdd(1, ordering: .relaxed)
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
    case .read: readsAreOffloaded.store(true, ordering: .relaxed)
    case .write: writesAreOffloaded.store(true, ordering: .relaxed)
    case .fsync, .fdatasync: syncsAreOffloaded.store(true, ordering: .relaxed)
    }
  }

  /// A submission of writes took so long, on the loop.
  func submissionTook(_ nanoseconds: UInt64, now: UInt64) {
    health.submissionTook(nanoseconds, now: now)
  }

  /// An offload thread begins a write, or has ended one.
  func offloadedWriteBegins() { health.writeBegins() }
  func offloadedWriteEnded(start: UInt64, now: UInt64) {
    health.writeEnded(start: start, now: now)
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
