// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

/// Allocated memory, which is freed, or returned to its pool, with the last reference to it.
///
/// - Safety: `@unchecked Sendable` because the address and the size are constants, and the bytes
///   are raw memory on which no type relies. The users of the memory agree on who touches it when.
@safe
class BufferStorage: @unchecked Sendable {
  let base: UnsafeMutableRawPointer
  /// The number of bytes.
  let count: Int
  private let pool: MemoryPool?

  /// Allocates memory and fills it with zeros. Corresponds to `posix_memalign(3)`.
  ///
  /// - Returns: `nil` if there is no memory.
  init?(count: Int, alignment: Int) {
    var base: UnsafeMutableRawPointer?
    let answer = unsafe posix_memalign(
      &base, max(alignment, MemoryLayout<UnsafeRawPointer>.size), max(count, 1))
    guard answer == 0, let base = unsafe base else { return nil }
    unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: max(count, 1))
    unsafe self.base = unsafe base
    self.count = count
    pool = nil
  }

  /// Owns memory that was taken from a pool.
  init(_ piece: MemoryPool.Allocation, of pool: MemoryPool) {
    unsafe base = unsafe piece.base
    count = piece.count
    self.pool = pool
  }

  deinit {
    // Nobody refers to the memory.
    if let pool {
      pool.give(unsafe MemoryPool.Allocation(base: base, count: count))
    } else {
      unsafe free(base)
    }
  }
}
