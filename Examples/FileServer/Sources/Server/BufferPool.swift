// SPDX-License-Identifier: Apache-2.0

import DispatchAIO

/// Buffers for what the disk reads and writes: new memory costs more than to fill it.
struct BufferPool {
  /// For most replies, and for the parts of large ones.
  static let (small, large) = (16 << 10, 128 << 10)
  /// The most that are kept of each, in bytes.
  private static let limit = 16 << 20

  private var smallOnes: [AIOBuffer] = []
  private var largeOnes: [AIOBuffer] = []

  /// A buffer of `small` or `large` bytes, with whatever is in it.
  mutating func take(atLeast count: Int) -> AIOBuffer {
    if count <= Self.small { return smallOnes.popLast() ?? AIOBuffer(count: Self.small) }
    return largeOnes.popLast() ?? AIOBuffer(count: Self.large)
  }

  mutating func give(_ buffer: AIOBuffer) {
    if buffer.count == Self.small {
      if smallOnes.count < Self.limit / Self.small { smallOnes.append(buffer) }
    } else if largeOnes.count < Self.limit / Self.large {
      largeOnes.append(buffer)
    }
  }
}
