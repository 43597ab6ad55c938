// SPDX-License-Identifier: Apache-2.0
//
// A prediction of which requests on a file would make the kernel sleep in `io_submit(2)`. Where
// there is none, the request is tried with RWF_NOWAIT, whose refusals teach it:
//
//   - A write beyond the end allocates blocks and changes the size, under the inode's lock: known
//     from the size when the file was opened, and from every write since.
//   - A write into a hole, on a copy-on-write file system, or under another's lock is refused
//     (-EAGAIN). After a few refusals in a row, only one write in sixteen is tried; the first that
//     is not refused restores the file's fast route.
//   - A file system or kernel without NOWAIT answers -EOPNOTSUPP, as ext4 does for buffered writes:
//     the file's requests are never tried any more.
//   - A buffered request is done within `io_submit(2)`. From the page cache that is a copy, which
//     does not sleep but takes time: a large one is offloaded. A buffered write to a file opened
//     with O_DSYNC or O_SYNC waits for the disk there (XFS syncs inside `io_submit`, NOWAIT or
//     not).
//   - A read of a file opened `.automatic` is tried in pieces that are copied fast, and where it
//     is not tried, it is direct: see DirectReads.
//   - A memory file (tmpfs, ramfs, hugetlbfs) has no NOWAIT, and sleeps only for pages that were
//     swapped out, which cannot be predicted: its requests are submitted inline, except large ones.
//   - On a file system whose submissions were slow, as while it is frozen, writes are offloaded:
//     see FileSystemHealth.
//
// An offloaded request is submitted into the same kernel context if the kernel carries it out
// asynchronously, and is a plain system call if it is synchronous anyway: a buffered transfer, or a
// direct write that extends the file (for which ext4 waits inside `io_submit(2)`).

internal import Synchronization

/// The prediction for one file, shared by every context that uses it. Everything in it is a hint,
/// and so relaxed.
final class NowaitPredictor: Sendable {
  /// The most bytes that the loop copies for one request: 256 KiB take some 30 us.
  static var longestCopy: Int { 256 << 10 }
  /// The number of refusals in a row after which requests are offloaded without a trial.
  private static var refusalThreshold: UInt32 { 4 }
  /// The interval at which one request is then tried all the same.
  private static var retryInterval: UInt32 { 16 }
  /// The same for reads of a file opened `.automatic`: a trial that is refused makes the kernel
  /// begin to read a page, which costs as much as three direct reads.
  private static var automaticInterval: UInt32 { 64 }
  /// The same for reads of a working set: see `DirectReads`. It tries one in two, because the
  /// refusal of a trial counts, too.
  private static var rereadInterval: UInt32 { 3 }

  private let isDirect: Bool
  private let isMemory: Bool
  private let appends: Bool
  private let needsSystemCalls: Bool
  let offloadRoute: Route
  private let health: FileSystemHealth
  private let directReads: DirectReads?
  /// The offset below which bytes are known to be in the file.
  private let end: Atomic<Int64>
  /// The numbers of requests in a row that were refused or not tried. They wrap around to 0, after
  /// which requests are tried as at first.
  let readRefusals: Atomic<UInt32>
  let writeRefusals: Atomic<UInt32>
  /// Whether the file has no NOWAIT.
  private let readsAreOffloaded = Atomic<Bool>(false)
  private let writesAreOffloaded: Atomic<Bool>
  /// Whether the file has no RWF_DONTCACHE.
  private let hasNoUncached = Atomic<Bool>(false)
  /// Whether the file has no IOCB_CMD_FSYNC.
  private let syncsAreOffloaded = Atomic<Bool>(false)

  /// - Parameter size: The size of the file when it was opened, in bytes.
  init(_ traits: OpenFile.Traits, size: Int64, directReads: DirectReads? = nil) {
    self.directReads = directReads
    isDirect = traits.isDirect
    isMemory = traits.isMemory
    appends = traits.appends
    needsSystemCalls = traits.needsSystemCalls
    offloadRoute = traits.offloadRoute
    health = FileSystemHealth.of(traits.device)
    end = Atomic(size)
    readRefusals = Atomic(0)
    writeRefusals = Atomic(0)
    writesAreOffloaded = Atomic(!traits.isDirect && !traits.isMemory && traits.syncsWrites)
  }

  // MARK: Deciding

