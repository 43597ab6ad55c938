// SPDX-License-Identifier: Apache-2.0

internal import CKernel
internal import PlatformLibc
internal import SystemPackage

/// Advisory locks on ranges of a file, against other open files of this process and of others.
/// Corresponds to `fcntl(2)` with `F_OFD_SETLK`.
///
/// A lock belongs to this file, as opened: it ends with ``unlock(_:)-(_)`` or when the file has
/// been closed, and the file's own later locks on the range replace it, also to make it weaker or
/// stronger. It keeps out those who ask for a lock (also by `F_SETLK` and `lockf(3)`, but not by
/// `flock(2)`), and no reads and writes.
///
/// The calls throw ``AIOError`` with the code ``AIOError/Code/wrongAccessMode`` (a shared lock
/// needs a file open for reading, an exclusive one for writing), ``AIOError/Code/invalidOffset``,
/// ``AIOError/Code/fileClosed``, ``AIOError/Code/notSupported`` or ``AIOError/Code/system``.
extension AIOFile {
  /// Whom a lock keeps out.
  public enum LockMode: Sendable, Hashable {
    /// Exclusive locks of others.
    case shared
    /// All locks of others.
    case exclusive
  }

  /// Takes a lock if nobody else has one that keeps it out. Blocks the calling thread only where
  /// another process or machine serves the file system.
  ///
  /// - Parameters:
  ///   - mode: Whom to keep out.
  ///   - range: The bytes, in offsets from 0 on; all of the file, however large it gets, unless
  ///     given.
  /// - Returns: Whether it was taken.
  public func tryLock(_ mode: LockMode, _ range: Range<Int64>? = nil) throws(AIOError) -> Bool {
    let subject = try subject(.lock, range)
    switch mode {
    case .shared: guard file.traits.isReadable else { throw .notReadable(subject) }
    case .exclusive: guard file.traits.isWritable else { throw .notWritable(subject) }
    }
    do {
      try setLock(mode == .shared ? F_RDLCK : F_WRLCK, range, subject)
      return true
    } catch {
      if error.errno?.rawValue == EAGAIN { return false }
      throw error
    }
  }

  /// Gives back the locks on a range.
  ///
  /// - Parameter range: The bytes, in offsets from 0 on; all of the file unless given.
  public func unlock(_ range: Range<Int64>? = nil) throws(AIOError) {
    try setLock(F_UNLCK, range, subject(.unlock, range))
  }

  /// Takes a lock as soon as nobody else has one that keeps it out. It asks over and over, after 1
  /// ms at first, and after 50 ms at the most, and so takes no thread while it waits; those who
  /// wait are in no order.
  ///
  /// - Parameters: As those of ``tryLock(_:_:)-(_,_)``.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/cancelled`` if the task was cancelled
  ///   before the lock was taken.
  public func lock(
    _ mode: LockMode, _ range: Range<Int64>? = nil, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    var delay = Duration.milliseconds(1)
    while true {
      if !Task.isCancelled, try await tryLock(mode, range) { return }
      do {
        try await Task.sleep(for: delay)
      } catch {
        throw AIOError(
          .cancelled, errno: .canceled, try subject(.lock, range),
          .text("cancelled while somebody else had a lock on it"))
      }
      delay = min(delay * 2, .milliseconds(50))
    }
  }

  /// Takes a lock if nobody else has one that keeps it out, without blocking the caller's thread:
  /// see ``tryLock(_:_:)-(_,_)``.
  public func tryLock(
    _ mode: LockMode, _ range: Range<Int64>? = nil, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Bool {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try tryLock(mode, range)
    }
  }

  /// Gives back the locks on a range, without blocking the caller's thread: see ``unlock(_:)-(_)``.
  public func unlock(
    _ range: Range<Int64>? = nil, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try unlock(range)
    }
  }

  private func setLock(
    _ type: Int32, _ range: Range<Int64>?, _ subject: AIOError.Subject
  ) throws(AIOError) {
    let (start, length) = range.map { ($0.lowerBound, $0.count) } ?? (0, 0)
    try call(subject) {
      // For the kernel a length of 0 means up to any end.
      range?.isEmpty == true ? 0 : Int64(ckernel_lock($0, type, start, Int64(length)))
    }
  }
}
