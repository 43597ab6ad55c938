// SPDX-License-Identifier: Apache-2.0

import Foundation
import Synchronization
import XCTest

@testable import DispatchAIO

/// The memory of a context's ring, which the kernel maps and unmaps by itself.
final class RingAddressTests: XCTestCase {
  /// A context that another thread makes, at the address that an earlier one had, is another: under
  /// the Thread Sanitizer its use is no race with that of the earlier.
  func testAContextAtTheAddressOfAnother() throws {
    do {
      try LinuxKernel(room: 1).destroy()
    } catch {
      throw XCTSkip("no AIO context: \(error)")
    }
    let rounds = 20
    let round = Atomic<Int>(0)
    let group = DispatchGroup()
    for turn in 0..<2 {
      DispatchQueue(label: "thread \(turn)").async(group: group) {
        for mine in stride(from: turn, to: rounds, by: 2) {
          // Relaxed, so that nothing but the kernel says which of the two was first.
          while round.load(ordering: .relaxed) < mine { sched_yield() }
          Self.useAContext()
          round.store(mine + 1, ordering: .relaxed)
        }
      }
    }
    group.wait()
  }

  /// Makes a context, reaps a completion, and destroys it.
  private static func useAContext() {
    do {
      let kernel = try LinuxKernel(room: 1)
      kernel.wake()
      withUnsafeTemporaryAllocation(of: CompletionEvent.self, capacity: 8) { events in
        XCTAssertEqual(
          kernel.reap(into: events.baseAddress!, capacity: 8, waiting: 1_000_000_000), 1)
      }
      kernel.destroy()
    } catch {
      XCTFail("\(error)")
    }
  }
}