  /// The route of a request's first attempt.
  ///
  /// - Parameter counts: Whether the request takes that route now. Each request counts once, or the
  ///   one of many to be tried might never be.
  @inline(__always)
  func route(_ verb: Verb, offset: Int64, length: Int, counts: Bool = true) -> Route {
    if needsSystemCalls { return .syscall }
    switch verb {
    case .read:
      if isMemory { return length <= Self.longestCopy ? .inline : .syscall }
      if let directReads, directReads.isUsable {
        return automaticRoute(directReads, offset, length, counts)
      }
      if !isDirect && length > Self.longestCopy { return .syscall }
      return tries(readsAreOffloaded, readRefusals, counts) ? .nowait : offloadRoute
    case .write:
      if isMemory { return length <= Self.longestCopy ? .inline : .syscall }
      if !isDirect && length > Self.longestCopy { return .syscall }
      if appends || offset + Int64(length) > end.load(ordering: .relaxed) { return .syscall }
      if health.isSlow { return offloadRoute }
      return tries(writesAreOffloaded, writeRefusals, counts) ? .nowait : offloadRoute
    case .fsync, .fdatasync:
      return syncsAreOffloaded.load(ordering: .relaxed) ? .syscall : .inline
    }
  }

  /// The route of a read of a file opened `.automatic`.
  private func automaticRoute(
    _ directReads: DirectReads, _ offset: Int64, _ length: Int, _ counts: Bool
  ) -> Route {
    if counts { directReads.look(at: offset) }
    let interval = directReads.isRereading ? Self.rereadInterval : Self.automaticInterval
    if length == 0 || tries(readsAreOffloaded, readRefusals, counts, interval) { return .nowait }
    guard directReads.descriptor != nil else { return .syscall }
    return directReads.wasRead(at: offset) && !readsAreOffloaded.load(ordering: .relaxed)
      ? .nowait : .direct
  }

  @inline(__always)
  private func tries(
    _ isOffloaded: borrowing Atomic<Bool>, _ refusals: borrowing Atomic<UInt32>, _ counts: Bool,
    _ interval: UInt32 = retryInterval
  ) -> Bool {
    if isOffloaded.load(ordering: .relaxed) { return false }
    let seen = refusals.load(ordering: .relaxed)
    if seen < Self.refusalThreshold { return true }
    let number = counts ? refusals.wrappingAdd(1, ordering: .relaxed).newValue : seen &+ 1
    return number % interval == 0
  }

  /// Whether reads of the file may be tried with RWF_NOWAIT, as far as is known.
  var hasNowaitReads: Bool { !readsAreOffloaded.load(ordering: .relaxed) }

  // MARK: Learning

  /// Learns that a request with RWF_NOWAIT was refused (-EAGAIN).
  func refused(_ verb: Verb) {
    switch verb {
    case .read: readRefusals.wrappingAdd(1, ordering: .relaxed)
    case .write: writeRefusals.wrappingAdd(1, ordering: .relaxed)
    case .fsync, .fdatasync: break
    }
  }

  /// Learns that a request with RWF_NOWAIT was not refused.
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

  /// Learns that the kernel or the file system lacks NOWAIT (-EOPNOTSUPP), or the sync (-EINVAL).
  func noteUnsupported(_ verb: Verb) {
    switch verb {
    case .read: readsAreOffloaded.store(true, ordering: .relaxed)
    case .write: writesAreOffloaded.store(true, ordering: .relaxed)
    case .fsync, .fdatasync: syncsAreOffloaded.store(true, ordering: .relaxed)
    }
  }

  /// Learns that the kernel or the file system lacks RWF_DONTCACHE (-EOPNOTSUPP).
  func noteUncachedUnsupported() { hasNoUncached.store(true, ordering: .relaxed) }

  /// Whether requests of the file are made without RWF_DONTCACHE, whatever they ask for.
  var lacksUncached: Bool { hasNoUncached.load(ordering: .relaxed) }

  /// Records how long a submission of writes on the loop took.
  func submissionTook(_ nanoseconds: UInt64, now: UInt64) {
    health.submissionTook(nanoseconds, now: now)
  }

  /// Records that an offload thread begins a write, or has ended one.
  func offloadedWriteBegins() { health.writeBegins() }
  func offloadedWriteEnded(start: UInt64, now: UInt64) {
    health.writeEnded(start: start, now: now)
  }

  /// The offset below which bytes are known to be in the file.
  var knownEnd: Int64 { end.load(ordering: .relaxed) }

  /// Records that the file has grown, and has the bytes below `offset`.
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
