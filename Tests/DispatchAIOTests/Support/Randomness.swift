// SPDX-License-Identifier: Apache-2.0

import Foundation

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): the
/// same numbers from the same seed, everywhere.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  /// True once in `count` times.
  mutating func oneIn(_ count: Int) -> Bool { Int.random(in: 0..<count, using: &self) == 0 }
}

/// Which seeds a randomized test runs.
enum Seeds {
  /// How many the simulation runs, the test that needs the most of them.
  static let usual = 10_000

  /// `AIO_SEED=n` replays one seed; `AIO_SEEDS=n` runs `n` where `usual` are run otherwise, and
  /// less or more in proportion elsewhere; else `count`.
  static func run(default count: Int, _ body: (UInt64) throws -> Void) rethrows {
    let environment = ProcessInfo.processInfo.environment
    if let seed = environment["AIO_SEED"].flatMap(UInt64.init) { return try body(seed) }
    let usual = environment["AIO_SEEDS"].flatMap(Int.init) ?? usual
    let count = (count * usual + Self.usual - 1) / Self.usual
    for seed in 0..<UInt64(count) { try body(seed) }
  }

  /// `AIO_SEED`, or another one each time.
  static let one =
    ProcessInfo.processInfo.environment["AIO_SEED"].flatMap(UInt64.init) ?? .random(in: 0..<1 << 32)

  static func replay(_ seed: UInt64) -> String {
    "seed \(seed); replay it with AIO_SEED=\(seed)"
  }
}

/// 16 MiB for files, of which no two blocks are the same.
let blockContents: [UInt8] = {
  var words = SeededGenerator(seed: 1)
  let size = 16 << 20
  return [UInt8](unsafeUninitializedCapacity: size) { bytes, initialized in
    for offset in stride(from: 0, to: size, by: 8) {
      UnsafeMutableRawBufferPointer(bytes).storeBytes(
        of: words.next(), toByteOffset: offset, as: UInt64.self)
    }
    initialized = size
  }
}()
