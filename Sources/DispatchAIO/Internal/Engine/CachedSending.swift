// SPDX-License-Identifier: Apache-2.0
//
// What the page cache has of a file, for a socket: by sendfile(2), which does not copy it, but
// waits for what is not there. So what is there is asked first: cachestat(2) counts the pages, and
// a read of a byte with RWF_NOWAIT tells, for each stretch that the kernel reads ahead at once,
// whether the last of them has arrived. A page that is evicted in between is waited for.

internal import CKernel
internal import PlatformLibc

extension OpenFile {
  /// The most bytes of one call: some 60 us.
  static var largestSend: Int { 512 << 10 }
  /// The stretch that the kernel reads ahead at once, by default.
  private static var readahead: Int { 128 << 10 }

  /// Sends bytes of the page cache to a non-blocking socket: of those that `isCached` is true of.
  ///
  /// - Returns: The number of bytes sent; `nil` if the file ends before, or the kernel does not
  ///   send such a file; or a negative errno.
  func sendCached(at offset: Int64, count: Int, to socket: Int32) -> Int? {
    let answer = Int(ckernel_sendfile(socket, descriptor, offset, UInt64(count)))
    return [0, -Int(EINVAL), -Int(EOPNOTSUPP)].contains(answer) ? nil : answer
  }

  /// Whether bytes are in the page cache; up to `largestSend` of them.
  func isCached(_ offset: Int64, _ count: Int) -> Bool {
    guard mayBeCached else { return false }
    // Pages that were swapped out are the exception that reads of such a file have, too.
    if traits.isMemory { return true }
    guard ckernel_is_cached(descriptor, offset, Int64(count), predictor.knownEnd) == 1 else {
      return false
    }
    var end = count
    while end > 0 {
      var byte: UInt8 = 0
      // The byte is this function's, and written to during the call.
      let answer = unsafe withUnsafeMutableBytes(of: &byte) { byte in
        unsafe readNowait(at: offset + Int64(end) - 1, into: byte)
      }
      guard answer == 1 else { return false }
      end -= Self.readahead
    }
    return true
  }

  /// Copies bytes from the page cache, if all of them are there. Unlike `readCached`, it does not
  /// ask first what is there: one system call less, for a caller who reads what is refused from the
  /// disk at once.
  ///
  /// - Returns: Whether they were, and have been copied.
  func copyCached(at offset: Int64, into memory: UnsafeMutableRawBufferPointer) -> Bool {
    guard mayBeCached,
      traits.isMemory
        || predictor.route(.read, offset: offset, length: memory.count, counts: false) == .nowait
    else { return false }
    let answer = unsafe readNowait(at: offset, into: memory)
    if answer == -Int(EAGAIN) { predictor.refused(.read) }
    guard answer == memory.count else { return false }
    predictor.accepted(.read)
    return true
  }
}
