// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What would make the kernel sleep goes elsewhere, and the loop goes on.
final class NeverSleepsTests: XCTestCase {
  // MARK: What goes where

  /// Does something, and returns how many attempts the loop and the sleeping side made for it.
  private func attempts(
    _ context: AIOContext, _ request: (@escaping AIOCompletion) throws -> Void
  ) throws -> (outcome: Outcome, loop: Int, refused: Int, asleep: Int) {
    func now() throws -> AIOStatistics {
      // What a turn did is published at its end: this one comes after it.
      context.queue.sync { _ = context.process() }
      return context.statistics
    }
    let before = try now()
    let outcome = try context.outcome(request)
    let after = try now()
    return (
      outcome, after.submittedRequests - before.submittedRequests,
      after.nowaitRefusals - before.nowaitRefusals,
      after.offloadSubmits - before.offloadSubmits
    )
  }

  func testDirectFiles() throws {
    try requireKernelAIO("every request is offloaded")
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try directory.open()
    let buffer = AIOBuffer(count: 4096)
    func write(at offset: Int64) throws -> (outcome: Outcome, loop: Int, refused: Int, asleep: Int)
    {
      try attempts(context) { try context.write(file, at: offset, from: buffer, completion: $0) }
    }
    // An append is known to sleep; what has been written is not.
    for offset in [Int64(0), 4096, 8192] {
      let append = try write(at: offset)
      XCTAssertEqual(append.outcome, .success(4096))
      XCTAssertTrue(append.loop == 0 && append.asleep == 1, "append: \(append)")
      let overwrite = try write(at: offset)
      XCTAssertEqual(overwrite.outcome, .success(4096))
      XCTAssertTrue(overwrite.loop == 1 && overwrite.asleep == 0, "overwrite: \(overwrite)")
    }
    // A hole is not known: the kernel refuses, and the sleeping side does it.
    XCTAssertEqual(ftruncate(file.fileDescriptor.rawValue, 1 << 20), 0)
    try file.preallocate(1 << 20..<(1 << 20) + 4096)
    let hole = try write(at: 512 << 10)
    XCTAssertEqual(hole.outcome, .success(4096))
    XCTAssertEqual(hole.asleep, 1, "hole: \(hole)")
    XCTAssertEqual(try file.size(), (1 << 20) + 4096)
    let read = try attempts(context) {
      try context.read(file, at: 512 << 10, into: buffer, completion: $0)
    }
    XCTAssertEqual(read.outcome, .success(4096))
    XCTAssertTrue(read.loop == 1 && read.asleep == 0, "read: \(read)")
    let sync = try attempts(context) { try context.fdatasync(file, completion: $0) }
    XCTAssertTrue(sync.loop == 1 && sync.asleep == 0, "fdatasync: \(sync)")
    try context.closeAndWait()
  }

  func testBufferedFiles() throws {
    try requireKernelAIO("every request is offloaded")
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 1 << 20) { UInt8(truncatingIfNeeded: $0 >> 12) }
    let context = try AIOContext(queueDepth: 8)
    let file = try AIOFile.open(path, .readWrite, caching: .buffered)
    let descriptor = file.fileDescriptor.rawValue
    let buffer = AIOBuffer(count: 65536)
    func read(at offset: Int64, _ count: Int) throws -> (
      outcome: Outcome, loop: Int, refused: Int, asleep: Int
    ) {
      try attempts(context) {
        try context.read(file, at: offset, into: buffer[..<count], completion: $0)
      }
    }
    // What the page cache has, it gives at once.
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    XCTAssertEqual(pread(descriptor, &bytes, bytes.count, 0), bytes.count)
    let warm = try read(at: 8192, 65536)
    XCTAssertEqual(warm.outcome, .success(65536))
    XCTAssertTrue(warm.loop == 1 && warm.asleep == 0, "warm: \(warm)")

