// SPDX-License-Identifier: Apache-2.0
//
// A read of what the page cache has, by preadv2(2) with RWF_NOWAIT, on any thread.
//
// A read that is refused makes the kernel begin to read ahead (`page_cache_sync_ra`, before it
// finds that it may not wait): 4 KiB took 4 us, 1 MiB 200 us, up to some milliseconds where the
// device's queue was full, as it allocates pages, may read the map of the file's blocks, and waits
// for a place in that queue. cachestat(2) is asked first: it takes 0.25 us, and begins nothing.

internal import CKernel
internal import PlatformLibc

extension OpenFile {
  /// Whether the page cache may be asked: not for a direct file, and not where others decide how
  /// long a read takes.
  var mayBeCached: Bool { traits.isMemory || !traits.isDirect && traits.isLocal }

  /// Reads if all of the bytes, up to the end of the file, are in the page cache. The caller holds
  /// the file, and has checked the request.
  ///
  /// - Parameters:
  ///   - offset: The offset in the file; no request reaches past the largest one.
  ///   - memory: The memory to read into; its contents are unspecified if the result is `nil`.
  /// - Returns: The number of bytes read, fewer than asked for only at the end of the file; `nil`
  ///   if the read would wait, or might, or failed.
  func readCached(at offset: Int64, into memory: UnsafeMutableRawBufferPointer) -> Int? {
    guard mayBeCached, predictor.hasNowaitReads else { return nil }
    let cached = ckernel_is_cached(
      descriptor, offset, Int64(memory.count), predictor.knownEnd)
    let asksFirst = cached >= 0
    if asksFirst ? cached == 0 : !isWorthTrying(at: offset, memory.count) { return nil }
    let answer = unsafe readNowait(at: offset, into: memory)
    if !asksFirst { learn(answer) }
    if answer == -Int(EOPNOTSUPP) { predictor.noteUnsupported(.read) }
    guard answer >= 0 else { return nil }
    // tmpfs reads to the end of the file in any case.
    if answer == memory.count || answer == 0 || traits.isMemory { return answer }
    // Fewer: the file ends there, or a page was not there. In bounds, as the answer was short.
    let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: memory[answer..<answer + 1])
    return unsafe readNowait(at: offset + Int64(answer), into: rest) == 0 ? answer : nil
  }

  /// Calls preadv2(2) with RWF_NOWAIT. tmpfs has no NOWAIT, and does not wait for what is in
  /// memory.
  func readNowait(at offset: Int64, into memory: UnsafeMutableRawBufferPointer) -> Int {
    // The memory is the caller's, for the duration of the call.
    unsafe Int(
      ckernel_read_at(
        descriptor, memory.baseAddress, UInt(memory.count), offset, traits.isMemory ? 0 : 1))
  }

  /// Whether a read is tried although the kernel does not tell what is cached (before Linux 6.5, or
  /// of a file that the process may neither write nor owns): as often as the loop tries one. A
  /// memory file may have been swapped out, and is not.
  private func isWorthTrying(at offset: Int64, _ length: Int) -> Bool {
    !traits.isMemory
      && predictor.route(
        .read, offset: offset, length: min(length, NowaitPredictor.longestCopy)) == .nowait
  }

  private func learn(_ answer: Int) {
    if answer == -Int(EAGAIN) { predictor.refused(.read) } else { predictor.accepted(.read) }
  }
}
