// SPDX-License-Identifier: Apache-2.0

/// A queue of bytes that a socket has not taken yet. It has no memory while it is empty.
struct ByteQueue {
  private var bytes: [UInt8] = []
  private var first = 0

  var count: Int { bytes.count - first }
  var isEmpty: Bool { count == 0 }

  mutating func append(_ more: UnsafeRawBufferPointer) {
    if first > bytes.count / 2 {
      bytes.removeSubrange(..<first)
      first = 0
    }
    bytes.append(contentsOf: more)
  }

  mutating func removeFirst(_ count: Int) {
    first += count
    if isEmpty {
      bytes = []
      first = 0
    }
  }

  func withUnsafeBytes<Result>(_ body: (UnsafeRawBufferPointer) -> Result) -> Result {
    bytes.withUnsafeBytes { body(.init(rebasing: $0[first...])) }
  }
}
