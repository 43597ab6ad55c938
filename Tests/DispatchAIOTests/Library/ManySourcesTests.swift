// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import XCTest

@testable import DispatchAIO

/// A hundred thousand sources are made and cancelled: none has an event afterwards, and nothing is
/// left of them.
final class ManySourcesTests: XCTestCase {
  private static let total = 100_000
  private static let threads = 4

  /// What a source's handlers hold.
  private final class Witness: Sendable {
    private let alive: Locked<Int>
    /// Whether the cancel handler has run.
    let hasEnded = Locked(false)

    init(_ alive: Locked<Int>) {
      self.alive = alive
      alive.withLock { $0 += 1 }
    }

    deinit { alive.withLock { $0 -= 1 } }
  }

  func testNothingIsLeftOfThem() throws {
    print(Seeds.replay(Seeds.one))
    let context = try AIOContext(queueDepth: 4)
    let (alive, events, late) = (Locked(0), Locked(0), Locked(0))
    let ended = DispatchGroup()
    onThreads(Self.threads) { thread in
      var random = SeededGenerator(seed: Seeds.one &+ UInt64(thread))
      var ends: [Int32] = [0, 0]
      let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
      guard socketpair(AF_UNIX, type, 0, &ends) == 0 else { return XCTFail("no sockets") }
      let (near, far) = (ends[0], ends[1])
      defer {
        close(near)
        close(far)
      }
      for _ in 0..<Self.total / Self.threads {
        guard let source = try? context.makeReadSource(fileDescriptor: near) else {
          return XCTFail("no source")
        }
        let witness = Witness(alive)
        ended.enter()
        source.setEventHandler {
          var byte: UInt8 = 0
          _ = read(near, &byte, 1)
          if witness.hasEnded.withLock({ $0 }) { late.withLock { $0 += 1 } }
          events.withLock { $0 += 1 }
        }
        source.setCancelHandler {
          witness.hasEnded.withLock { $0 = true }
          ended.leave()
        }
        if !random.oneIn(8) { source.activate() }
        if random.oneIn(2) { _ = write(far, "x", 1) }
        if random.oneIn(8) { sched_yield() }
        source.cancel()
      }
    }
    XCTAssertEqual(ended.wait(timeout: .now() + 120), .success)
    XCTAssertEqual(late.withLock { $0 }, 0, "events after the cancel handler")
    XCTAssertTrue(eventually { alive.withLock { $0 } == 0 }, "handlers are still held")
    XCTAssertTrue(context.loop.readiness.withLock { $0.watched.isEmpty && $0.retired.isEmpty })
    XCTAssertGreaterThan(events.withLock { $0 }, 0, "no source had an event before its end")
    try context.closeAndWait()
  }
}
