// SPDX-License-Identifier: Apache-2.0

/// Buffers of one size that are used again once everybody has let go of them: new memory costs more
/// than the disk takes to fill it.
struct BufferStock {
  let size: Int
  /// At most so many are kept; any number may be out.
  let limit: Int
  private var buffers: [AIOBuffer] = []
  /// Where to look next: those handed out longest ago come back first.
  private var next = 0

  init(size: Int, limit: Int) {
    self.size = size
    self.limit = limit
  }

  /// A buffer that nobody else has, with whatever is in it.
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
