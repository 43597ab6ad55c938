// SPDX-License-Identifier: Apache-2.0

import DispatchAIO

/// A buffer of the pool, with its address.
///
/// - Safety: `base` is valid as long as the buffer is held, which the same value does;
///   `@unchecked Sendable` for the same reasons as the buffer itself.
struct PooledBuffer: @unchecked Sendable {
  let buffer: AIOBuffer
  let base: UnsafeMutableRawPointer

  var count: Int { buffer.count }

  init(count: Int) {
    buffer = AIOBuffer(count: count)
    base = buffer.withUnsafeMutableBytes { $0.baseAddress! }  // AIOBuffer always has memory.
  }
}

/// A pool of aligned buffers, because fresh memory from the system costs more than a small request.
/// One for each loop, and used on its queue only.
///
/// Sizes are powers of two from 4 KiB to 1 MiB; a larger request takes several buffers.
struct BufferPool {
  static let smallest = 4 << 10
  static let largest = 1 << 20
  /// The most bytes of unused buffers that are kept.
  private static let mostUnused = 32 << 20

  private var unused: [[PooledBuffer]]
  private var unusedBytes = 0

  init() {
    unused = Array(
      repeating: [], count: (Self.largest / Self.smallest).trailingZeroBitCount + 1)
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

  /// A buffer of at least `count` bytes.
  ///
  /// - Parameter count: `largest` at the most.
  mutating func take(_ count: Int) -> PooledBuffer {
    let size = Self.size(count)
    guard let buffer = unused[size].popLast() else {
      return PooledBuffer(count: Self.smallest << size)
    }
    unusedBytes -= buffer.count
    return buffer
  }

  mutating func give(_ buffer: PooledBuffer) {
    guard unusedBytes + buffer.count <= Self.mostUnused else { return }
    unusedBytes += buffer.count
    unused[Self.size(buffer.count)].append(buffer)
  }
}
