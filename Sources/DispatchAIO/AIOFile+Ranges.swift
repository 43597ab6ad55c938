// SPDX-License-Identifier: Apache-2.0
//
// What is done to ranges of a file without transferring their bytes: holes, zeros, shared blocks,
// and advice. All of it may sleep in the disk.

internal import CKernel
internal import PlatformLibc
internal import SystemPackage

/// Ranges of a file.
///
/// Each call blocks the calling thread, possibly for long; with `await` a thread of the library's.
/// Where the kernel or the file system does not have it, it throws ``AIOError/Code/notSupported``,
/// and nothing was changed. Requests that are under way on the same range come before it, or after.
///
/// Besides what is said at each, they throw ``AIOError`` with the code
/// ``AIOError/Code/invalidOffset``, ``AIOError/Code/fileClosed``, ``AIOError/Code/wrongAccessMode``
/// where they change a file that is open for reading only, or that of the errno.
extension AIOFile {
  /// Frees the disk space of a range, which reads as zeros from then on; the size stays.
  /// Corresponds to `fallocate(2)` with `FALLOC_FL_PUNCH_HOLE`.
  ///
  /// - Parameter range: The bytes, in offsets from 0 on, at any alignment; an empty range changes
  ///   nothing.
  public func punchHole(_ range: Range<Int64>) throws(AIOError) {
    try allocate(.punchHole, ckernel_falloc_punch_hole, range)
  }

  /// Makes a range read as zeros, and keeps or allocates its disk space, without writing it where
  /// the file system can do that; a range beyond the end grows the file. Corresponds to
  /// `fallocate(2)` with `FALLOC_FL_ZERO_RANGE`.
  ///
  /// - Parameter range: The bytes, in offsets from 0 on, at any alignment; an empty range changes
  ///   nothing.
  public func zero(_ range: Range<Int64>) throws(AIOError) {
    try allocate(.zeroRange, ckernel_falloc_zero_range, range, grows: true)
  }

  /// Removes a range: the bytes behind it move to its place, and the file gets shorter. Corresponds
  /// to `fallocate(2)` with `FALLOC_FL_COLLAPSE_RANGE`, which ext4 and XFS have.
  ///
  /// - Parameter range: The bytes, in whole blocks of the file system (4096 bytes, most often),
  ///   which end before the file does; an empty range changes nothing.
  /// - Throws: ``AIOError/Code/misaligned`` for another range.
  public func collapse(_ range: Range<Int64>) throws(AIOError) {
    do {
      try allocate(.collapseRange, ckernel_falloc_collapse_range, range)
    } catch {
      guard error.errno == .invalidArgument else { throw error }
      throw AIOError(
        .misaligned, errno: error.errno, error.subject,
        .text(
          """
          the range must be of whole blocks of the file system, and end before the file does, whose \
          end truncate(to:) removes
          """))
    }
  }

  /// Calls `fallocate(2)`, unless the range is empty.
  ///
  /// - Parameter grows: Whether the file grows to cover the range.
  func allocate(
    _ operation: AIOError.Operation, _ mode: Int32, _ range: Range<Int64>, grows: Bool = false
  ) throws(AIOError) {
    let subject = try subject(operation, range)
    try call(subject, writes: true) { descriptor in
      if range.isEmpty { return 0 }
      return Int64(ckernel_fallocate(descriptor, mode, range.lowerBound, Int64(range.count)))
    }
    if grows, !range.isEmpty { file.predictor.extended(to: range.upperBound) }
  }

