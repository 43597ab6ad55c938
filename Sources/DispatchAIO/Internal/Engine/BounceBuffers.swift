// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

/// Aligned memory for direct reads whose range or memory is not aligned: a buffer belongs to one
/// request from its submission until its completion has been copied. The buffers are allocated at
/// first use, kept for the life of the engine, and used again last in, first out; pages of them
/// that no read has needed are never touched.
struct BounceBuffers: ~Copyable {
  /// The size of each, in bytes: larger reads take several attempts.
  static var size: Int { 128 << 10 }
  /// The alignment of each, in bytes.
  static var alignment: Int { 4096 }
  /// The most buffers: 16 MiB. A read that gets none is offloaded.
  static var limit: Int { 128 }

  /// - Safety: `@safe` because it has `size` bytes, and they live as long as it does.
  @safe
  private final class Buffer {
    let bytes: UnsafeMutableRawBufferPointer

    init?() {
      var base: UnsafeMutableRawPointer?
      guard unsafe posix_memalign(&base, BounceBuffers.alignment, BounceBuffers.size) == 0
      else { return nil }
      unsafe bytes = UnsafeMutableRawBufferPointer(start: base, count: BounceBuffers.size)
    }

    deinit { unsafe free(bytes.baseAddress) }
  }

  private var buffers: [Buffer] = []
  private var unused: [Int32] = []

  /// The number of buffers in use.
  var inUse: Int { buffers.count - unused.count }

  /// Whether `take` has a buffer to return, if there is memory.
  var hasRoom: Bool { !unused.isEmpty || buffers.count < Self.limit }

  /// Takes a buffer, whose contents are unspecified.
  ///
  /// - Returns: Its number; `nil` if there is none, or no memory.
  mutating func take() -> Int32? {
    if let number = unused.popLast() { return number }
    guard buffers.count < Self.limit, let buffer = Buffer() else { return nil }
    buffers.append(buffer)
    // Room for each, so that to give one back never allocates.
    unused.reserveCapacity(buffers.count)
    return Int32(buffers.count - 1)
  }

  /// Returns a buffer that was taken.
  mutating func give(_ number: Int32) {
    assert(number >= 0 && number < buffers.count && !unused.contains(number))
    unused.append(number)
  }

  /// The memory of a buffer that was taken.
  subscript(number: Int32) -> UnsafeMutableRawBufferPointer {
    unsafe buffers[Int(number)].bytes
  }
}
