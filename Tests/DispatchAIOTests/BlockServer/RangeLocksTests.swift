// SPDX-License-Identifier: Apache-2.0

import Glibc
import XCTest

@testable import BlockServer

final class RangeLocksTests: XCTestCase {
  /// Takes a range, waiting for it.
  private static func hold(
    _ locks: RangeLocks, _ range: Range<UInt64>, exclusive: Bool, _ body: () -> Void
  ) throws {
    let promise = Promise<RangeLocks.Ticket>()
    let (ticket, isGranted) = locks.acquire(
      range, exclusive: exclusive, granted: { promise.fulfil($0) })
    if !isGranted { XCTAssertEqual(try promise.wait(), ticket) }
    body()
    locks.release(ticket)
  }

  /// Whether an exclusive request holds or waits for a range: then a shared one, which overlaps
  /// none, is listed.
  private static func isContended(_ locks: RangeLocks) -> Bool {
    let (ticket, _) = locks.acquire(10_000..<10_001, exclusive: false) { _ in }
    locks.release(ticket)
    return ticket != .counted
  }

  func testSharersShareAndOthersWait() {
    let locks = RangeLocks()
    let granted = Locked<[String]>([])
    func acquire(_ name: String, _ range: Range<UInt64>, _ exclusive: Bool) -> RangeLocks.Ticket? {
      let (ticket, isGranted) = locks.acquire(range, exclusive: exclusive) { _ in
        granted.withLock { $0.append(name) }
      }
      return isGranted ? ticket : nil
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

  /// Locks, and a list of all ranges in order of arrival, in which everything is looked for: the
  /// same ranges are granted, at the same times, also when some are given up.
  func testRangesAreGrantedAsFromAList() throws {
    struct Entry {
      var number: Int
      var range: Range<UInt64>
      var isExclusive: Bool
      var ticket: RangeLocks.Ticket
      var isGranted = false
    }
    Seeds.run(default: 20) { seed in
      var generator = SeededGenerator(seed: seed)
      let locks = RangeLocks()
      // From now on nothing is only counted.
      let (first, _) = locks.acquire(1_000_000..<1_000_001, exclusive: true) { _ in }
      let told = Locked<Set<Int>>([])
      var model: [Entry] = []
      func grant() {
        for index in model.indices where !model[index].isGranted {
          model[index].isGranted = !model[..<index].contains {
            ($0.isExclusive || model[index].isExclusive) && $0.range.overlaps(model[index].range)
          }
        }
      }
      for number in 0..<400 {
        if model.count < 40 && !generator.oneIn(3) {
          let from = UInt64.random(in: 0..<1000, using: &generator)
          let range = from..<from + .random(in: 1...300, using: &generator)
          let isExclusive = generator.oneIn(2)
          let (ticket, isGranted) = locks.acquire(range, exclusive: isExclusive) { _ in
            told.withLock { _ = $0.insert(number) }
          }
          if isGranted { told.withLock { _ = $0.insert(number) } }
          model.append(
            Entry(number: number, range: range, isExclusive: isExclusive, ticket: ticket))
        } else if let index = model.indices.randomElement(using: &generator) {
          let entry = model.remove(at: index)
          XCTAssertEqual(locks.withdraw(entry.ticket), !entry.isGranted, Seeds.replay(seed))
          if entry.isGranted { locks.release(entry.ticket) }
          told.withLock { _ = $0.remove(entry.number) }
        }
        grant()
        XCTAssertEqual(
          told.withLock { $0 }, Set(model.filter(\.isGranted).map(\.number)),
          "\(Seeds.replay(seed)), step \(number)")
      }
      for entry in model.sorted(by: { $0.number < $1.number }) { locks.release(entry.ticket) }
      locks.release(first)
      XCTAssertFalse(Self.isContended(locks))
    }
  }

  /// Requests for all of a disk, and for single blocks of it: each is granted in a time that does
  /// not depend on how many wait, so that eight times as many take eight times as long, and a bit.
  /// (With a search of the whole list for each release, they would take 64 times as long.)
  func testManyRangesThatWait() {
    for (isWhole, isExclusive) in [(true, true), (false, true), (false, false)] {
      let few = Self.seconds(count: 5000, isWhole: isWhole, isExclusive: isExclusive)
      let many = Self.seconds(count: 40_000, isWhole: isWhole, isExclusive: isExclusive)
      XCTAssertLessThan(many, max(1, 30 * few), "\(few) s, \(isWhole) \(isExclusive)")
    }
  }

  /// The processor time that it takes to have so many ranges wait for another, and to grant and
  /// release them.
  private static func seconds(count: Int, isWhole: Bool, isExclusive: Bool) -> Double {
    let locks = RangeLocks()
    let granted = Locked<[RangeLocks.Ticket]>([])
    let (first, _) = locks.acquire(0..<1 << 40, exclusive: true) { _ in }
    let start = processorTime()
    for number in 0..<UInt64(count) {
      let range = isWhole ? 0..<1 << 40 : number << 12..<(number + 1) << 12
      _ = locks.acquire(range, exclusive: isExclusive) { ticket in
        granted.withLock { $0.append(ticket) }
      }
    }
    locks.release(first)
    var released = 0
    while true {
      let tickets = granted.withLock { tickets in
        defer { tickets = [] }
        return tickets
      }
      if tickets.isEmpty { break }
      for ticket in tickets { locks.release(ticket) }
      released += tickets.count
    }
    XCTAssertEqual(released, count)
    return processorTime() - start
  }

  /// The processor time of this thread in seconds, which a busy machine does not add to.
  private static func processorTime() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
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