  /// Copies bytes to another file within the kernel, which shares the blocks where it can, and asks
  /// the server of a network file system to copy. Corresponds to `copy_file_range(2)`.
  ///
  /// - Parameters:
  ///   - range: The bytes of this file, in offsets from 0 on.
  ///   - destination: The file to copy to, open for writing and without `.append`; it may be this
  ///     one, if the ranges do not overlap.
  ///   - offset: The offset in the destination, 0 or more.
  /// - Returns: The number of bytes copied: fewer than asked for only if this file ends there.
  /// - Throws: ``AIOError/Code/notSupported`` if the kernel cannot copy between these two files, as
  ///   between file systems of different kinds: read and write, then. ``AIOError/Code/misaligned``
  ///   if one is direct, and the offsets and the length are no multiples of its
  ///   ``AIOFile/alignment``. ``AIOError/transferred`` is what was copied before.
  @discardableResult
  public func copy(
    _ range: Range<Int64>, to destination: AIOFile, at offset: Int64
  ) throws(AIOError) -> Int64 {
    let (from, _) = try checkTransfer(.copyRange, range, to: destination, at: offset)
    var done: Int64 = 0
    // Where the file ends now, as a copy to itself may move its end; a file of size 0 may have
    // bytes.
    let size: Int64
    do throws(AIOError) { size = try self.size() } catch { throw error.with(from, transferred: 0) }
    let length = Int64(size > 0 ? range.clamped(to: 0..<size).count : range.count)
    // A gigabyte at a time; once in any case, which looks whether both are open.
    repeat {
      let count = min(length - done, 1 << 30)
      let (from, to) = (range.lowerBound + done, offset + done)
      do throws(AIOError) {
        let copied = try transfer(.copyRange, range, to: destination, at: offset) {
          ckernel_copy_range($0, from, $1, to, count)
        }
        if copied == 0 { break }
        done += copied
      } catch {
        throw copyFailure(error, destination, transferred: Int(done))
      }
    } while done < length
    if done > 0 { destination.file.predictor.extended(to: offset + done) }
    return done
  }

  func copyFailure(
    _ error: AIOError, _ destination: AIOFile, transferred: Int
  ) -> AIOError {
    let isDirect = file.traits.isDirect || destination.file.traits.isDirect
    guard error.errno == .invalidArgument, isDirect else {
      return error.with(error.subject, transferred: transferred)
    }
    return AIOError(
      .misaligned, errno: error.errno, error.subject,
      .text(
        """
        between direct files the kernel copies at multiples of their alignment \
        (AIOFile.alignment), and does not copy what overlaps; open them with caching: .buffered
        """), transferred: transferred)
  }

  /// Makes a range of another file share the blocks of this one's, which are copied once either is
  /// written to. Corresponds to `ioctl(2)` with `FICLONERANGE`, which XFS, Btrfs and NFS have.
  ///
  /// - Parameters:
  ///   - range: The bytes of this file, in whole blocks of the file system, or up to its end.
  ///   - destination: A file on the same file system, open for writing and without `.append`.
  ///   - offset: The offset in the destination, a multiple of the block.
  /// - Throws: ``AIOError/Code/notSupported`` if the two files cannot share blocks:
  ///   ``copy(_:to:at:)`` them, then.
  public func clone(
    _ range: Range<Int64>, to destination: AIOFile, at offset: Int64
  ) throws(AIOError) {
    _ = try transfer(.cloneRange, range, to: destination, at: offset) {
      // For the kernel 0 means up to the end.
      range.isEmpty
        ? 0 : Int64(ckernel_clone_range($0, range.lowerBound, Int64(range.count), $1, offset))
    }
    if !range.isEmpty { destination.file.predictor.extended(to: offset + Int64(range.count)) }
  }

  private func transfer(
    _ operation: AIOError.Operation, _ range: Range<Int64>, to destination: AIOFile,
    at offset: Int64, _ body: (_ from: Int32, _ to: Int32) -> Int64
  ) throws(AIOError) -> Int64 {
    let (from, to) = try checkTransfer(operation, range, to: destination, at: offset)
    guard destination.file.retain() else { throw .fileClosed(to) }
    defer { destination.file.release() }
    do {
      return try call(from) { body($0, destination.file.descriptor) }
    } catch {
      guard error.errno == .improperLink else { throw error }
      throw AIOError(
        .notSupported, errno: error.errno, to,
        .text("the two files are on file systems that do not share; read and write instead"))
    }
  }

  /// - Returns: The source and the destination, as errors name them.
  private func checkTransfer(
    _ operation: AIOError.Operation, _ range: Range<Int64>, to destination: AIOFile,
    at offset: Int64
  ) throws(AIOError) -> (from: AIOError.Subject, to: AIOError.Subject) {
    let from = try subject(operation, range)
    let to = destination.subject(operation, offset: offset, length: range.count)
    guard offset >= 0 else { throw .negative(to) }
    guard offset <= Int64.max - Int64(range.count) else { throw .pastLargestOffset(to) }
    guard file.traits.isReadable else { throw .notReadable(from) }
    guard destination.file.traits.isWritable else { throw .notWritable(to) }
    return (from, to)
  }

