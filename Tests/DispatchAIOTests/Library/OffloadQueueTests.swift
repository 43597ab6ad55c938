// SPDX-License-Identifier: Apache-2.0

import Synchronization
import XCTest

@testable import DispatchAIO

/// Who works on what, and when: the offload pool without its threads, step by step.
final class OffloadQueueTests: XCTestCase {
  /// A queue, and what its threads are doing.
  private final class Scene {
    let queue: OffloadQueue
    let cancelled = Locked<Set<UInt32>>([])
    var threads: [Int: OffloadQueue.Work] = [:]
    /// What was taken together with another item, by the latter.
    var more: [UInt32: [UInt32]] = [:]
    /// What each item was appended as.
    var appended: [UInt32: (file: UInt32, kind: OffloadKind)] = [:]
    /// The items that threads have taken.
    var taken = Set<UInt32>()
    var now: UInt64 = 1

    init(base: Int, limit: Int, sharesFiles: Bool = false) {
      let cancelled = cancelled
      // Items up to 1000 do not continue each other; those from there on do, by tens.
      queue = OffloadQueue(
        base: base, limit: limit, sharesFiles: sharesFiles,
        continues: { $0 >= 1000 && $1 == $0 + 1 && $1 % 10 != 0 },
        claim: { item in cancelled.withLock { !$0.contains(item) } })
    }

    func append(_ items: Range<UInt32>, file: UInt32, _ kind: OffloadKind = .read) {
      for item in items {
        appended[item] = (file, kind)
        queue.append(item, file: file, kind: kind)
      }
    }

    /// Starts every thread that has to begin.
    func start() {
      while let thread = queue.threadToStart(now: now) { step(thread, finished: nil) }
    }

    func step(_ thread: Int, finished: OffloadQueue.Work?) {
      threads[thread] = nil
      var following: [UInt32] = []
      let step = queue.next(for: thread, finished: finished, now: now, more: &following)
      if let work = step.work {
        threads[thread] = work
        more[work.item] = following
        for item in [work.item] + following {
          XCTAssertTrue(taken.insert(item).inserted, "\(item) is taken twice")
        }
      }
      if let another = step.threadToStart { self.step(another, finished: nil) }
    }

    /// The items that are under way.
    var active: Set<UInt32> { Set(threads.values.map(\.item)) }

    /// Finishes an item that is under way.
    func finish(_ item: UInt32, file: StaticString = #filePath, line: UInt = #line) {
      guard let (thread, work) = threads.first(where: { $0.value.item == item }) else {
        return XCTFail("\(item) is not under way", file: file, line: line)
      }
      step(thread, finished: work)
    }
  }

  func testAFileHasAShareOfTheThreads() {
    for (kind, share) in [(OffloadKind.read, 4), (.write, 1), (.sync, 1)] {
      let scene = Scene(base: 8, limit: 64)
      scene.append(0..<20, file: 7, kind)
      scene.start()
      XCTAssertEqual(scene.active, Set(0..<UInt32(share)), "\(kind)")
      // … and another file the rest, although twenty were here before.
      scene.append(100..<101, file: 3)
      scene.start()
      XCTAssertTrue(scene.active.contains(100), "\(kind)")
      // In its order.
      scene.finish(0)
      XCTAssertTrue(scene.active.contains(UInt32(share)), "\(kind)")
    }
  }

  func testASyncDoesNotWaitBehindWrites() {
    let scene = Scene(base: 2, limit: 2)
    scene.append(0..<10, file: 0, .write)
    scene.start()
    scene.append(50..<51, file: 0, .sync)
    scene.start()
    XCTAssertEqual(scene.active, [0, 50])
  }

  func testFilesTakeTurns() {
    let scene = Scene(base: 1, limit: 1)
    scene.append(0..<3, file: 0)
    scene.append(10..<13, file: 1)
    scene.append(20..<23, file: 2)
    scene.start()
    var order: [UInt32] = []
    while let item = scene.active.first {
      order.append(item)
      scene.finish(item)
    }
    XCTAssertEqual(order, [0, 10, 20, 1, 11, 21, 2, 12, 22])
  }

  /// A thread whose call takes long is replaced, up to the limit; when the calls end after all, the
  /// threads do, too.
  func testStuckThreadsAreReplaced() {
    let scene = Scene(base: 2, limit: 6)
    for file in 0..<20 as Range<UInt32> { scene.append(file..<file + 1, file: file) }
    scene.start()
    XCTAssertEqual(scene.threads.count, 2)
    XCTAssertTrue(scene.queue.isBacklogged)
    scene.now += OffloadQueue.stuckAfter / 2
    scene.start()
    XCTAssertEqual(scene.threads.count, 2, "not stuck yet")
    for expected in [4, 6, 6] {
      scene.now += OffloadQueue.stuckAfter + 1
      scene.start()
      XCTAssertEqual(scene.threads.count, expected)
    }
    var finished = 0
    while let item = scene.active.min() {
      scene.finish(item)
      finished += 1
      XCTAssertLessThanOrEqual(scene.threads.count, 6)
      if finished > 5 { XCTAssertLessThanOrEqual(scene.threads.count, 2, "after \(finished)") }
    }
    XCTAssertEqual(finished, 20)
    XCTAssertFalse(scene.queue.isBacklogged)
  }

