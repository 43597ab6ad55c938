// SPDX-License-Identifier: Apache-2.0

import CKernel
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What is done to ranges of a file: the bytes afterwards, on each file system that can be had, and
/// a typed error where it has it not.
final class FileRangeTests: XCTestCase {
  private static let block = 4096

  /// A file of eight blocks, each filled with its number from 1 on, and what is left of it.
  private func blocks(_ directory: TemporaryDirectory, _ name: String) throws -> AIOFile {
    _ = try directory.makeFile(name, size: 8 * Self.block) { UInt8($0 / Self.block + 1) }
    return try directory.open(name, caching: .buffered)
  }

  private func numbers(_ directory: TemporaryDirectory, _ name: String) throws -> [UInt8] {
    let contents = try directory.contents(name)
    return stride(from: 0, to: contents.count, by: Self.block).map { contents[$0] }
  }

  private func range(_ blocks: Range<Int>) -> Range<Int64> {
    Int64(blocks.lowerBound * Self.block)..<Int64(blocks.upperBound * Self.block)
  }

  func testRangesOnTheDisk() throws {
    let directory = try temporaryDirectory()
    let file = try directory.open()
    var disk = ckernel_file_system()
    guard ckernel_file_system(file.fileDescriptor.rawValue, &disk) == 0, disk.magic == 0xef53 else {
      throw XCTSkip("\(directory.path) is not on ext4")
    }
    try checkRanges(directory, collapses: true)
  }

  func testRangesInMemory() throws {
    guard let directory = try? TemporaryDirectory(in: "/dev/shm") else {
      throw XCTSkip("no /dev/shm")
    }
    try checkRanges(directory, zeroes: false, collapses: false)
  }

  func testRangesOnXFS() throws {
    let directory = try temporaryDirectory()
    defer { withExtendedLifetime(directory) {} }
    let disk = try SmallDisk(in: directory, megabytes: 320, type: "xfs")
    defer { withExtendedLifetime(disk) {} }
    try checkRanges(TemporaryDirectory(in: disk.path.string), collapses: true, clones: true)
  }

  func testRangesOnBtrfs() throws {
    let directory = try temporaryDirectory()
    defer { withExtendedLifetime(directory) {} }
    let disk = try SmallDisk(in: directory, megabytes: 128, type: "btrfs")
    defer { withExtendedLifetime(disk) {} }
    try checkRanges(TemporaryDirectory(in: disk.path.string), collapses: false, clones: true)
  }

