// SPDX-License-Identifier: Apache-2.0

/// The memory that a connection's requests may use: one budget for small requests and one for large
/// ones, so that the small ones can overtake the large ones.
struct MemoryBudget {
  /// The most memory of small requests: reads and writes of up to `largestSmall`.
  static let small = 8 << 20
  /// The most memory of large requests; one of the largest fits.
  static let large = Int(ExportDescription.largestPayload) + BufferPool.largest
  static let largestSmall = 256 << 10

  private var smallUsed = 0
  private var largeUsed = 0

  static func isLarge(_ cost: Int) -> Bool { cost > largestSmall }

  /// Whether a request that costs so many bytes can begin now.
  func admits(_ cost: Int) -> Bool {
    Self.isLarge(cost) ? largeUsed + cost <= Self.large : smallUsed + cost <= Self.small
  }

  mutating func charge(_ cost: Int) {
    if Self.isLarge(cost) { largeUsed += cost } else { smallUsed += cost }
  }

  mutating func refund(_ cost: Int) {
    if Self.isLarge(cost) { largeUsed -= cost } else { smallUsed -= cost }
    assert(smallUsed >= 0 && largeUsed >= 0, "more was refunded than was charged")
  }
}
