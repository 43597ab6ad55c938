// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Synchronization

/// Blocks that any thread has given to the loop, to run in a turn, in their order.
///
/// - Safety: `@unchecked Sendable` because `running` and `next` are touched in turns only.
final class LoopBlocks: @unchecked Sendable {
  private struct State {
    var arrived: [@Sendable () -> Void] = []
    var isClosed = false
  }

  private let state = Lock(State())
  /// How many have arrived and not run.
  private let count = Atomic<Int>(0)
  private var running: [@Sendable () -> Void] = []
  private var next = 0

  /// Sequentially consistent, for a loop that prepares to sleep.
  var isEmpty: Bool {
    @inline(__always) get { count.load(ordering: .sequentiallyConsistent) == 0 }
  }

  /// - Returns: `false` when the loop runs no more blocks.
  func append(_ body: @escaping @Sendable () -> Void) -> Bool {
    state.withLock { state in
      if state.isClosed { return false }
      state.arrived.append(body)
      count.add(1, ordering: .sequentiallyConsistent)
      return true
    }
  }

  /// Runs what is there, until so much time has passed.
  ///
  /// - Parameter end: when to stop, by the monotonic clock; looked at between blocks.
  /// - Returns: how many.
  func run(until end: UInt64) -> Int {
    if running.isEmpty { state.withLock { state in swap(&state.arrived, &running) } }
    let first = next
    while next < running.count {
      let body = running[next]
      next += 1
      count.subtract(1, ordering: .relaxed)
      body()
      if clinux_monotonic_nanoseconds() > end { break }
    }
    let count = next - first
    if next == running.count {
      // What the blocks held is not to live until the next ones arrive.
      running.removeAll(keepingCapacity: true)
      next = 0
    }
    return count
  }

  /// Takes no more, if there are none.
  ///
  /// - Returns: whether there are none.
  func close() -> Bool {
    state.withLock { state in
      guard isEmpty else { return false }
      state.isClosed = true
      return true
    }
  }
}
