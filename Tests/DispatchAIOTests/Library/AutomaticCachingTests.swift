// SPDX-License-Identifier: Apache-2.0

import CKernel
import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

private let zeros = [UInt8](repeating: 0, count: 600_000)

private func assertBytes(
  _ buffer: AIOBuffer, _ offset: Int, _ count: Int, line: UInt = #line
) {
  let isEqual = buffer.withUnsafeBytes { bytes in
    blockContents.withUnsafeBytes {
      memcmp(bytes.baseAddress!, $0.baseAddress! + offset, count) == 0
    }
  }
  XCTAssertTrue(isEqual, "\(count) bytes at \(offset)", line: line)
}

/// Files opened `.automatic`, on a real disk: where their reads go, and that they are right.
final class AutomaticCachingTests: XCTestCase {
  private func makeFile(_ directory: FilePath, size: Int) throws -> FilePath {
    let path = directory.appending("file")
    let file = try FileDescriptor.open(
      path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
    try file.closeAfter { _ = try file.writeAll(blockContents[..<size]) }
    return path
  }

  /// A file that is not in the page cache, whose second descriptor is open.
  private func coldFile(
    _ directory: TemporaryDirectory, _ context: AIOContext, size: Int,
    _ mode: FileDescriptor.AccessMode = .readWrite
  ) throws -> AIOFile {
    try coldFile(directory.path, context, size: size, mode)
  }

  private func coldFile(
    _ directory: FilePath, _ context: AIOContext, size: Int,
    _ mode: FileDescriptor.AccessMode = .readWrite
  ) throws -> AIOFile {
    let path = try makeFile(directory, size: size)
    let file = try AIOFile.open(path, mode, caching: .automatic)
    XCTAssertEqual(file.caching, .automatic)
    XCTAssertNil(file.file.directReads?.descriptor, "opened before the first refusal")
    // So that the page cache gets what is read, and no more.
    XCTAssertEqual(posix_fadvise(file.fileDescriptor.rawValue, 0, 0, POSIX_FADV_RANDOM), 0)
    // A read that begins to read the page may find it read a moment later.
    XCTAssertTrue(
      try eventually {
        try evict(file)
        let work = try work(context) {
          _ = try context.readAndWait(file, at: 0, into: AIOBuffer(count: 512))
        }
        return work.refused > 0 || !context.usesKernelAIO
      }, "no read is refused")
    XCTAssertEqual(
      file.file.directReads?.descriptor != nil, context.usesKernelAIO,
      "not opened at the first refusal, or opened without one")
    try evict(file)
    return file
  }

  /// What a part of a test did.
  private struct Work: CustomStringConvertible {
    var direct = 0
    var offloaded = 0
    var refused = 0
    var description: String { "\(direct) direct, \(offloaded) offloaded, \(refused) refused" }
  }

  private func work(_ context: AIOContext, _ body: () throws -> Void) throws -> Work {
    func now() -> AIOStatistics {
      // What a turn did is published at its end: this one comes after it.
      context.queue.sync { _ = context.process() }
      return context.statistics
    }
    let before = now()
    try body()
    let after = now()
    return Work(
      direct: after.directReads - before.directReads,
      offloaded: after.offloadSubmits - before.offloadSubmits,
      refused: after.nowaitRefusals - before.nowaitRefusals)
  }

  /// Reads a block of 4 KiB, and checks its bytes.
  private func readBlock(_ block: Int, _ file: AIOFile, _ context: AIOContext) throws {
    let buffer = AIOBuffer(count: 4096)
    XCTAssertEqual(
      try context.readAndWait(file, at: Int64(block) * 4096, into: buffer), .success(4096))
    assertBytes(buffer, block * 4096, 4096)
  }

  // MARK: Where reads go

  func testColdReadsTakeNoThread() throws {
    try requireKernelAIO("every read takes a thread")
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 32)
    let file = try coldFile(directory, context, size: 4 << 20, .readOnly)
    let work = try work(context) {
      let done = DispatchGroup()
      for number in 0..<100 {
        done.enter()
        let (offset, buffer) = (number * 40_000, AIOBuffer(count: number % 2 == 0 ? 4096 : 3000))
        // Aligned and not.
        try context.read(file, at: Int64(number % 3 == 0 ? offset & ~4095 : offset), into: buffer) {
          XCTAssertEqual($0, .success(buffer.count))
          assertBytes(buffer, number % 3 == 0 ? offset & ~4095 : offset, buffer.count)
          done.leave()
        }
      }
      XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    }
    XCTAssertEqual(work.offloaded, 0, "\(work)")
    XCTAssertGreaterThan(work.direct, 80, "\(work)")
    try context.closeAndWait()
  }