  /// The offset of the first byte from an offset on that is not in a hole; `nil` if there is none
  /// before the end of the file. Corresponds to `lseek(2)` with `SEEK_DATA`. A file system that
  /// knows no holes says the offset itself.
  public func nextData(from offset: Int64) throws(AIOError) -> Int64? {
    try seek(offset, hole: false)
  }

  /// The offset of the first hole from an offset on, where the end of the file counts as one; `nil`
  /// beyond it. Corresponds to `lseek(2)` with `SEEK_HOLE`.
  public func nextHole(from offset: Int64) throws(AIOError) -> Int64? {
    try seek(offset, hole: true)
  }

  private func seek(_ offset: Int64, hole: Bool) throws(AIOError) -> Int64? {
    let subject = subject(hole ? .nextHole : .nextData, offset: offset)
    guard offset >= 0 else { throw .negative(subject) }
    do {
      return try call(subject) { descriptor in
        // It moves the descriptor's file position, which an append uses.
        file.position.withLock { _ in ckernel_seek(descriptor, offset, hole ? 1 : 0) }
      }
    } catch {
      if error.errno == .noSuchAddressOrDevice { return nil }
      throw error
    }
  }

  /// What the page cache is told about a range.
  public enum Advice: Sendable, Hashable, CaseIterable {
    /// Nothing in particular.
    case normal
    /// It is read in order: the kernel reads further ahead.
    case sequential
    /// It is read in no order: the kernel does not read ahead.
    case random
    /// It is read once.
    case noReuse
    /// It is read soon: the kernel begins to read it.
    case willNeed
    /// It is not read soon: the kernel drops the pages that have been written back.
    case dontNeed
  }

  /// Tells the page cache how a range will be used. Corresponds to `posix_fadvise(2)`. A direct
  /// file makes no use of it.
  ///
  /// - Parameters:
  ///   - advice: What is known of the range.
  ///   - range: The bytes, in offsets from 0 on; all of the file unless given.
  public func advise(_ advice: Advice, _ range: Range<Int64>? = nil) throws(AIOError) {
    let subject = try subject(.advise, range)
    let (start, length) = range.map { ($0.lowerBound, $0.count) } ?? (0, 0)
    try call(subject) {
      // For the kernel a length of 0 means up to the end.
      range?.isEmpty == true
        ? 0 : Int64(ckernel_advise($0, start, Int64(length), advice.kernels))
    }
  }

  /// The subject of a call on a range, which has to begin at 0 or later, or on all of the file.
  func subject(
    _ operation: AIOError.Operation, _ range: Range<Int64>?
  ) throws(AIOError) -> AIOError.Subject {
    guard let range else { return subject(operation) }
    // Before the length: that of a range from below 0 may be more than a number can say.
    guard range.lowerBound >= 0 else {
      throw .negative(subject(operation, offset: range.lowerBound))
    }
    return subject(operation, offset: range.lowerBound, length: range.count)
  }

  /// Makes a system call on the descriptor, which stays open meanwhile.
  ///
  /// - Parameters:
  ///   - writes: Whether the file has to be open for writing.
  ///   - body: Answers 0 or more, or a negative errno.
  @discardableResult
  func call(
    _ subject: AIOError.Subject, writes: Bool = false, _ body: (Int32) -> Int64
  ) throws(AIOError) -> Int64 {
    if writes, !file.traits.isWritable { throw .notWritable(subject) }
    guard file.retain() else { throw .fileClosed(subject) }
    defer { file.release() }
    let answer = body(file.descriptor)
    guard answer >= 0 else { throw AIOError(errno: Int32(-answer), subject) }
    return answer
  }
}

extension AIOFile.Advice {
  fileprivate var kernels: ckernel_advice {
    switch self {
    case .normal: ckernel_advice_normal
    case .sequential: ckernel_advice_sequential
    case .random: ckernel_advice_random
    case .noReuse: ckernel_advice_no_reuse
    case .willNeed: ckernel_advice_will_need
    case .dontNeed: ckernel_advice_dont_need
    }
  }
}
