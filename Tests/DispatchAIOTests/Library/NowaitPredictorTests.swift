// SPDX-License-Identifier: Apache-2.0

import Glibc
import XCTest

@testable import DispatchAIO

/// What goes down from the loop, and what does not; and that the learning unlearns.
final class NowaitPredictorTests: XCTestCase {
  private typealias Traits = OpenFile.Traits

  private let read = Verb.read
  private let write = Verb.write

  func testWhatIsKnownFromTheStart() {
    let direct = Traits()
    let buffered = Traits(isDirect: false)
    let memory = Traits(isMemory: true)
    let synchronous = Traits(isDirect: false, syncsWrites: true)
    let rows: [(String, Traits, Verb, Int64, Int, Route)] = [
      ("direct read", direct, read, 0, 4096, .nowait),
      ("direct read past the end", direct, read, 1 << 30, 4096, .nowait),
      ("large direct read", direct, read, 0, 64 << 20, .nowait),
      ("direct overwrite", direct, write, 4096, 4096, .nowait),
      ("direct write up to the end", direct, write, 61440, 4096, .nowait),
      ("direct write across the end", direct, write, 61440, 8192, .syscall),
      ("direct write beyond the end", direct, write, 65536, 512, .syscall),
      ("write with O_APPEND", Traits(appends: true), write, 0, 512, .syscall),
      ("buffered read", buffered, read, 0, 65536, .nowait),
      ("large buffered read", buffered, read, 0, (256 << 10) + 1, .syscall),
      ("buffered overwrite", buffered, write, 0, 4096, .nowait),
      ("buffered append", buffered, write, 65536, 1, .syscall),
      ("large buffered write", buffered, write, 0, 300 << 10, .syscall),
      ("buffered O_DSYNC overwrite", synchronous, write, 0, 4096, .syscall),
      ("buffered O_DSYNC read", synchronous, read, 0, 4096, .nowait),
      ("direct O_DSYNC overwrite", Traits(syncsWrites: true), write, 0, 4096, .nowait),
      ("tmpfs read", memory, read, 0, 4096, .inline),
      ("tmpfs append", memory, write, 1 << 20, 4096, .inline),
      ("large tmpfs read", memory, read, 0, 1 << 20, .syscall),
      ("FUSE read", Traits(fileSystem: .fuse), read, 0, 4096, .syscall),
      ("FUSE fsync", Traits(fileSystem: .fuse), .fsync, 0, 0, .syscall),
      ("/proc read", Traits(isDirect: false, fileSystem: .pseudo), read, 0, 4096, .syscall),
      ("fsync", direct, .fsync, 0, 0, .inline),
      ("fdatasync", buffered, .fdatasync, 0, 0, .inline),
    ]
    for (what, traits, operation, offset, length, route) in rows {
      let predictor = NowaitPredictor(traits, size: 65536)
      XCTAssertEqual(predictor.route(operation, offset: offset, length: length), route, what)
    }
  }

  func testAnExtendedFileIsFastAgain() {
    let predictor = NowaitPredictor(Traits(), size: 0)
    XCTAssertEqual(predictor.route(write, offset: 0, length: 4096), .syscall)
    predictor.extended(to: 4096)
    XCTAssertEqual(predictor.route(write, offset: 0, length: 4096), .nowait)
    XCTAssertEqual(predictor.route(write, offset: 4096, length: 4096), .syscall)
    // Writes complete in any order.
    predictor.extended(to: 16384)
    predictor.extended(to: 8192)
    XCTAssertEqual(predictor.route(write, offset: 12288, length: 4096), .nowait)
  }

  func testRefusalsAreLearnedAndUnlearned() {
    for operation in [read, write] {
      let predictor = NowaitPredictor(Traits(), size: .max)
      func tries(_ count: Int) -> Int {
        (0..<count).count { _ in predictor.route(operation, offset: 0, length: 512) == .nowait }
      }
      for _ in 0..<3 { predictor.refused(operation) }
      XCTAssertEqual(tries(10), 10, "three refusals are chance")
      predictor.refused(operation)
      XCTAssertEqual(tries(160), 10, "four are a habit, and one in sixteen tries")
      predictor.accepted(operation)
      XCTAssertEqual(tries(10), 10, "one that was not refused ends it")
    }
  }

