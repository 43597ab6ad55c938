// SPDX-License-Identifier: Apache-2.0

/// Buffers of one size, each reused once no other reference to it exists: to allocate and clear new
/// memory takes longer than a fast disk takes to fill it.
struct BufferPool {
  /// The size of each buffer, in bytes.
  let size: Int
  /// The most buffers to keep. Any number may be in use.
  let limit: Int
  private var buffers: [BufferStorage] = []
  /// The buffer to look at first: the one handed out longest ago is the most likely to be free.
  private var next = 0

  init(size: Int, limit: Int) {
    self.size = size
    self.limit = limit
  }

  /// Takes a buffer to which no other reference exists; its contents are unspecified.
  ///
  /// - Returns: `nil` if there is no memory.
  mutating func take() -> BufferStorage? {
    for _ in buffers.indices {
      let index = next
      next = (next + 1) % buffers.count
      if isKnownUniquelyReferenced(&buffers[index]) { return buffers[index] }
    }
    guard let buffer = BufferStorage(count: size, alignment: 4096) else { return nil }
    if buffers.count < limit { buffers.append(buffer) }
    return buffer
  }
}
