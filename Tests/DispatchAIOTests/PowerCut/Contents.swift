// SPDX-License-Identifier: Apache-2.0

import Glibc

extension ArraySlice<UInt8> {
  /// Some of `blockContents`, up to so many bytes.
  static func random(upTo limit: Int, _ random: inout SeededGenerator) -> Self {
    Self.random(count: Int.random(in: 0...limit, using: &random), &random)
  }

  /// So many bytes of `blockContents`.
  static func random(count: Int, _ random: inout SeededGenerator) -> Self {
    let start = Int.random(in: 0...(blockContents.count - count), using: &random)
    return blockContents[start..<start + count]
  }

  /// Whether the bytes are the same; quickly, also in a debug build.
  func isSame(as other: Self) -> Bool {
    withUnsafeBytes { bytes in
      other.withUnsafeBytes { other in
        bytes.count == other.count
          && (bytes.isEmpty || memcmp(bytes.baseAddress!, other.baseAddress!, bytes.count) == 0)
      }
    }
  }
}