  /// Reads of an `.automatic` file are direct where they are not tried, once that is possible;
  /// those that were read so of late are tried.
  func testAutomaticFiles() throws {
    let traits = Traits(isDirect: false, isAutomatic: true)
    let direct = try XCTUnwrap(DirectReads(traits))
    let predictor = NowaitPredictor(traits, size: .max, directReads: direct)
    func routes(_ count: Int = 32, at offset: Int64 = 0) -> [Route] {
      (0..<count).map { _ in predictor.route(read, offset: offset, length: 4096) }
    }
    XCTAssertEqual(predictor.route(read, offset: 0, length: 1 << 20), .nowait)
    for _ in 0..<4 { predictor.refused(read) }
    XCTAssertEqual(Set(routes(8)), [.syscall], "nothing is open")
    direct.opened(open("/dev/null", O_RDONLY | O_CLOEXEC), BlockAlignment(memory: 512, offset: 512))
    let routesOf128 = routes(128)
    XCTAssertEqual(routesOf128.count { $0 == .nowait }, 2)
    XCTAssertEqual(routesOf128.count { $0 == .direct }, 126)
    XCTAssertEqual(predictor.route(read, offset: 0, length: 0), .nowait)
    XCTAssertEqual(predictor.route(write, offset: 0, length: 512), .nowait)
    direct.remember(1 << 30)
    XCTAssertEqual(Set(routes(at: 1 << 30)), [.nowait])
    XCTAssertEqual(Set(routes(8, at: (1 << 30) + 4096)).subtracting([.nowait]), [.direct])
    direct.noteUnsupported()
    XCTAssertEqual(Set(routes()), [.syscall, .nowait], "as a buffered file")
    XCTAssertEqual(predictor.route(read, offset: 0, length: 1 << 20), .syscall)
  }

  private func opened(_ traits: Traits) throws -> DirectReads {
    let direct = try XCTUnwrap(DirectReads(traits))
    direct.opened(open("/dev/null", O_RDONLY | O_CLOEXEC), BlockAlignment(memory: 512, offset: 512))
    return direct
  }

  /// A working set is told from a file that is read once, and from one that is far larger than what
  /// is remembered.
  func testAWorkingSetIsToldFromAScan() throws {
    var generator = SeededGenerator(seed: Seeds.one)
    for (blocks, isRereading) in [(1000, true), (65536, true), (4_000_000, false)] {
      let direct = try opened(Traits(isDirect: false, isAutomatic: true))
      var known = 0
      for read in 0..<300_000 {
        direct.look(at: Int64.random(in: 0..<Int64(blocks), using: &generator) << 12)
        if read >= 200_000, direct.isRereading { known += 1 }
      }
      XCTAssertEqual(known > 70_000, isRereading, "\(blocks) blocks; \(Seeds.replay(Seeds.one))")
    }
    let direct = try opened(Traits(isDirect: false, isAutomatic: true))
    for block in 0..<1_000_000 as Range<Int64> { direct.look(at: block << 12) }
    XCTAssertFalse(direct.isRereading, "a scan")
  }

  func testReadsAndWritesLearnApart() {
    let predictor = NowaitPredictor(Traits(), size: .max)
    for _ in 0..<10 { predictor.refused(write) }
    XCTAssertEqual(predictor.route(read, offset: 0, length: 512), .nowait)
    XCTAssertEqual(predictor.route(write, offset: 0, length: 512), .offload)
  }

  func testWhatIsNotSupportedIsNotTriedAgain() {
    for (operation, route) in [(read, Route.offload), (write, .offload), (.fsync, .syscall)] {
      let predictor = NowaitPredictor(Traits(), size: .max)
      predictor.noteUnsupported(operation)
      for _ in 0..<100 {
        XCTAssertEqual(predictor.route(operation, offset: 0, length: 0), route)
      }
    }
  }

  /// Refusals are counted as long as a program runs: more than 2^32 of them.
  func testTheCountersWrapAround() {
    for operation in [read, write] {
      let predictor = NowaitPredictor(Traits(), size: .max)
      predictor.readRefusals.store(.max - 2, ordering: .relaxed)
      predictor.writeRefusals.store(.max - 2, ordering: .relaxed)
      let routes = (0..<40).map { _ in predictor.route(operation, offset: 0, length: 512) }
      XCTAssertTrue(routes.contains(.nowait), "\(operation): never tries once more")
      for _ in 0..<10 { predictor.refused(operation) }
      XCTAssertEqual(predictor.route(operation, offset: 0, length: 512), .offload)
    }
  }

  /// While a file system is frozen, a submission of a write sleeps; those after it are offloaded,
  /// as long as what was offloaded does not end, and for a while after that.
  func testWritesOfASlowFileSystemAreOffloaded() {
    let (health, second) = (FileSystemHealth(), FileSystemHealth.probation)
    XCTAssertFalse(health.isSlow)
    health.submissionTook(5_000_000, now: 1000)
    XCTAssertFalse(health.isSlow, "5 ms are the machine's")
    health.submissionTook(2 * second, now: 1000)
    XCTAssertTrue(health.isStillSlow(now: 1000 + second))
    // It is frozen once more: an offloaded write does not end.
    health.writeBegins()
    XCTAssertTrue(health.isStillSlow(now: 1001 + 2 * second))
    XCTAssertTrue(health.isStillSlow(now: 1002 + 3 * second))
    health.writeEnded(start: 1002 + 3 * second, now: 1003 + 3 * second)
    XCTAssertFalse(health.isStillSlow(now: 1004 + 9 * second), "thawed for long")
    XCTAssertFalse(health.isStillSlow(now: 1005 + 9 * second))
    // An offload thread has noticed it first.
    health.writeBegins()
    health.writeEnded(start: 9 * second, now: 10 * second)
    XCTAssertTrue(health.isStillSlow(now: 10 * second + 1))
  }
}