  /// Once it is cold, the page cache is seldom asked; once it is cached, always.
  func testAColdFileThatBecameCachedIsNoticed() throws {
    try requireKernelAIO("every read takes a thread")
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try coldFile(directory, context, size: 4 << 20, .readOnly)
    func read(_ block: Int) throws { try readBlock(block, file, context) }
    for block in 0..<8 { try read(block) }
    let cold = try work(context) { for block in 100..<260 { try read(block) } }
    XCTAssertLessThanOrEqual(cold.refused, 20, "\(cold)")
    XCTAssertGreaterThanOrEqual(cold.direct, 150, "\(cold)")
    XCTAssertEqual(cold.offloaded, 0, "\(cold)")

    var bytes = [UInt8](repeating: 0, count: 4 << 20)
    XCTAssertEqual(pread(file.fileDescriptor.rawValue, &bytes, bytes.count, 0), bytes.count)
    for block in 300..<365 { try read(block) }
    let cached = try work(context) { for block in 400..<600 { try read(block) } }
    XCTAssertTrue(cached.direct == 0 && cached.offloaded == 0, "\(cached)")
    try context.closeAndWait()
  }

  /// Large reads: from the page cache in pieces, else past it in one, where they are aligned.
  func testLargeReads() throws {
    try requireKernelAIO("no read is direct")
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let size = (4 << 20) + 1000
    let file = try coldFile(directory, context, size: size, .readOnly)
    let whole = AIOBuffer(count: size + 300_000)
    let buffer = whole[..<size]
    let cold = try work(context) {
      XCTAssertEqual(
        try context.readAndWait(file, at: 0, into: buffer[..<(2 << 20)]), .success(2 << 20))
    }
    assertBytes(buffer, 0, 2 << 20)
    XCTAssertTrue(cold.direct == 1 && cold.offloaded == 0, "\(cold)")
    // Not the length alone: its last block comes through a bounce buffer.
    try evict(file)
    let unaligned = try work(context) {
      XCTAssertEqual(
        try context.readAndWait(file, at: 8192, into: buffer[..<(size - 8192)]),
        .success(size - 8192))
    }
    assertBytes(buffer, 8192, size - 8192)
    XCTAssertTrue(unaligned.direct == 2 && unaligned.offloaded == 0, "\(unaligned)")
    // Nothing of it is aligned.
    try evict(file)
    let all = try work(context) {
      XCTAssertEqual(
        try context.readAndWait(file, at: 100_001, into: buffer[7..<(1 << 20)]),
        .success((1 << 20) - 7))
    }
    assertBytes(buffer[7..<buffer.count], 100_001, (1 << 20) - 7)
    XCTAssertTrue((8...10).contains(all.direct) && all.offloaded == 0, "\(all)")

    // What is read again is brought in by a thread, large or not.
    let again = try work(context) {
      XCTAssertEqual(try context.readAndWait(file, at: 0, into: buffer), .success(size))
    }
    XCTAssertTrue(again.direct == 0 && again.offloaded == 1, "\(again)")
    // Across the end of the file, so that fewer pages are cached than were asked for.
    buffer.fill(0)
    let cached = try work(context) {
      XCTAssertEqual(try context.readAndWait(file, at: 0, into: whole), .success(size))
    }
    assertBytes(buffer, 0, size)
    XCTAssertTrue(cached.direct == 0 && cached.offloaded == 0, "\(cached)")
    try context.closeAndWait()
  }

