// SPDX-License-Identifier: Apache-2.0
//
// Reading what is in the page cache, in place: the first step of a server, before it makes a
// request.

/// Reads without waiting, from any thread.
///
/// ```swift
/// if let count = try file.readNow(at: offset, into: buffer) {
///   reply(buffer[..<count])
/// } else {
///   try context.read(file, at: offset, into: buffer) { … }
/// }
/// ```
///
/// Each call makes no request, uses no queue and no context, and reads all that was asked for or
/// nothing. It copies while the caller waits: 4 KiB in about 1 us, 1 MiB in some 30 us.
extension AIOFile {
  /// Reads from a file if the page cache has all of the bytes. Never waits for a disk, and may be
  /// called from any thread. Corresponds to `preadv2(2)` with `RWF_NOWAIT`, after `cachestat(2)`
  /// (Linux 6.5).
  ///
  /// A result of `nil` begins no reading ahead, and takes one system call of some 0.2 us. If the
  /// kernel does not tell what is cached (before Linux 6.5, and since 6.13 of a file that the
  /// process may neither write nor owns), the read is tried: if it is then refused, the kernel has
  /// begun to read ahead, which takes 4 us for 4 KiB, and longer for longer reads or while the
  /// device's queue is full. After four refusals in a row one call in 16 is tried, and the others
  /// return `nil`.
  ///
  /// What the kernel does beside copying may wait all the same, briefly and seldom: a page that was
  /// evicted since it was asked about, the next part of the file that it reads ahead of a reader in
  /// order, and the time of access, which it notes once a day (`relatime`).
  ///
  /// - Parameters:
  ///   - offset: The offset in the file in bytes, 0 or more, of any alignment.
  ///   - buffer: The buffer to read into, whose count is the number of bytes to read. If the result
  ///     is `nil`, its contents are unspecified.
  /// - Returns: The number of bytes read: all of the buffer, fewer only if the file ends there, 0
  ///   at or beyond its end. `nil` if the read would wait, or the page cache may not have all of
  ///   the bytes: an asynchronous read then gets them, or the error that the kernel answered. It is
  ///   always `nil` (unless no bytes were asked for) for a file whose ``caching`` is
  ///   ``Caching/direct``, except on tmpfs; on FUSE, network, stacked (overlayfs) and pseudo file
  ///   systems, and those without NOWAIT; for what was never written (a hole), until it has been
  ///   read; and for more than 0x7ffff000 bytes.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/fileClosed``,
  ///   ``AIOError/Code/wrongAccessMode`` or ``AIOError/Code/invalidOffset``.
  public func readNow(at offset: Int64, into buffer: AIOBuffer) throws(AIOError) -> Int? {
    // The buffer keeps its memory during the call.
    defer { withExtendedLifetime(buffer) {} }
    return try unsafe readNow(at: offset, into: buffer.unsafeBytes)
  }

  /// Reads into a buffer of one owner: see ``readNow(at:into:)-(_,AIOBuffer)``.
  ///
  /// - Parameters:
  ///   - offset: The offset in the file in bytes, 0 or more, of any alignment.
  ///   - buffer: The buffer to read into.
  ///   - range: The part of the buffer to read into; all of it unless given.
  public func readNow(
    at offset: Int64, into buffer: inout AIOUniqueBuffer, range: Range<Int>? = nil
  ) throws(AIOError) -> Int? {
    try readNow(at: offset, into: buffer.part(range))
  }

  /// Reads into memory of the caller's: see ``readNow(at:into:)-(_,AIOBuffer)``.
  ///
  /// - Warning: The memory must be valid during the call, and if it is a mapping of a file whose
  ///   pages are not resident, the call waits for those.
  @unsafe
  public func readNow(
    at offset: Int64, into memory: UnsafeMutableRawBufferPointer
  ) throws(AIOError) -> Int? {
    let subject = subject(.read, offset: offset, length: memory.count)
    guard offset >= 0 else { throw .negative(subject) }
    guard offset <= Int64.max - Int64(memory.count) else { throw .pastLargestOffset(subject) }
    guard file.traits.isReadable else { throw .notReadable(subject) }
    guard file.retain() else { throw .fileClosed(subject) }
    defer { file.release() }
    guard memory.count > 0 else { return 0 }
    return unsafe file.readCached(at: offset, into: memory)
  }
}