  func testWritesThatContinueAreTakenTogether() {
    let scene = Scene(base: 1, limit: 1)
    scene.append(1000..<1025, file: 0, .write)
    scene.append(2000..<2010, file: 1, .read)
    _ = scene.cancelled.withLock { $0.insert(1015) }
    scene.start()
    XCTAssertEqual(scene.active, [1000])
    XCTAssertEqual(scene.more[1000], Array(1001..<1010))
    scene.finish(1000)
    XCTAssertEqual(scene.more[2000], [], "reads are not")
    scene.finish(2000)
    // One that was cancelled ends a run.
    XCTAssertEqual(scene.more[1010], Array(1011..<1015))
    scene.finish(1010)
    scene.finish(2001)
    XCTAssertEqual(scene.more[1016], Array(1017..<1020))
  }

  func testWhatOneCallMeansForEachWrite() {
    for (count, whole, rest) in [
      (0, 0, 0), (1, 0, 1), (10, 1, 0), (29, 1, 19), (30, 2, 0), (35, 2, 5), (60, 3, 0),
    ] {
      let split = ContiguousWrites.split(count, [10, 20, 30])
      XCTAssertTrue(split == (whole, rest), "\(count): \(split)")
    }
  }

  func testWhatIsCancelledIsNotTaken() {
    let scene = Scene(base: 1, limit: 1)
    scene.append(0..<6, file: 0, .write)
    scene.start()
    // Taken out by the loop, from the middle and from the end; and one that was just cancelled.
    for item in [2, 5] as [UInt32] { scene.queue.remove(item) }
    _ = scene.cancelled.withLock { $0.insert(3) }
    scene.finish(0)
    XCTAssertEqual(scene.active, [1])
    scene.finish(1)
    XCTAssertEqual(scene.active, [4])
    // That it is removed once more changes nothing.
    scene.queue.remove(3)
    scene.finish(4)
    XCTAssertEqual(scene.active, [])
    // The slots may be used for others.
    _ = scene.cancelled.withLock { $0.remove(3) }
    scene.append(2..<4, file: 1)
    scene.start()
    XCTAssertEqual(scene.active, [2])
  }

  /// Handing over, taking and cancelling cost the same however many wait.
  func testManyItems() {
    func nanosecondsEach(_ count: UInt32) -> Double {
      let scene = Scene(base: 1, limit: 1)
      let clock = ContinuousClock()
      let took = clock.measure {
        scene.append(0..<count, file: 0, .write)
        for item in stride(from: count - 1, to: count / 2, by: -1) { scene.queue.remove(item) }
        scene.start()
        while let item = scene.active.first { scene.finish(item) }
      }
      return took / .nanoseconds(1) / Double(count)
    }
    let few = (0..<5).map { _ in nanosecondsEach(1000) }.min()!
    let many = (0..<3).map { _ in nanosecondsEach(64_000) }.min()!
    XCTAssertLessThan(many, 8 * few, "64 times as many cost \(many) ns each, \(few) ns before")
  }

  /// Every item is taken once, in any schedule, and no file has more than its share.
  func testRandomSchedules() {
    Seeds.run(default: min(500, Seeds.usual)) { seed in
      var generator = SeededGenerator(seed: seed)
      let base = Int.random(in: 1...4, using: &generator)
      let scene = Scene(base: base, limit: 8)
      // In every other one, writes of a file may continue each other.
      let first: UInt32 = seed % 2 == 0 ? 0 : 1000
      var next = first
      var removed = Set<UInt32>()
      /// No file has more than its share of the threads.
      func checkShares() {
        for (file, items) in Dictionary(grouping: scene.active, by: { scene.appended[$0]!.file }) {
          for (kind, share) in [(OffloadKind.sync, 1), (.write, 1), (.read, max(1, base / 2))] {
            XCTAssertLessThanOrEqual(
              items.count { scene.appended[$0]!.kind == kind }, share,
              "\(kind)s of file \(file) — \(Seeds.replay(seed))")
          }
        }
      }
      for _ in 0..<300 {
        scene.now += UInt64.random(in: 0...OffloadQueue.stuckAfter / 3, using: &generator)
        switch Int.random(in: 0..<5, using: &generator) {
        case 0, 1:
          let kind = [OffloadKind.read, .write, .sync].randomElement(using: &generator)!
          let end = next + UInt32.random(in: 1...3, using: &generator)
          scene.append(next..<end, file: UInt32.random(in: 0..<5, using: &generator), kind)
          next = end
        case 2:
          if next > first {
            let item = UInt32.random(in: first..<next, using: &generator)
            if !scene.taken.contains(item) {
              scene.queue.remove(item)
              removed.insert(item)
            }
          }
        default:
          if let item = scene.active.sorted().randomElement(using: &generator) {
            scene.finish(item)
          }
        }
        scene.start()
        checkShares()
        XCTAssertLessThanOrEqual(scene.threads.count, 8, Seeds.replay(seed))
      }
      while let item = scene.active.min() {
        scene.finish(item)
        checkShares()
      }
      XCTAssertEqual(scene.taken.union(removed), Set(first..<next), Seeds.replay(seed))
      XCTAssertTrue(scene.taken.isDisjoint(with: removed), Seeds.replay(seed))
    }
  }
}
