// SPDX-License-Identifier: Apache-2.0

internal import CKernel
internal import Synchronization

/// The blocks of `AIOContext.async`, which run in turns, in the order of the calls.
///
/// - Safety: `@unchecked Sendable` because `running` and `next` are touched in turns only.
final class LoopBlocks: @unchecked Sendable {
  private struct State {
    var arrived: [Block] = []
    var isClosed = false
  }

  private let state = Lock(State())
  /// The number of blocks that have not run.
  private let count = Atomic<Int>(0)
  private var running: [Block] = []
  private var next = 0

  /// Whether there are no blocks. Sequentially consistent, for a loop that prepares to sleep.
  var isEmpty: Bool {
    @inline(__always) get { count.load(ordering: .sequentiallyConsistent) == 0 }
  }

  /// - Returns: `false` if the loop runs no more blocks.
  func append(_ block: Block) -> Bool {
    state.withLock { state in
      if state.isClosed { return false }
      state.arrived.append(block)
      count.add(1, ordering: .sequentiallyConsistent)
      return true
    }
  }

  /// Runs the blocks that are there, until a time.
  ///
  /// - Parameter end: The time to stop at, by the monotonic clock, which is read between blocks.
  /// - Returns: The number of blocks run.
  func run(until end: UInt64) -> Int {
    if running.isEmpty { state.withLock { state in swap(&state.arrived, &running) } }
    let first = next
    while next < running.count {
      let block = running[next]
      next += 1
      count.subtract(1, ordering: .relaxed)
      block.run()
      if ckernel_monotonic_nanoseconds() > end { break }
    }
    let count = next - first
    if next == running.count {
      // What the blocks held is not to live until the next ones arrive.
      running.removeAll(keepingCapacity: true)
      next = 0
    }
    return count
  }

  /// Closes the list, unless it has blocks.
  ///
  /// - Returns: Whether it has been closed.
  func close() -> Bool {
    state.withLock { state in
      guard isEmpty else { return false }
      state.isClosed = true
      return true
    }
  }
}
