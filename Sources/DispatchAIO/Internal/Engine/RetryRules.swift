// SPDX-License-Identifier: Apache-2.0
//
// The one place where it is decided what becomes of a request whose attempt was answered: whether
// it is over, goes on where it stopped, or is tried once more, and by which route. A pure function,
// so that a table tests it.

internal import Glibc

/// An attempt to do a request, and the answer: from the completion, from `io_submit`, or from a
/// system call.
struct Attempt {
  var verb: Verb
  var route: Route
  /// A count of bytes, or a negative errno.
  var answer: Int
  /// Of the whole request.
  var length: Int
  /// Where this attempt began.
  var resumeOffset = 0
  /// How many bytes are done, this attempt's excepted.
  var transferred = 0
  /// How many bytes this attempt asked for, at the most.
  var chunkLimit = Int.max
  /// Whether the request may be tried once more without having got further.
  var mayRetry = true
  /// Whether there are threads for what the loop must not do.
  var mayOffload = true
  var file: OpenFile.Traits
}

/// What becomes of the request.
enum Resolution: Equatable {
  /// It has succeeded, with so many bytes.
  case succeeded(Int)
  /// It has failed with this errno.
  case failed(Int32)
  /// It goes on behind the bytes that are done.
  ///
  /// - `resumeOffset`: where the next attempt begins.
  /// - `transferred`: how many bytes are done.
  /// - `route`: how; `nil` is as for a new request.
  /// - `isRetry`: whether it has got no further, which is bounded.
  case continued(resumeOffset: Int, transferred: Int, route: Route?, isRetry: Bool)
  /// The same bytes once more, by this route.
  case retried(Route, isRetry: Bool)
  /// The same bytes once more, so many of them: the others have no room.
  case shortened(Int)
}

extension Attempt {
  /// What RWF_NOWAIT has refused, or cannot say: from a thread that may sleep.
  private var offloadRoute: Route { file.isDirect ? .offload : .syscall }

  func resolve() -> Resolution {
    answer < 0 ? resolve(errno: Int32(-answer)) : resolve(count: answer)
  }

  private func resolve(count: Int) -> Resolution {
    let end = resumeOffset + count
    let done = max(transferred, end)
    if end >= length { return .succeeded(done) }
    if count == min(length - resumeOffset, chunkLimit) {
      return .continued(resumeOffset: end, transferred: done, route: nil, isRetry: false)
    }
    return verb == .read ? resolveShortRead(count, end, done) : resolveShortWrite(end, done)
  }

  /// A short answer is the end of the file only where the file ends: where a read answers 0, or a
  /// direct read of a local file ends within a block.
  private func resolveShortRead(_ count: Int, _ end: Int, _ done: Int) -> Resolution {
    let unit = file.alignment
    if count == 0 || file.isDirect && file.isLocal && unit.roundDown(end) != end {
      return .succeeded(done)
    }
    // A direct read resumes at a boundary, and so may read bytes twice: no more of them is the end.
    if end <= transferred { return .succeeded(done) }
    // With RWF_NOWAIT this was what the page cache had. Nothing says whether the file ends there,
    // and to ask costs no thread.
    return .continued(
      resumeOffset: unit.roundDown(end), transferred: done, route: nil, isRetry: false)
  }

  private func resolveShortWrite(_ end: Int, _ done: Int) -> Resolution {
    let resume = file.alignment.roundDown(end)
    // The kernel puts what is appended behind what is there, so that nothing may be written twice.
    if file.appends && resume != end { return .failed(EIO) }
    // It takes no more, and does not say why.
    let isRetry = end <= transferred
    if isRetry && !mayRetry { return .failed(EIO) }
    // What was cut short because it would have slept would be cut short once more.
    let route: Route? = self.route == .nowait && mayOffload ? offloadRoute : nil
    return .continued(resumeOffset: resume, transferred: done, route: route, isRetry: isRetry)
  }

  private func resolve(errno: Int32) -> Resolution {
    switch (errno, route, verb) {
    case (ENOSPC, _, .write), (EDQUOT, _, .write), (EFBIG, _, .write):
      // A direct write fails as a whole, also when a part of it had room: half of it may have.
      let half = file.alignment.roundDown(min(length - resumeOffset, chunkLimit) / 2)
      return half > 0 ? .shortened(half) : .failed(errno)
    case (EAGAIN, .nowait, _), (EOPNOTSUPP, .nowait, _):
      // It would have had to sleep, or there is no NOWAIT for this file.
      return mayOffload ? .retried(offloadRoute, isRetry: false) : .failed(errno)
    case (EINVAL, .inline, _), (EINVAL, .nowait, _), (EINVAL, .offload, _):
      // Kernel AIO does not have it (a sync before Linux 4.18, a file without `read_iter`): the
      // system call may, and else answers the same.
      return mayOffload ? .retried(.syscall, isRetry: false) : .failed(errno)
    case (EAGAIN, _, _), (EINTR, _, _):
      // Nobody asked for such an answer: file systems give it under lock or memory pressure, and
      // when a signal came.
      return mayRetry ? .retried(route, isRetry: true) : .failed(errno)
    default:
      return .failed(errno)
    }
  }
}
