// SPDX-License-Identifier: Apache-2.0
//
// Reading into a ByteBuffer's own memory. A direct read needs an aligned offset, length and
// address. So the range is widened to multiples of 4 KiB, and read to the first multiple of 4 KiB
// in the memory of a buffer that has room for that; the reader index then skips what is before the
// bytes that were asked for. Nothing is copied.

#if NIO
internal import DispatchAIO
internal import NIOCore

/// A ByteBuffer that is being read into.
///
/// - Safety: `@safe` although it holds a raw pointer: the buffer beside it holds the memory.
@safe
struct ByteBufferMemory {
  /// What suits the offsets, the lengths and the addresses of all devices, and the page cache.
  private static var alignment: Int64 { 4096 }

  /// The offset in the file to read from, 4096 · n.
  let offset: Int64
  /// The memory to read into: its count is 4096 · n.
  let bytes: UnsafeMutableRawBufferPointer
  private let buffer: ByteBuffer
  /// The index of `bytes` in the buffer.
  private let start: Int
  /// The number of bytes before those that were asked for.
  let skipped: Int
  /// The number of those that were asked for.
  private let count: Int

  /// Makes a buffer for a range of a file.
  ///
  /// - Parameters:
  ///   - offset: The first byte, 0 or more.
  ///   - count: The number of bytes, 1 or more.
  /// - Returns: `nil` if the range, widened, is beyond what offsets or a ByteBuffer can express.
  init?(from offset: Int64, count: Int, _ allocator: ByteBufferAllocator) {
    let skipped = Int(offset % Self.alignment)
    let (end, overflows) = (offset - Int64(skipped)).addingReportingOverflow(
      Int64(skipped) + Int64(count) + Self.alignment - 1)
    guard !overflows, count < Int(UInt32.max) / 2 else { return nil }
    self.offset = offset - Int64(skipped)
    self.skipped = skipped
    self.count = count
    let length = Int(end / Self.alignment * Self.alignment - self.offset)
    // An allocation is aligned to 16 bytes at least.
    let buffer = allocator.buffer(capacity: length + Int(Self.alignment))
    let memory = unsafe buffer.withVeryUnsafeBytesWithStorageManagement { memory, _ in
      // `buffer` holds the storage for as long as this structure has the pointer. It is mutable in
      // name: nobody else has the buffer yet, so that nothing shares its bytes.
      unsafe UnsafeMutableRawBufferPointer(mutating: memory)
    }
    let address = Int(bitPattern: memory.baseAddress)
    start = (Int(Self.alignment) - address % Int(Self.alignment)) % Int(Self.alignment)
    unsafe bytes = UnsafeMutableRawBufferPointer(rebasing: memory[start..<start + length])
    self.buffer = buffer
    // The kernel's read would bring the pages in one by one, and a request whose memory is not
    // resident is made by another thread: see the verbs that take pointers.
    for page in stride(from: 0, to: length, by: Int(Self.alignment)) {
      unsafe bytes.storeBytes(of: 0, toByteOffset: page, as: UInt8.self)
    }
  }

  /// The buffer, with the bytes asked for to read, of as many as `bytes` has got.
  func filled(_ transferred: Int) -> ByteBuffer {
    var buffer = buffer
    let readable = min(count, max(0, transferred - skipped))
    buffer.moveWriterIndex(to: start + skipped + readable)
    buffer.moveReaderIndex(to: start + skipped)
    return buffer
  }
}
#endif