  /// A range that is refused again and again is in the page cache in the end, also while everything
  /// else that is read is cold.
  func testARangeThatIsReadAgainIsBroughtIn() throws {
    try requireKernelAIO("no read is direct")
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try coldFile(directory, context, size: 16 << 20, .readOnly)
    func read(_ block: Int) throws { try readBlock(block, file, context) }
    for block in 0..<8 { try read(block) }
    var counted: [Work] = []
    for round in 0..<20 {
      counted.append(try work(context) { try read(4000) })
      // The page cache must not be tried because of the hot one: others are cold meanwhile.
      for cold in 0..<6 { try read(100 + round * 6 + cold) }
    }
    // The first time it is direct; the second time a thread brings it in. Later ones may be direct
    // where another block has taken its place among those that are remembered.
    XCTAssertTrue(counted[0].direct == 1 && counted[0].offloaded == 0, "\(counted)")
    XCTAssertTrue(counted[1].direct == 0 && counted[1].offloaded == 1, "\(counted)")
    let later = counted.dropFirst(2)
    XCTAssertEqual(later.reduce(0) { $0 + $1.offloaded + $1.refused }, 0, "\(counted)")
    XCTAssertLessThanOrEqual(later.reduce(0) { $0 + $1.direct }, 4, "\(counted)")
    try context.closeAndWait()
  }

