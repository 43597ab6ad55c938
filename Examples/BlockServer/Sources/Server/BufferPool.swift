// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc

/// A buffer of the pool, with its address.
///
/// - Safety: `base` is valid as long as the buffer is held, which the same value does;
///   `@unchecked Sendable` for the same reasons as the buffer itself.
struct PooledBuffer: @unchecked Sendable {
  let buffer: AIOBuffer
  let base: UnsafeMutableRawPointer

  var count: Int { buffer.count }

  init(_ buffer: AIOBuffer) {
    self.buffer = buffer
    base = buffer.withUnsafeMutableBytes { $0.baseAddress! }  // AIOBuffer always has memory.
  }

  /// Gives the memory back to the system, which has fresh pages for whoever uses it next.
  func discard() { madvise(base, count, MADV_DONTNEED) }
}

/// A pool of aligned buffers, because fresh memory from the system costs more than a small request.
/// One for each loop, and used on its queue only.
///
/// Sizes are powers of two from 4 KiB to 1 MiB; a larger request takes several buffers. They are
/// pieces of slabs, which are kept for good: what is given back to the system is their pages, and
/// what a buffer costs is the pages that were touched.
struct BufferPool {
  static let smallest = 4 << 10
  static let largest = 1 << 20
  /// The most bytes of unused buffers whose pages are kept.
  static let mostUnused = 32 << 20

  /// The unused buffers of each size: those with pages, and those without.
  private var unused: [[PooledBuffer]]
  private var discarded: [[PooledBuffer]]
  private var unusedBytes = 0

  init() {
    let sizes = (Self.largest / Self.smallest).trailingZeroBitCount + 1
    unused = Array(repeating: [], count: sizes)
    discarded = unused
  }

  /// The index of the smallest size with room for `count` bytes.
  @inline(__always)
  private static func size(_ count: Int) -> Int {
    count <= smallest ? 0 : Int.bitWidth - ((count - 1) / smallest).leadingZeroBitCount
  }

  /// The memory, in bytes, of the buffers that hold `count` bytes.
  @inline(__always)
  static func cost(_ count: Int) -> Int {
    let rest = count % largest
    return count - rest + (rest > 0 || count == 0 ? smallest << size(rest) : 0)
  }

  /// A buffer of at least `count` bytes, whose contents are undefined.
  ///
  /// - Parameter count: `largest` at the most.
  mutating func take(_ count: Int) -> PooledBuffer {
    let size = Self.size(count)
    if let buffer = unused[size].popLast() {
      unusedBytes -= buffer.count
      return buffer
    }
    if discarded[size].isEmpty { addSlab(size) }
    return discarded[size].removeLast()
  }

  mutating func give(_ buffer: PooledBuffer) {
    let size = Self.size(buffer.count)
    guard unusedBytes + buffer.count <= Self.mostUnused else {
      buffer.discard()
      discarded[size].append(buffer)
      return
    }
    unusedBytes += buffer.count
    unused[size].append(buffer)
  }

  /// Adds buffers of a size.
  private mutating func addSlab(_ size: Int) {
    let slab = AIOBuffer(count: Self.largest)
    // An AIOBuffer is filled with zeros, for which it has pages now.
    PooledBuffer(slab).discard()
    let count = Self.smallest << size
    for start in stride(from: 0, to: Self.largest, by: count) {
      discarded[size].append(PooledBuffer(slab[start..<start + count]))
    }
  }
}
