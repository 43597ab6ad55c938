// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import BlockServer

final class RangeLocksTests: XCTestCase {
  /// Takes a range, waiting for it.
  private static func hold(
    _ locks: RangeLocks, _ range: Range<UInt64>, exclusive: Bool, _ body: () -> Void
  ) throws {
    let promise = Promise<RangeLocks.Ticket>()
    let ticket =
      try locks.acquire(range, exclusive: exclusive, granted: { promise.fulfil($0) })
      ?? promise.wait()
    body()
    locks.release(ticket)
  }

  /// Whether an exclusive request holds or waits for a range: then a shared one, which overlaps
  /// none, is listed.
  private static func isContended(_ locks: RangeLocks) -> Bool {
    let ticket = locks.acquire(10_000..<10_001, exclusive: false) { _ in }
    if let ticket { locks.release(ticket) }
    return ticket != .counted
  }

  func testSharersShareAndOthersWait() {
    let locks = RangeLocks()
    let granted = Locked<[String]>([])
    func acquire(_ name: String, _ range: Range<UInt64>, _ exclusive: Bool) -> RangeLocks.Ticket? {
      locks.acquire(range, exclusive: exclusive) { _ in granted.withLock { $0.append(name) } }
    }
    let a = acquire("a", 0..<10, false)
    let b = acquire("b", 5..<15, false)
    XCTAssertEqual(a, .counted)
    XCTAssertEqual(b, .counted)
    // Waits for those who are not listed, wherever they are.
    XCTAssertNil(acquire("c", 100..<110, true))
    // Those who come behind it do not count any more; they wait only where they overlap.
    let d = acquire("d", 0..<10, false)
    XCTAssertNotNil(d)
    XCTAssertNil(acquire("e", 105..<106, false))
    XCTAssertNil(acquire("f", 0..<1, true))
    locks.release(a!)
    XCTAssertEqual(granted.withLock { $0 }, [])
    locks.release(b!)
    XCTAssertEqual(granted.withLock { $0 }, ["c"])
    XCTAssertTrue(Self.isContended(locks))
    locks.release(d!)
    XCTAssertEqual(granted.withLock { $0 }, ["c", "f"])
    locks.release(.listed(1))
    XCTAssertEqual(granted.withLock { $0 }, ["c", "f", "e"])
    locks.release(.listed(4))
    locks.release(.listed(3))
    XCTAssertFalse(Self.isContended(locks))
    XCTAssertEqual(acquire("g", 0..<200, false), .counted)
  }

  /// Threads that change bytes one by one, which lose updates unless they are kept apart.
  func testNobodyOverlapsAnExclusiveHolder() {
    let locks = RangeLocks()
    let size = 64
    nonisolated(unsafe) let cells = UnsafeMutablePointer<Int>.allocate(capacity: size)
    cells.initialize(repeating: 0, count: size)
    defer { cells.deallocate() }
    let expected = Locked([Int](repeating: 0, count: size))
    let rounds = 2000
    onThreads(6) { thread in
      var generator = SeededGenerator(seed: UInt64(thread))
      for _ in 0..<rounds {
        let from = Int.random(in: 0..<size, using: &generator)
        let to = Int.random(in: from + 1...min(size, from + 8), using: &generator)
        let range = UInt64(from)..<UInt64(to)
        do {
          if generator.oneIn(3) {
            try Self.hold(locks, range, exclusive: true) {
              for cell in from..<to { cells[cell] += 1 }
            }
            expected.withLock { for cell in from..<to { $0[cell] += 1 } }
          } else {
            try Self.hold(locks, range, exclusive: false) {
              for cell in from..<to { XCTAssertGreaterThanOrEqual(cells[cell], 0) }
            }
          }
        } catch { XCTFail("\(error)") }
      }
    }
    expected.withLock { expected in
      for cell in 0..<size { XCTAssertEqual(cells[cell], expected[cell], "\(cell)") }
    }
    XCTAssertFalse(Self.isContended(locks))
  }
}
