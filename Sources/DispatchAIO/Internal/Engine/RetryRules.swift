// SPDX-License-Identifier: Apache-2.0
//
// The one place that decides about a request whose attempt was answered: whether it has ended,
// resumes where the attempt stopped, or is retried, and by which route. A pure function, which a
// table of cases tests.

internal import PlatformLibc

/// An attempt of a request, and the answer: from the completion, from `io_submit(2)`, or from a
/// system call.
struct Attempt {
  var verb: Verb
  var route: Route
  /// A count of bytes, or a negative errno.
  var answer: Int
  /// The number of bytes of the whole request.
  var length: Int
  /// The offset within the request at which this attempt began.
  var resumeOffset = 0
  /// The number of bytes transferred before this attempt.
  var transferred = 0
  /// The most bytes that this attempt asked for.
  var chunkLimit = Int.max
  var options: RequestOptions = []
  /// Whether the request may be retried without progress.
  var mayRetry = true
  /// Whether requests may be offloaded.
  var mayOffload = true
  /// The route after a refusal of RWF_NOWAIT; if `nil`, by an offload thread.
  var refusalRoute: Route? = nil
  /// Whether a direct read has reached the end of the file.
  var isFileEnd = false
  var file: OpenFile.Traits
}

/// The decision about the request.
enum Resolution: Equatable {
  /// It has succeeded, with this count of bytes.
  case succeeded(Int)
  /// It has failed with this errno.
  case failed(Int32)
  /// The transfer continues after the bytes that were transferred.
  ///
  /// - `resumeOffset`: The offset at which the next attempt begins.
  /// - `transferred`: The number of bytes transferred.
  /// - `route`: The route; if `nil`, that of a new request.
  /// - `isRetry`: Whether there was no progress, of which the number is bounded.
  case continued(resumeOffset: Int, transferred: Int, route: Route?, isRetry: Bool)
  /// The same attempt is repeated, by this route.
  case retried(Route, isRetry: Bool)
  /// The attempt is repeated with at most this many bytes, because the disk has no room for all.
  case shortened(Int)
  /// The attempt is repeated without RWF_DONTCACHE, which the kernel or the file system does not
  /// have.
  case cached
}

extension Attempt {
  /// The route after a refusal of RWF_NOWAIT: by a thread that may sleep.
  private var offloadRoute: Route { refusalRoute ?? file.offloadRoute }

  /// Whether a write completes only once it is durable.
  private var isDurable: Bool { options.isDurable || file.syncsWrites }

  /// Whether a write that fails for want of room is not tried with fewer bytes: an untorn one has
  /// to be whole, and the answer to a durable one may be that of the sync, for bytes that others
  /// wrote, which the kernel gives only once.
  private var isWhole: Bool { isDurable || options.contains(.atomic) }

  func resolve() -> Resolution {
    answer < 0 ? resolve(errno: Int32(-answer)) : resolve(count: answer)
  }

  private func resolve(count: Int) -> Resolution {
    let end = resumeOffset + count
    let done = max(transferred, end)
    if end >= length { return .succeeded(done) }
    if count == min(length - resumeOffset, chunkLimit) {
      return .continued(
        resumeOffset: end, transferred: done, route: route == .direct ? .direct : nil,
        isRetry: false)
    }
    return verb == .read ? resolveShortRead(count, end, done) : resolveShortWrite(end, done)
  }

  /// A short answer is the end of the file only where the file ends: where a read answers 0, or a
  /// direct read of a local file ends within a block.
  private func resolveShortRead(_ count: Int, _ end: Int, _ done: Int) -> Resolution {
    let unit = file.alignment
    if isFileEnd || count == 0 || file.isDirect && file.isLocal && unit.roundDown(end) != end {
      return .succeeded(done)
    }
    // A direct read resumes at a boundary, and so may read bytes twice: no more of them is the end.
    if end <= transferred { return .succeeded(done) }
    // With RWF_NOWAIT these were the bytes of the page cache. The next attempt tells whether the
    // file ends there, and costs no thread.
    return .continued(
      resumeOffset: unit.roundDown(end), transferred: done, route: nil, isRetry: false)
  }

  private func resolveShortWrite(_ end: Int, _ done: Int) -> Resolution {
    // An untorn write is whole, or it is not made.
    if options.contains(.atomic) { return .failed(EIO) }
    let resume = file.alignment.roundDown(end)
    // The kernel appends after what is there, so that no byte may be written twice.
    if file.appends && resume != end { return .failed(EIO) }
    // The kernel accepts no more bytes, and gives no reason.
    let isRetry = end <= transferred
    if isRetry && !mayRetry { return .failed(EIO) }
    // A transfer that NOWAIT cut short would be cut short there each time.
    let route: Route? = self.route == .nowait && mayOffload ? offloadRoute : nil
    return .continued(resumeOffset: resume, transferred: done, route: route, isRetry: isRetry)
  }

  private func resolve(errno: Int32) -> Resolution {
    // The worker has done what it could of an append: see `OffloadWorker.append`. To any file, a
    // durable one may have been appended when the answer is that of the sync.
    if options.contains(.append) || file.appends && isDurable && verb == .write {
      return resolveAppend(errno: errno)
    }
    switch (errno, route, verb) {
    case (EOPNOTSUPP, _, _) where options.contains(.uncached) && route != .direct:
      return .cached
    case (ENOSPC, _, .write) where isWhole, (EDQUOT, _, .write) where isWhole,
      (EFBIG, _, .write) where isWhole:
      return .failed(errno)
    case (ENOSPC, _, .write), (EDQUOT, _, .write), (EFBIG, _, .write):
      // A direct write fails as a whole, also when a part of it had room: half of it may have.
      let half = file.alignment.roundDown(min(length - resumeOffset, chunkLimit) / 2)
      return half > 0 ? .shortened(half) : .failed(errno)
    case (EAGAIN, .nowait, _), (EOPNOTSUPP, .nowait, _):
      // The kernel would have had to sleep, or the file has no NOWAIT.
      return mayOffload ? .retried(offloadRoute, isRetry: false) : .failed(errno)
    case (EAGAIN, .direct, _), (EOPNOTSUPP, .direct, _), (EINVAL, .direct, _),
      (EINTR, .direct, _), (ENOMEM, .direct, _):
      // The direct route is a short cut, and has no answer that the system call has not.
      return .retried(.syscall, isRetry: false)
    case (EINVAL, .inline, _), (EINVAL, .nowait, _), (EINVAL, .offload, _):
      // Kernel AIO lacks the operation (a sync before Linux 4.18, a file without `read_iter`). The
      // system call may have it, and else answers the same.
      return mayOffload ? .retried(.syscall, isRetry: false) : .failed(errno)
    case (EAGAIN, _, _), (EINTR, _, _):
      // An answer that was not asked for: file systems give it under lock or memory pressure, and
      // on a signal.
      return mayRetry ? .retried(route, isRetry: true) : .failed(errno)
    default:
      return .failed(errno)
    }
  }

  /// An append is repeated only where nothing was appended: it has no place that a second one would
  /// overwrite.
  private func resolveAppend(errno: Int32) -> Resolution {
    switch errno {
    case EOPNOTSUPP where options.contains(.uncached): .cached
    case EAGAIN where mayRetry && !isDurable && transferred == 0,
      EINTR where mayRetry && !isDurable && transferred == 0:
      .retried(route, isRetry: true)
    default: .failed(errno)
    }
  }
}