  private func checkRanges(
    _ directory: TemporaryDirectory, zeroes: Bool = true, collapses: Bool, clones: Bool = false
  ) throws {
    let file = try blocks(directory, "a")
    try file.punchHole(range(1..<3))
    XCTAssertEqual(try numbers(directory, "a"), [1, 0, 0, 4, 5, 6, 7, 8])
    XCTAssertEqual(try file.nextHole(from: 0), 4096)
    XCTAssertEqual(try file.nextData(from: 4096), 3 * 4096)
    XCTAssertEqual(try file.nextHole(from: 3 * 4096), 8 * 4096, "the end of the file counts as one")
    XCTAssertNil(try file.nextData(from: 8 * 4096))
    XCTAssertNil(try file.nextHole(from: 9 * 4096))
    try file.punchHole(100..<100)

    try either(zeroes, .zeroRange) { try file.zero(range(5..<6)) }
    try either(zeroes, .zeroRange) { try file.zero(range(9..<10)) }
    XCTAssertEqual(
      try numbers(directory, "a"),
      zeroes ? [1, 0, 0, 4, 5, 0, 7, 8, 0, 0] : [1, 0, 0, 4, 5, 6, 7, 8])

    let collapsed = try blocks(directory, "b")
    try either(collapses, .collapseRange) { try collapsed.collapse(range(2..<4)) }
    XCTAssertEqual(
      try numbers(directory, "b"), collapses ? [1, 2, 5, 6, 7, 8] : Array(1...8))
    if collapses {
      let error = try XCTUnwrap(assertRefused(.misaligned) { try collapsed.collapse(100..<200) })
      XCTAssertTrue("\(error)".contains("whole blocks"), "\(error)")
      assertRefused(.misaligned) { try collapsed.collapse(range(5..<6)) }
    }

    let copy = try blocks(directory, "c")
    XCTAssertEqual(try collapsed.copy(range(0..<2), to: copy, at: 5 * 4096), 2 * 4096)
    XCTAssertEqual(try numbers(directory, "c"), [1, 2, 3, 4, 5, 1, 2, 8])
    // To its end, and behind the other's.
    XCTAssertEqual(try copy.copy(range(7..<100), to: copy, at: 20 * 4096), 4096)
    XCTAssertEqual(try copy.size(), 21 * 4096)
    XCTAssertEqual(try copy.copy(range(50..<60), to: copy, at: 0), 0)

    // Direct files on ext4, whole blocks only.
    if collapses, !clones {
      let direct = try directory.open("c")
      XCTAssertEqual(try direct.copy(range(0..<2), to: direct, at: 2 * 4096), 2 * 4096)
      let error = try XCTUnwrap(
        assertRefused(.misaligned) { try direct.copy(100..<5000, to: direct, at: 16384) })
      XCTAssertTrue("\(error)".contains("caching: .buffered"), "\(error)")
      XCTAssertEqual(try numbers(directory, "c").prefix(8), [1, 2, 1, 2, 5, 1, 2, 8])
    }

    let clone = try directory.open("d", caching: .buffered)
    try either(clones, .cloneRange) { try copy.clone(range(0..<8), to: clone, at: 0) }
    XCTAssertEqual(
      try numbers(directory, "d"), clones ? try Array(numbers(directory, "c").prefix(8)) : [])

    for advice in AIOFile.Advice.allCases {
      try file.advise(advice)
      try file.advise(advice, 4096..<8192)
    }
  }

  /// Makes a call that the file system has, or has not.
  private func either(
    _ has: Bool, _ operation: AIOError.Operation, _ body: () throws -> Void
  ) throws {
    if has { return try body() }
    let error = try XCTUnwrap(assertRefused(.notSupported, body))
    XCTAssertEqual(error.operation, operation)
    XCTAssertTrue("\(error)".contains("does not have it for this file"), "\(error)")
  }

  func testRangesForTasks() async throws {
    let directory = try temporaryDirectory()
    let file = try blocks(directory, "a")
    let other = try directory.open("b", caching: .buffered)
    try await file.punchHole(range(0..<1))
    try await file.zero(range(1..<2))
    try await file.collapse(range(2..<3))
    try await file.copy(range(0..<7), to: other, at: 0)
    XCTAssertEqual(try numbers(directory, "b"), [0, 0, 4, 5, 6, 7, 8])
    let data = try await file.nextData(from: 0)
    XCTAssertNotNil(data)
    let hole = try await file.nextHole(from: 0)
    XCTAssertEqual(hole, 0)
    try await file.advise(.willNeed)
  }

