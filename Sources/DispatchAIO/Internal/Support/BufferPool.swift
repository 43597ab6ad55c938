// SPDX-License-Identifier: Apache-2.0

/// Buffers of one size, which are reused once nobody holds them any more: allocating and clearing
/// new memory takes longer than a fast disk takes to fill it.
struct BufferPool {
  let size: Int
  /// The most buffers to keep. Any number may be in use.
  let limit: Int
  private var buffers: [AIOBuffer] = []
  /// The buffer to look at first: the one handed out longest ago is the most likely to be free.
  private var next = 0

  init(size: Int, limit: Int) {
    self.size = size
    self.limit = limit
  }

  /// Takes a buffer to which nobody else has a reference, with unspecified contents.
  mutating func take() -> AIOBuffer {
    for _ in buffers.indices {
      let index = next
      next = (next + 1) % buffers.count
      if buffers[index].isUniquelyReferenced() { return buffers[index] }
    }
    let buffer = AIOBuffer(count: size)
    if buffers.count < limit { buffers.append(buffer) }
    return buffer
  }
}
