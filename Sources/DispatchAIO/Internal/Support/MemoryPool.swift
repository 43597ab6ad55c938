// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

/// Memory for reads whose buffer the library makes: of sizes that are powers of two, each reused
/// once the last reference to its buffer is gone, on whichever thread. Its contents are not
/// cleared: whoever takes it hands out no byte that was not read into it.
final class MemoryPool: Sendable {
  /// Memory, whose owner returns it once.
  ///
  /// - Safety: `@unchecked Sendable` because the address and the size are constants; the memory is
  ///   its owner's alone, or, in the pool, nobody's.
  @safe
  struct Allocation: @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    let count: Int
  }

  private struct Free: Sendable {
    var pieces: [[Allocation]]
    var bytes = 0
  }

  /// The smallest and the largest size that is kept, as powers of two: 4 KiB and 4 MiB.
  private static let exponents = 12...22
  private static var alignment: Int { 4096 }

  /// The most bytes to keep while nobody uses them. Any number may be in use.
  private let limit: Int
  private let free = Lock(Free(pieces: Array(repeating: [], count: exponents.count)))

  init(limit: Int) { self.limit = limit }

  deinit {
    // Nobody refers to the memory.
    for piece in free.withLock({ $0.pieces.flatMap { $0 } }) {
      unsafe PlatformLibc.free(piece.base)
    }
  }

  /// The number of bytes that are kept, and not in use.
  var freeBytes: Int { free.withLock { $0.bytes } }

  /// Takes memory of at least `count` bytes, whose contents are unspecified. Its address is a
  /// multiple of 4096.
  ///
  /// - Returns: `nil` if there is no memory.
  func take(_ count: Int) -> Allocation? {
    let index = Self.index(of: count)
    if let index, let piece = takeFree(index) { return piece }
    let size = index.map { Self.size($0) } ?? count
    var base: UnsafeMutableRawPointer?
    guard unsafe posix_memalign(&base, Self.alignment, size) == 0, let base = unsafe base else {
      return nil
    }
    return unsafe Allocation(base: base, count: size)
  }

  private func takeFree(_ index: Int) -> Allocation? {
    free.withLock { free in
      guard let piece = free.pieces[index].popLast() else { return nil }
      free.bytes -= piece.count
      return piece
    }
  }

  /// Returns what `take` gave.
  func give(_ piece: Allocation) {
    let isKept = free.withLock { free in
      guard let index = Self.index(of: piece.count), Self.size(index) == piece.count,
        free.bytes + piece.count <= limit
      else { return false }
      free.pieces[index].append(piece)
      free.bytes += piece.count
      return true
    }
    // Nobody refers to the memory.
    if !isKept { unsafe PlatformLibc.free(piece.base) }
  }

  /// The place of the size that `count` bytes need; `nil` if that is too large to be kept.
  private static func index(of count: Int) -> Int? {
    guard count <= 1 << exponents.upperBound else { return nil }
    let exponent = count <= 1 ? 0 : Int.bitWidth - (count - 1).leadingZeroBitCount
    return max(0, exponent - exponents.lowerBound)
  }

  private static func size(_ index: Int) -> Int { 1 << (exponents.lowerBound + index) }
}