  /// What is looked for moves the descriptor's position, which says where an append went.
  func testLookingForHolesDisturbsNoAppend() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try directory.open(caching: .buffered)
    let places = Locked<[Int]>([])
    let done = DispatchGroup()
    for _ in 0..<200 {
      done.enter()
      try context.append(file, from: AIOBuffer(count: 512)) { result in
        places.withLock { $0.append((try? result.get()) ?? -1) }
        done.leave()
      }
      _ = try file.nextData(from: 0)
      _ = try file.nextHole(from: 0)
    }
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    XCTAssertEqual(places.withLock { $0.sorted() }, (0..<200).map { $0 * 512 })
    try context.closeAndWait()
  }

  func testBadRanges() throws {
    let directory = try temporaryDirectory()
    let file = try blocks(directory, "a")
    let readOnly = try directory.open("a", .readOnly, caching: .buffered)
    let writeOnly = try directory.open("a", .writeOnly, caching: .buffered)
    let closed = try directory.open("a", caching: .buffered)
    closed.close()
    assertRefused(.invalidOffset) { try file.punchHole(-1..<10) }
    assertRefused(.invalidOffset) { try file.nextData(from: -1) }
    assertRefused(.invalidOffset) { try file.copy(0..<10, to: file, at: -4) }
    assertRefused(.invalidOffset) { try file.copy(0..<10, to: file, at: .max) }
    assertRefused(.invalidOffset) { try file.advise(.random, -5..<10) }
    assertRefused(.wrongAccessMode) { try readOnly.punchHole(0..<4096) }
    assertRefused(.wrongAccessMode) { try readOnly.collapse(0..<4096) }
    assertRefused(.wrongAccessMode) { try file.copy(0..<10, to: readOnly, at: 0) }
    assertRefused(.wrongAccessMode) { try writeOnly.copy(0..<10, to: file, at: 0) }
    assertRefused(.fileClosed) { try closed.zero(0..<4096) }
    assertRefused(.fileClosed) { try file.copy(0..<10, to: closed, at: 0) }
    assertRefused(.fileClosed) { try closed.nextHole(from: 0) }
    if let memory = try? TemporaryDirectory(in: "/dev/shm") {
      let other = try memory.open(caching: .buffered)
      let error = try XCTUnwrap(
        assertRefused(.notSupported) { try file.copy(0..<10, to: other, at: 0) })
      XCTAssertTrue("\(error)".contains("read and write instead"), "\(error)")
      XCTAssertEqual(try other.size(), 0)
    }
    XCTAssertEqual(try numbers(directory, "a"), Array(1...8), "none of them changed anything")
  }

  /// Goal: an empty range is checked as any other is, though there is nothing to do.
  func testEmptyRanges() throws {
    let directory = try temporaryDirectory()
    let file = try blocks(directory, "a")
    let readOnly = try directory.open("a", .readOnly, caching: .buffered)
    let closed = try directory.open("a", caching: .buffered)
    closed.close()
    let empty = 4096..<Int64(4096)
    for (name, call) in [
      ("preallocate", { try $0.preallocate(empty) }), ("zero", { try $0.zero(empty) }),
      ("punch hole", { try $0.punchHole(empty) }), ("advise", { try $0.advise(.random, empty) }),
      ("lock", { _ = try $0.tryLock(.exclusive, empty) }),
      ("unlock", { try $0.unlock(empty) }),
      ("copy", { try $0.copy(empty, to: file, at: 0) }),
      ("clone", { try $0.clone(empty, to: file, at: 0) }),
    ] as [(String, (AIOFile) throws -> Void)] {
      XCTAssertNoThrow(try call(file), name)
      XCTAssertThrowsError(try call(closed), name) {
        XCTAssertEqual(($0 as? AIOError)?.code, .fileClosed, name)
        XCTAssertNotEqual(($0 as? AIOError)?.operation, .size, name)
      }
    }
    assertRefused(.fileClosed) { try closed.copy(0..<10, to: file, at: 0) }
    assertRefused(.fileClosed) { try file.copy(empty, to: closed, at: 0) }
    assertRefused(.fileClosed) { try file.clone(empty, to: closed, at: 0) }
    assertRefused(.wrongAccessMode) { try file.clone(empty, to: readOnly, at: 0) }
    assertRefused(.invalidOffset) { try file.clone(empty, to: file, at: -1) }
    assertRefused(.invalidOffset) { try file.clone(-3..<(-3), to: file, at: 0) }
  }

  /// What `readNow` and the routes of writes go by is moved by what grows the file, and by nothing
  /// else.
  func testWhatGrowsAFile() throws {
    let directory = try temporaryDirectory()
    let file = try directory.open(caching: .buffered)
    XCTAssertEqual(file.file.predictor.knownEnd, 0)
    try file.zero(100..<100)
    try file.preallocate(200..<200)
    XCTAssertEqual(try file.copy(0..<10, to: file, at: 1 << 30), 0)
    try file.clone(0..<0, to: file, at: 1 << 30)
    XCTAssertEqual(file.file.predictor.knownEnd, 0, "nothing was changed")
    try file.preallocate(0..<4096)
    XCTAssertEqual(file.file.predictor.knownEnd, 4096)
    XCTAssertEqual(try file.copy(0..<4096, to: file, at: 8192), 4096)
    XCTAssertEqual(file.file.predictor.knownEnd, 12288)
    try file.punchHole(12288..<16384)
    XCTAssertEqual(file.file.predictor.knownEnd, 12288, "it keeps the size")
    XCTAssertEqual(try file.size(), 12288)
  }

  /// What was copied before is told also where the library refuses the rest by itself, as where the
  /// file was closed meanwhile.
  func testCopyTellsWhatWasCopied() throws {
    let directory = try temporaryDirectory()
    for caching in [AIOFile.Caching.direct, .buffered] {
      let file = try directory.open("a", caching: caching)
      let error = file.copyFailure(
        .fileClosed(file.subject(.copyRange, offset: 0, length: 8192)), file, transferred: 4096)
      XCTAssertEqual(error.code, .fileClosed)
      XCTAssertEqual(error.transferred, 4096)
      XCTAssertEqual([error.offset, error.length.map(Int64.init)], [0, 8192])
    }
  }

  // MARK: Locks

  func testLocksKeepOthersOut() async throws {
    let directory = try temporaryDirectory()
    let first = try directory.open("a", caching: .buffered)
    let second = try directory.open("a", caching: .buffered)
    func tries(_ file: AIOFile, _ mode: AIOFile.LockMode, _ range: Range<Int64>?) throws -> Bool {
      try file.tryLock(mode, range)
    }
    XCTAssertTrue(try tries(first, .shared, 0..<100))
    XCTAssertTrue(try tries(second, .shared, 50..<150))
    XCTAssertFalse(try tries(second, .exclusive, 90..<110))
    XCTAssertFalse(try tries(second, .exclusive, nil))
    XCTAssertTrue(try tries(second, .exclusive, 100..<200))
    XCTAssertTrue(try tries(first, .exclusive, 0..<50), "its own lock does not keep it out")
    XCTAssertFalse(try tries(second, .shared, 0..<1))
    let unlock: () throws -> Void = { try first.unlock(0..<100) }
    try unlock()
    XCTAssertTrue(try tries(second, .exclusive, nil))
    // The end of the file, wherever it gets to.
    XCTAssertFalse(try tries(first, .shared, Int64.max - 1..<Int64.max))

    // Waiting, which is cancelled …
    let waiting = Task { try await first.lock(.exclusive, 0..<10) }
    let answer = try await second.tryLock(.exclusive, 0..<10)
    XCTAssertTrue(answer)
    waiting.cancel()
    do {
      try await waiting.value
      XCTFail("it has what another has")
    } catch {
      XCTAssertEqual((error as? AIOError)?.code, .cancelled)
    }
    // … and which ends.
    let other = Task { try await first.lock(.exclusive, 0..<10) }
    try await second.unlock()
    try await other.value
    XCTAssertFalse(try tries(second, .shared, 0..<10))
    // A lock ends with its file.
    await first.close()
    XCTAssertTrue(try tries(second, .exclusive, nil))

    let readOnly = try directory.open("a", .readOnly, caching: .buffered)
    assertRefused(.wrongAccessMode) { try tries(readOnly, .exclusive, nil) }
    assertRefused(.fileClosed) { try tries(first, .shared, nil) }
    assertRefused(.invalidOffset) { try tries(readOnly, .shared, -1..<1) }
  }
}
