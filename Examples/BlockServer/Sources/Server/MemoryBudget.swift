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

/// The memory that the requests of all connections of a loop may use together: its share of
/// `--memory`.
///
/// A connection may have as much as is free. The more connections want memory, the less is free and
/// the less each may have, but there is always some for one that has none, however many take all
/// that they can and give nothing back. Beyond the limit there are a small request of each
/// connection that has nothing, and the requests of one connection at a time, so that whatever a
/// client asks for is done in the end.
struct LoopMemory {
  let limit: Int
  private(set) var used = 0
  /// The connection that may have what its own budget allows.
  private(set) var favoured: Connection?
  /// The connections that wait until memory is given back.
  private(set) var waiting: [Connection] = []

  init(limit: Int) { self.limit = limit }

  /// Whether a connection may have so many bytes more.
  @inline(__always)
  mutating func admits(_ cost: Int, for connection: Connection) -> Bool {
    if connection.memoryUsed + cost <= limit - used || favoured === connection { return true }
    if connection.memoryUsed == 0 && !MemoryBudget.isLarge(cost) { return true }
    if favoured == nil {
      favoured = connection
      return true
    }
    return false
  }

  @inline(__always)
  mutating func charge(_ cost: Int, to connection: Connection) {
    used += cost
    connection.memoryUsed += cost
  }

  @inline(__always)
  mutating func refund(_ cost: Int, to connection: Connection) {
    used -= cost
    connection.memoryUsed -= cost
    assert(used >= 0 && connection.memoryUsed >= 0, "more was refunded than was charged")
    if favoured === connection
      && (connection.memoryUsed == 0 || connection.memoryUsed <= limit - used)
    {
      favoured = nil
    }
  }

  mutating func wait(_ connection: Connection) {
    guard !connection.isWaitingForMemory else { return }
    connection.isWaitingForMemory = true
    waiting.append(connection)
  }

  /// Removes and returns the connections that wait.
  mutating func takeWaiting() -> [Connection] {
    defer { waiting.removeAll(keepingCapacity: true) }
    for connection in waiting { connection.isWaitingForMemory = false }
    return waiting
  }
}
