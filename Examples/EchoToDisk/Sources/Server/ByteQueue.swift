// SPDX-License-Identifier: Apache-2.0

/// A queue of bytes that a socket has not taken yet: in chunks, so that it takes two of them more
/// memory than it has bytes at the most. It has no memory while it is empty.
struct ByteQueue {
  static let chunkSize = 8 << 10

  /// Of `chunkSize` bytes each, but for the last.
  private var chunks: [[UInt8]] = []
  /// The number of bytes of the first chunk that have been removed.
  private var removed = 0
  private(set) var count = 0

  var isEmpty: Bool { count == 0 }

  mutating func append(_ more: UnsafeRawBufferPointer) {
    var rest = more[...]
    while !rest.isEmpty {
      if chunks.last?.count ?? Self.chunkSize == Self.chunkSize {
        chunks.append([])
        chunks[chunks.count - 1].reserveCapacity(Self.chunkSize)
      }
      let part = rest.prefix(Self.chunkSize - chunks[chunks.count - 1].count)
      chunks[chunks.count - 1].append(contentsOf: part)
      rest = rest.dropFirst(part.count)
    }
    count += more.count
  }

  /// Calls `body` with the first bytes, as many as are in one piece. There must be some.
  func withFirstBytes<Result>(_ body: (UnsafeRawBufferPointer) -> Result) -> Result {
    chunks[0].withUnsafeBytes { body(.init(rebasing: $0[removed...])) }
  }

  /// Removes some of those that `withFirstBytes` gives.
  mutating func removeFirst(_ count: Int) {
    removed += count
    self.count -= count
    if isEmpty {
      chunks = []
      removed = 0
    } else if removed == chunks[0].count {
      chunks.removeFirst()
      removed = 0
    }
  }
}