  /// A working set that the page cache has room for is there in the end, though it is larger than
  /// what is remembered.
  func testAWorkingSetIsBroughtIn() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try coldFile(directory, context, size: 4 << 20, .readOnly)
    var generator = SeededGenerator(seed: Seeds.one)
    var direct = 1024
    for _ in 0..<60 where direct > 0 {
      direct = try work(context) {
        for _ in 0..<1024 {
          let block = Int.random(in: 0..<1024, using: &generator)
          try readBlock(block, file, context)
        }
      }.direct
    }
    XCTAssertEqual(direct, 0, "still read from the disk; \(Seeds.replay(Seeds.one))")
    try context.closeAndWait()
  }

  // MARK: Right answers

  /// Any offset, length and alignment of the memory, in one piece and several, cold and cached,
  /// within the file and across its end; and what was written before, by any way, is read.
  func testEveryRangeIsRight() throws {
    let directory = try temporaryDirectory()
    try checkRanges(in: directory.path, rounds: 600)
    withExtendedLifetime(directory) {}
  }

  /// Other file systems, and blocks of 4096 bytes.
  func testEveryRangeIsRightElsewhere() throws {
    for (type, sectorSize) in [("ext4", 4096), ("xfs", 512), ("btrfs", 4096)] {
      let directory = try temporaryDirectory()
      let disk = try SmallDisk(in: directory, megabytes: 320, type: type, sectorSize: sectorSize)
      try checkRanges(in: disk.path, rounds: 200)
    }
  }

  private func checkRanges(in directory: FilePath, rounds: Int) throws {
    let context = try AIOContext(queueDepth: 8)
    var generator = SeededGenerator(seed: Seeds.one)
    let size = 777_777
    let file = try coldFile(directory, context, size: size)
    let descriptor = file.fileDescriptor.rawValue
    var expected = Array(blockContents[..<size])
    let mapping = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)!
    defer { munmap(mapping, size) }
    let work = try work(context) {
      for round in 0..<rounds {
        switch Int.random(in: 0..<12, using: &generator) {
        case 0:
          msync(mapping, size, MS_SYNC)
          fsync(descriptor)
          posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED)
        case 1...2:
          try change(&expected, file, context, mapping, round, &generator)
        default:
          try check(expected, file, context, round, &generator)
        }
      }
    }
    if context.usesKernelAIO {
      XCTAssertGreaterThan(work.direct, rounds / 10, "\(work); \(Seeds.replay(Seeds.one))")
    }
    file.close()
    try context.closeAndWait()
  }

  private func change(
    _ expected: inout [UInt8], _ file: AIOFile, _ context: AIOContext,
    _ mapping: UnsafeMutableRawPointer, _ round: Int, _ generator: inout SeededGenerator
  ) throws {
    let count = Int.random(in: 1...9000, using: &generator)
    let offset = Int.random(in: 0..<expected.count - count, using: &generator)
    let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: round), count: count)
    expected.replaceSubrange(offset..<offset + count, with: bytes)
    switch Int.random(in: 0..<3, using: &generator) {
    case 0:
      XCTAssertEqual(
        try context.writeAndWait(file, at: Int64(offset), from: AIOBuffer(bytes)), .success(count))
    case 1:
      mapping.advanced(by: offset).copyMemory(from: bytes, byteCount: count)
    default:
      let other = open(file.path!.string, O_WRONLY)
      defer { close(other) }
      XCTAssertEqual(pwrite(other, bytes, count, off_t(offset)), count)
    }
  }

  private func check(
    _ expected: [UInt8], _ file: AIOFile, _ context: AIOContext, _ round: Int,
    _ generator: inout SeededGenerator
  ) throws {
    let unit = [1, 1, 512, 4096].randomElement(using: &generator)!
    let longest = [100, 5000, 200_000, 600_000].randomElement(using: &generator)!
    let offset =
      Int.random(in: 0...expected.count + 5000, using: &generator) / unit * unit
    let length = Int.random(in: 0...longest, using: &generator) / unit * unit
    let shift = Int.random(in: 0...600, using: &generator) / unit * unit
    let whole = AIOBuffer(count: length + shift)
    let buffer = whole[shift..<length + shift]
    let available = min(max(0, expected.count - offset), length)
    let outcome = try context.outcome { completion in
      guard Bool.random(using: &generator) else {
        try context.read(file, at: Int64(offset), into: buffer, completion: completion)
        return
      }
      let cuts =
        [0, length]
        + (0..<3).map { _ in Int.random(in: 0...length, using: &generator) / unit * unit }
      let pieces = zip(cuts.sorted(), cuts.sorted().dropFirst()).map { buffer[$0..<$1] }
      try context.read(file, at: Int64(offset), into: pieces, completion: completion)
    }
    let what = "round \(round), \(length) at \(offset); \(Seeds.replay(Seeds.one))"
    XCTAssertEqual(outcome, .success(available), what)
    let bytes = buffer.array
    XCTAssertTrue(
      available == 0 || bytes[..<available] == expected[offset..<offset + available], what)
    XCTAssertTrue(bytes[available...] == zeros[..<(length - available)], what)
  }

  /// The end of a file that has holes, and that grows.
  func testHolesAndAGrowingFile() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try coldFile(directory, context, size: 5000)
    let buffer = AIOBuffer(count: 300_000)
    func read(_ expected: Int, line: UInt = #line) throws {
      buffer.fill(1)
      XCTAssertEqual(
        try context.readAndWait(file, at: 0, into: buffer), .success(expected), line: line)
      try evict(file)
    }
    try read(5000)
    // A hole that reaches the end, within a block and at its boundary.
    for size in [8192, 100_001, 200_704] as [Int64] {
      try file.truncate(to: size)
      try read(Int(size))
      XCTAssertFalse(buffer.array[5000..<Int(size)].contains { $0 != 0 })
    }
    for length in [1, 511, 3583, 4096] {
      let size = Int(try file.size())
      XCTAssertEqual(
        try context.writeAndWait(
          file, at: Int64(size), from: AIOBuffer([UInt8](repeating: 9, count: length))),
        .success(length))
      try read(size + length)
      XCTAssertEqual(buffer.array[size..<size + length], [UInt8](repeating: 9, count: length)[...])
      XCTAssertEqual(buffer.array[size + length], 1)
    }
    try file.truncate(to: 0)
    try read(0)
    try context.closeAndWait()
  }

  /// The other ways to read: tasks, chunks, another queue, memory of the caller's own.
  func testOtherVerbs() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let size = 3_000_001
    let file = try coldFile(directory, context, size: size, .readOnly)
    var offset = 0
    for try await chunk in context.chunks(of: file, size: 100_000) {
      assertBytes(chunk, offset, chunk.count)
      offset += chunk.count
    }
    XCTAssertEqual(offset, size)
    try evict(file)
    var block = AIOUniqueBuffer(count: 777)
    let count = try await context.read(file, at: 100, into: &block)
    XCTAssertEqual(count, 777)
    let bytes = block.withUnsafeBytes { [UInt8]($0) }
    XCTAssertEqual(bytes, Array(blockContents[100..<877]))

    let (queue, promise) = (DispatchQueue(label: "test.elsewhere"), Promise<Outcome>())
    let buffer = AIOBuffer(count: 5000)
    try context.read(file, at: 999_999, into: buffer, queue: queue) {
      dispatchPrecondition(condition: .onQueue(queue))
      promise.fulfil($0)
    }
    XCTAssertEqual(try promise.wait(), .success(5000))
    assertBytes(buffer, 999_999, 5000)

    try evict(file)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 5000, alignment: 1)
    memory.initializeMemory(as: UInt8.self, repeating: 0)
    defer { memory.deallocate() }
    XCTAssertEqual(
      try context.outcome { try context.read(file, at: 12_345, into: memory, completion: $0) },
      .success(5000))
    XCTAssertEqual([UInt8](memory), Array(blockContents[12_345..<17_345]))
    try context.closeAndWait()
  }

  /// One file, read by several contexts at once from its first refusal on.
  func testSeveralContexts() throws {
    let directory = try temporaryDirectory()
    let path = try makeFile(directory.path, size: 8 << 20)
    let file = try AIOFile.open(path, .readOnly, caching: .automatic)
    XCTAssertEqual(posix_fadvise(file.fileDescriptor.rawValue, 0, 0, POSIX_FADV_RANDOM), 0)
    try evict(file)
    let contexts = try (0..<3).map { _ in try AIOContext(queueDepth: 16, pendingLimit: 400) }
    let done = DispatchGroup()
    onThreads(3) { number in
      for round in 0..<300 {
        // Each block by all, and some by one.
        let offset = round * 20_000 + (round % 3 == 0 ? 0 : number * 4096)
        let buffer = AIOBuffer(count: 4096 - round % 5)
        done.enter()
        do {
          try contexts[number].read(file, at: Int64(offset), into: buffer) {
            XCTAssertEqual($0, .success(buffer.count))
            assertBytes(buffer, offset, buffer.count)
            done.leave()
          }
        } catch {
          XCTFail("\(error)")
          done.leave()
        }
      }
    }
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    for context in contexts { try context.closeAndWait() }
    guard contexts[0].usesKernelAIO else { return }
    XCTAssertNotNil(file.file.directReads?.descriptor)
    XCTAssertGreaterThan(contexts.reduce(0) { $0 + $1.statistics.directReads }, 0)
  }

  /// Requests that wait for room can be cancelled, those with the kernel complete; each once.
  func testCancellation() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 2, pendingLimit: 400)
    let file = try coldFile(directory, context, size: 4 << 20, .readOnly)
    let outcomes = Locked<[Outcome]>([])
    let done = DispatchGroup()
    let requests = try (0..<400).map { number in
      done.enter()
      return try context.read(file, at: Int64(number * 5000), into: AIOBuffer(count: 4000)) {
        outcome in
        outcomes.withLock { $0.append(outcome) }
        done.leave()
      }
    }
    let cancelled = requests.count { context.cancel($0) == .cancelled }
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    XCTAssertEqual(
      outcomes.withLock { $0.count { $0.code == .cancelled } }, cancelled)
    XCTAssertEqual(
      outcomes.withLock { $0.count { $0 == .success(4000) } }, 400 - cancelled)
    try context.closeAndWait()
  }

  // MARK: Where it cannot be had, and the descriptors

  func testFileSystemsWithoutDirectReads() throws {
    let memory = try TemporaryDirectory(in: "/dev/shm")
    let context = try AIOContext(queueDepth: 8)
    let path = try makeFile(memory.path, size: 1 << 20)
    let file = try AIOFile.open(path, .readOnly, caching: .automatic)
    XCTAssertEqual(file.caching, .automatic)
    XCTAssertNil(file.file.directReads)
    let buffer = AIOBuffer(count: 600_000)
    let work = try work(context) {
      XCTAssertEqual(try context.readAndWait(file, at: 77, into: buffer), .success(600_000))
    }
    assertBytes(buffer, 77, 600_000)
    XCTAssertEqual(work.direct, 0)
    let status = try AIOFile.open("/proc/self/status", .readOnly, caching: .automatic)
    guard case .success(1...) = try context.readAndWait(status, at: 0, into: buffer) else {
      return XCTFail("/proc/self/status")
    }
    try context.closeAndWait()
  }

  /// What the kernel takes for a direct descriptor and then does not read from: the file becomes a
  /// buffered one.
  func testAKernelThatRefusesDirectReads() throws {
    try requireKernelAIO("no read is direct")
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let path = try makeFile(directory.path, size: 1 << 20)
    let file = try AIOFile.open(path, .readOnly, caching: .automatic)
    XCTAssertEqual(posix_fadvise(file.fileDescriptor.rawValue, 0, 0, POSIX_FADV_RANDOM), 0)
    // The disk wants at least 512: EINVAL.
    let direct = try FileDescriptor.open(
      path, .readOnly, options: .init(rawValue: ckernel_o_direct))
    file.file.directReads?.opened(direct.rawValue, BlockAlignment(memory: 1, offset: 1))
    try evict(file)
    let buffer = AIOBuffer(count: 3000)
    for offset in [100, 300_000, 500_001] {
      XCTAssertEqual(
        try context.readAndWait(file, at: Int64(offset), into: buffer), .success(3000))
      assertBytes(buffer, offset, 3000)
    }
    XCTAssertEqual(context.statistics.directReads, 1)
    XCTAssertFalse(try XCTUnwrap(file.file.directReads).isUsable)
    try context.closeAndWait()
  }

  func testNoDescriptorIsLeaked() throws {
    try requireKernelAIO("there is no second descriptor")
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    for number in 0..<20 {
      let file = try coldFile(directory, context, size: 100_000, .readOnly)
      XCTAssertEqual(directory.openDescriptors(), 2)
      if number % 3 == 0 { file.file.directReads?.noteUnsupported() }
      // Closed, or dropped, with reads under way.
      for offset in [0, 5000, 50_000] {
        try context.read(file, at: Int64(offset), into: AIOBuffer(count: 4096)) { _ in }
      }
      if number % 2 == 0 { file.close() }
    }
    XCTAssertTrue(eventually { directory.openDescriptors() == 0 }, "descriptors are left open")
    try context.closeAndWait()
  }

  /// Without a descriptor left the file is a buffered one for a second, and then is not.
  func testWithoutDescriptorsItIsTriedAgain() throws {
    try requireKernelAIO("there is no second descriptor")
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let path = try makeFile(directory.path, size: 1 << 20)
    let file = try AIOFile.open(path, .readOnly, caching: .automatic)
    XCTAssertEqual(posix_fadvise(file.fileDescriptor.rawValue, 0, 0, POSIX_FADV_RANDOM), 0)
    let buffer = AIOBuffer(count: 4096)
    try evict(file)
    var limit = rlimit()
    getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    var none = limit
    // The next one is among the last, but Dispatch, which ends a process without any, has some.
    let next = dup(0)
    close(next)
    none.rlim_cur = rlim_t(next) + 8
    setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &none)
    let outcome = try context.readAndWait(file, at: 8192, into: buffer)
    setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    XCTAssertEqual(outcome, .success(4096))
    assertBytes(buffer, 8192, 4096)
    let direct = try XCTUnwrap(file.file.directReads)
    XCTAssertTrue(direct.descriptor == nil && direct.isUsable)
    XCTAssertTrue(
      try eventually {
        try evict(file)
        _ = try context.readAndWait(file, at: 65536, into: buffer)
        return direct.descriptor != nil
      }, "not opened after a second")
    try context.closeAndWait()
  }

  func testAdoptedDescriptors() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 4096)
    let plain = try AIOFile(
      adopting: FileDescriptor.open(path, .readOnly), isAutomatic: true)
    XCTAssertEqual(plain.caching, .automatic)
    let direct = try AIOFile(
      adopting: FileDescriptor.open(
        path, .readOnly, options: .init(rawValue: ckernel_o_direct)),
      isAutomatic: true)
    XCTAssertEqual(direct.caching, .direct)
    let writing = try AIOFile.open(path, .writeOnly, caching: .automatic)
    XCTAssertNil(writing.file.directReads)
  }
}
