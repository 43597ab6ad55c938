// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import DispatchAIO

/// The lock-free parts under many threads; the Thread Sanitizer looks on in CI.
final class SharedStructureTests: XCTestCase {
  private final class Shared: Sendable {
    let free: FreeList
    let inbox: Inbox
    init(capacity: Int) {
      free = FreeList(capacity: capacity)
      inbox = Inbox(capacity: capacity)
    }
  }

  func testAFreeSlotIsTakenByOneThread() {
    let shared = Shared(capacity: 7)
    let owners = Locked([Int](repeating: 0, count: 7))
    onThreads(4) { _ in
      for _ in 0..<5000 {
        guard let slot = shared.free.take() else { continue }
        owners.withLock {
          $0[Int(slot)] += 1
          XCTAssertEqual($0[Int(slot)], 1, "two own slot \(slot)")
        }
        owners.withLock { $0[Int(slot)] -= 1 }
        shared.free.give(slot)
      }
    }
    XCTAssertEqual(shared.free.count, 7)
    XCTAssertEqual(Set((0..<7).map { _ in shared.free.take() }), Set((0..<7).map { UInt32($0) }))
    XCTAssertNil(shared.free.take())
    XCTAssertEqual(shared.free.count, 0)
  }

  func testTheLastFreedIsTakenFirst() {
    let free = FreeList(capacity: 3)
    XCTAssertEqual(free.take(), 0)
    XCTAssertEqual(free.take(), 1)
    free.give(0)
    XCTAssertEqual(free.take(), 0)
    XCTAssertEqual(free.take(), 2)
  }

  func testTheLargestFreeList() {
    let free = FreeList(capacity: FreeList.maximumCapacity)
    XCTAssertEqual(free.count, FreeList.maximumCapacity)
    var taken = 0
    while free.take() != nil { taken += 1 }
    XCTAssertEqual(taken, FreeList.maximumCapacity)
  }

  /// A request that the kernel takes and refuses in turns is waiting or submitted whenever somebody
  /// cancels it, and never completed.
  func testACancellationFindsTheRequest() throws {
    let table = RequestTable<Int>(capacity: 1)
    let file = OpenFile(descriptor: -1, path: nil, traits: .init()) { _ in }
    for _ in 0..<200 {
      let slot = try XCTUnwrap(table.free.take())
      let request = Request(
        operation: .fsync, file: file, offset: 0, length: 0, attachment: 0)
      let id = table.accept(request, in: slot)
      onThreads(2) { thread in
        if thread == 0 {
          while table.claim(slot) { table.unclaim(slot) }
        } else {
          while case let phase = table.cancel(id), phase != .waiting {
            XCTAssertEqual(phase, .submitted)
          }
        }
      }
      var (reader, budget) = (Inbox.Reader(), 100)
      XCTAssertEqual(reader.next(from: table.cancellations, &budget), slot)
      XCTAssertEqual(reader.next(from: table.inbox, &budget), slot)
      _ = table.retire(slot)
      table.free.give(slot)
    }
  }

  func testAnInboxKeepsTheOrderOfArrival() {
    let inbox = Inbox(capacity: 8)
    XCTAssertTrue(inbox.isEmpty)
    var reader = Inbox.Reader()
    var budget = 100
    XCTAssertNil(reader.next(from: inbox, &budget))
    for slot in [3, 1, 4, 0, 5] as [UInt32] { inbox.push(slot) }
    XCTAssertFalse(inbox.isEmpty)
    // A few steps at a time, while others arrive.
    var order: [UInt32] = []
    for step in 0..<10 {
      budget = 2
      while let slot = reader.next(from: inbox, &budget) { order.append(slot) }
      if step == 0 { for slot in [2, 6] as [UInt32] { inbox.push(slot) } }
    }
    XCTAssertEqual(order, [3, 1, 4, 0, 5, 2, 6])
    XCTAssertTrue(inbox.isEmpty)
    XCTAssertTrue(reader.isEmpty)
    // A reader whose budget is used up says so of what has arrived.
    inbox.push(7)
    budget = 0
    XCTAssertNil(reader.next(from: inbox, &budget))
    XCTAssertFalse(inbox.isEmpty && reader.isEmpty)
    budget = 2
    XCTAssertEqual(reader.next(from: inbox, &budget), 7)
  }

  /// Three threads push, one takes; each thread's own come out in its order, none lost.
  func testAnInboxUnderFire() {
    let shared = Shared(capacity: 30)
    let perThread = 10
    let rounds = 500
    let received = Locked<[[UInt32]]>([[], [], []])
    onThreads(4) { thread in
      if thread < 3 {
        for round in 0..<rounds {
          for number in 0..<perThread { shared.inbox.push(UInt32(thread * perThread + number)) }
          // The slots are the taker's until it has them all.
          let areTaken = eventually {
            received.withLock { $0[thread].count } == (round + 1) * perThread
          }
          guard areTaken else { return XCTFail("thread \(thread) waits in round \(round)") }
        }
      } else {
        var count = 0
        var reader = Inbox.Reader()
        while count < 3 * perThread * rounds {
          var chain: [UInt32] = []
          let isAny = eventually {
            var budget = 7
            while let slot = reader.next(from: shared.inbox, &budget) { chain.append(slot) }
            return !chain.isEmpty
          }
          guard isAny else { return XCTFail("\(count) were taken") }
          count += chain.count
          received.withLock { for slot in chain { $0[Int(slot) / perThread].append(slot) } }
        }
      }
    }
    for thread in 0..<3 {
      let own = received.withLock { $0[thread] }
      let expected = (0..<rounds).flatMap { _ in
        (0..<perThread).map { UInt32(thread * perThread + $0) }
      }
      XCTAssertEqual(own, expected)
    }
  }
}