    // What it does not have, a thread waits for; no read ahead, so that only that is read.
    XCTAssertEqual(posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM), 0)
    try evict(file)
    let cold = try read(at: 4096, 4096)
    XCTAssertEqual(cold.outcome, .success(4096))
    XCTAssertEqual(buffer.array.prefix(4096), [UInt8](repeating: 1, count: 4096)[...])
    XCTAssertTrue(cold.refused == 1 && cold.asleep == 1, "cold: \(cold)")
    // Half of it warm: as much as the cache has is no answer.
    let half = try read(at: 4096, 16384)
    XCTAssertEqual(half.outcome, .success(16384))
    XCTAssertEqual(
      buffer.array.prefix(16384), (4096..<20480).map { UInt8(truncatingIfNeeded: $0 >> 12) }[...])
    // What was not there is asked for once more, and then waited for by a thread, unless the kernel
    // has read it ahead by then.
    XCTAssertTrue(
      half.refused == 1 && half.asleep == 1 || half.loop == 2, "half warm: \(half)")
    // The end of the file is one.
    XCTAssertEqual(try read(at: (1 << 20) - 100, 4096).outcome, .success(100))
    XCTAssertEqual(try read(at: 1 << 20, 4096).outcome, .success(0))

    // Writes: by the loop where the filesystem can, else by a thread, which is learned.
    for round in 0..<3 {
      let write = try attempts(context) {
        try context.write(file, at: 100, from: buffer[..<1000], completion: $0)
      }
      XCTAssertEqual(write.outcome, .success(1000))
      if round > 0 && write.asleep > 0 {
        XCTAssertEqual(write.refused, 0, "not learned: \(write)")
      }
    }
    try context.closeAndWait()
  }

  /// A buffered file that was cold is noticed when it is in the page cache again.
  func testAColdFileThatBecameCachedIsNoticed() throws {
    try requireKernelAIO("every request is offloaded")
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 1 << 20)
    let context = try AIOContext(queueDepth: 8)
    let file = try AIOFile.open(path, .readOnly, caching: .buffered)
    let descriptor = file.fileDescriptor.rawValue
    let buffer = AIOBuffer(count: 4096)
    func read(_ block: Int) throws -> Int {
      let read = try attempts(context) {
        try context.read(file, at: Int64(block % 256) * 4096, into: buffer, completion: $0)
      }
      XCTAssertEqual(read.outcome, .success(4096))
      return read.asleep
    }
    XCTAssertEqual(posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM), 0)
    for cold in 0..<4 {
      try evict(file)
      // Each number of refusals in a row, so that none of them is unlucky.
      for block in 0..<10 + cold { _ = try read(block * 7) }
      var bytes = [UInt8](repeating: 0, count: 1 << 20)
      XCTAssertEqual(pread(descriptor, &bytes, bytes.count, 0), bytes.count)
      for block in 0..<17 { _ = try read(block) }
      XCTAssertEqual(try (0..<20).reduce(0) { try $0 + read($1) }, 0, "after \(10 + cold) refusals")
    }
    try context.closeAndWait()
  }

  func testAppendingFiles() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try directory.open(options: [.create, .append])
    for byte in 1...3 as ClosedRange<UInt8> {
      // Wherever it says: at the end.
      let buffer = AIOBuffer([UInt8](repeating: byte, count: 4096))
      XCTAssertEqual(try context.writeAndWait(file, at: 0, from: buffer), .success(4096))
    }
    XCTAssertEqual(
      try directory.contents(),
      (1...3 as ClosedRange<UInt8>).flatMap { [UInt8](repeating: $0, count: 4096) })
    XCTAssertEqual(context.statistics.submitCalls, 0)
    try context.closeAndWait()
  }

  /// Appends that wait for a thread are made together, each with its own result, also where the
  /// file may not grow that far.
  func testAppendsAreMadeTogether() throws {
    let directory = try temporaryDirectory()
    let log = try SystemCallLog(
      tracing: "pwritev", ChildProcess.built("dispatch-aio-probe"),
      ["appends", directory.path.string], in: directory)
    XCTAssertEqual(log.run.status, 0, log.run.errors)
    // Within the limit all; one in part; none behind it.
    XCTAssertEqual(
      log.run.output,
      "whole 50\nfileSizeLimit after 1024\nfileSizeLimit after 0: 13\nbytes as written\n",
      log.run.errors)
    XCTAssertLessThan(log.calls(with: "pwritev(").count, 50)
  }

  func testPlainSubmission() throws {
    try requireKernelAIO("every request is offloaded")
    let directory = try temporaryDirectory()
    var options = AIOContext.Options()
    options.submission = .inline
    let context = try AIOContext(queueDepth: 8, options: options)
    let file = try directory.open()
    XCTAssertEqual(
      try context.writeAndWait(file, at: 0, from: AIOBuffer(count: 4096)), .success(4096))
    XCTAssertEqual(context.statistics.offloadSubmits, 0)
    try context.closeAndWait()
  }

  // MARK: One slow file

  /// A file whose requests sleep for seconds, and others that are served meanwhile.
  func testASlowFileDoesNotHoldUpOthers() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile("fast", size: 1 << 20)
    let disk = try SmallDisk(in: directory, megabytes: 16)
    let slow = try AIOFile.open(
      disk.path.appending("slow"), .readWrite, options: .create, caching: .buffered)
    var bytes = [UInt8](repeating: 1, count: 1 << 20)
    XCTAssertEqual(pwrite(slow.fileDescriptor.rawValue, &bytes, bytes.count, 0), bytes.count)
    XCTAssertEqual(posix_fadvise(slow.fileDescriptor.rawValue, 0, 0, POSIX_FADV_RANDOM), 0)
    try evict(slow)
    let throttle = try Throttle(disk, readsPerSecond: 4)

    let context = try AIOContext(queueDepth: 16, pendingLimit: 64)
    let slowReads = DispatchGroup()
    let slowDone = Locked(0)
    for block in 0..<32 {
      slowReads.enter()
      try context.read(slow, at: Int64(block * 4096), into: AIOBuffer(count: 4096)) {
        XCTAssertEqual($0, .success(4096))
        slowDone.withLock { $0 += 1 }
        slowReads.leave()
      }
    }
    // Buffered reads of the other file, cold and warm, and direct reads and appends.
    let cold = try directory.open("fast", .readOnly, caching: .buffered)
    let direct = try directory.open("fast", .readWrite)
    try evict(cold)
    for round in 0..<50 {
      let offset = Int64(round * 4096)
      let buffer = AIOBuffer(count: 4096)
      XCTAssertEqual(try context.readAndWait(cold, at: offset, into: buffer), .success(4096))
      XCTAssertEqual(try context.readAndWait(direct, at: offset, into: buffer), .success(4096))
      XCTAssertEqual(
        try context.writeAndWait(direct, at: (1 << 20) + offset, from: buffer), .success(4096))
    }
    XCTAssertLessThan(slowDone.withLock { $0 }, 32, "the slow file was not slow")
    XCTAssertEqual(context.statistics.inKernel, 0, "what waits for a thread takes no room")
    throttle.lift()
    XCTAssertEqual(slowReads.wait(timeout: .now() + 60), .success)
    try context.closeAndWait()
    let closed = Promise<Void>()
    slow.close { closed.fulfil(()) }
    try closed.wait()
  }

  // MARK: A turn's share

  /// Ten thousand completions at once do not keep a timer waiting.
  func testATimerAmongTenThousandCompletions() throws {
    guard let directory = try? TemporaryDirectory(in: "/dev/shm") else {
      throw XCTSkip("no tmpfs at /dev/shm, where requests complete at once")
    }
    _ = try directory.makeFile(size: 4096)
    let file = try directory.open("file", .readOnly, caching: .buffered)
    let queue = DispatchQueue(label: "test.loop")
    let context = try AIOContext(queueDepth: 1024, queue: queue, pendingLimit: 10_000)
    let buffer = AIOBuffer(count: 512)
    let done = DispatchGroup()
    let log = Locked<(completed: Int, ticksSeen: [Int])>((0, []))
    try queue.sync {
      for _ in 0..<10_000 {
        done.enter()
        try context.read(file, at: 0, into: buffer) { _ in
          log.withLock { $0.completed += 1 }
          done.leave()
        }
      }
      // Blocks that come up meanwhile, as a timer's do; each brings the next.
      @Sendable func tick() {
        let more = log.withLock { log in
          log.ticksSeen.append(log.completed)
          return log.completed < 10_000
        }
        if more { queue.async { tick() } }
      }
      queue.async { tick() }
    }
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    queue.sync {}
    let ticks = log.withLock { $0.ticksSeen }
    for (earlier, later) in zip(ticks, ticks.dropFirst()) {
      XCTAssertLessThanOrEqual(
        later - earlier, 256, "completions between two other blocks")
    }
    XCTAssertGreaterThan(ticks.count, 30)
    try context.closeAndWait()
  }
}
