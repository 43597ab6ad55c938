// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import DispatchAIO

/// What goes down from the loop, and what does not; and that the learning unlearns.
final class FileHabitsTests: XCTestCase {
  private typealias Traits = OpenFile.Traits

  private let read = Verb.read
  private let write = Verb.write

  func testWhatIsKnownFromTheStart() {
    let direct = Traits()
    let buffered = Traits(isDirect: false)
    let memory = Traits(isMemory: true)
    let rows: [(String, Traits, Verb, Int64, Int, Route)] = [
      ("direct read", direct, read, 0, 4096, .nowait),
      ("direct read past the end", direct, read, 1 << 30, 4096, .nowait),
      ("large direct read", direct, read, 0, 64 << 20, .nowait),
      ("direct overwrite", direct, write, 4096, 4096, .nowait),
      ("direct write up to the end", direct, write, 61440, 4096, .nowait),
      ("direct write across the end", direct, write, 61440, 8192, .asleep),
      ("direct write beyond the end", direct, write, 65536, 512, .asleep),
      ("write with O_APPEND", Traits(appends: true), write, 0, 512, .asleep),
      ("buffered read", buffered, read, 0, 65536, .nowait),
      ("large buffered read", buffered, read, 0, (256 << 10) + 1, .asleep),
      ("buffered overwrite", buffered, write, 0, 4096, .nowait),
      ("buffered append", buffered, write, 65536, 1, .asleep),
      ("large buffered write", buffered, write, 0, 300 << 10, .asleep),
      ("tmpfs read", memory, read, 0, 4096, .plain),
      ("tmpfs append", memory, write, 1 << 20, 4096, .plain),
      ("large tmpfs read", memory, read, 0, 1 << 20, .asleep),
      ("fsync", direct, .fsync, 0, 0, .plain),
      ("fdatasync", buffered, .fdatasync, 0, 0, .plain),
    ]
    for (what, traits, operation, offset, length, route) in rows {
      let habits = FileHabits(traits, size: 65536)
      XCTAssertEqual(habits.route(operation, offset: offset, length: length), route, what)
    }
  }

  func testAnExtendedFileIsFastAgain() {
    let habits = FileHabits(Traits(), size: 0)
    XCTAssertEqual(habits.route(write, offset: 0, length: 4096), .asleep)
    habits.extended(to: 4096)
    XCTAssertEqual(habits.route(write, offset: 0, length: 4096), .nowait)
    XCTAssertEqual(habits.route(write, offset: 4096, length: 4096), .asleep)
    // Writes complete in any order.
    habits.extended(to: 16384)
    habits.extended(to: 8192)
    XCTAssertEqual(habits.route(write, offset: 12288, length: 4096), .nowait)
  }

  func testRefusalsAreLearnedAndUnlearned() {
    for operation in [read, write] {
      let habits = FileHabits(Traits(), size: .max)
      func tries(_ count: Int) -> Int {
        (0..<count).count { _ in habits.route(operation, offset: 0, length: 512) == .nowait }
      }
      for _ in 0..<3 { habits.refused(operation) }
      XCTAssertEqual(tries(10), 10, "three refusals are chance")
      habits.refused(operation)
      XCTAssertEqual(tries(160), 10, "four are a habit, and one in sixteen tries")
      habits.accepted(operation)
      XCTAssertEqual(tries(10), 10, "one that was not refused ends it")
    }
  }

  func testReadsAndWritesLearnApart() {
    let habits = FileHabits(Traits(), size: .max)
    for _ in 0..<10 { habits.refused(write) }
    XCTAssertEqual(habits.route(read, offset: 0, length: 512), .nowait)
    XCTAssertEqual(habits.route(write, offset: 0, length: 512), .asleep)
  }

  func testWhatIsNotSupportedIsNotTriedAgain() {
    for (operation, route) in [(read, Route.asleep), (write, .asleep), (.fsync, .performed)] {
      let habits = FileHabits(Traits(), size: .max)
      habits.unsupported(operation)
      for _ in 0..<100 {
        XCTAssertEqual(habits.route(operation, offset: 0, length: 0), route)
      }
    }
  }
}
