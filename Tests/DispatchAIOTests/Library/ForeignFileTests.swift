// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// Files that are not like those of a disk: their reads and writes are short anywhere, their sizes
/// wrong, or kernel AIO cannot have them. All that was asked for is transferred all the same, at
/// its place: by system calls, where need be.
final class ForeignFileTests: XCTestCase {
  /// A file system of misbehaving files, a context, and what a file has at first.
  private struct Fixture {
    let directory: TemporaryDirectory
    let faults: FaultFileSystem
    let context: AIOContext
    static let size = 1 << 20

    init(_ test: XCTestCase) throws {
      directory = try test.temporaryDirectory()
      faults = try FaultFileSystem(in: directory)
      context = try AIOContext(queueDepth: 16)
    }

    func open(
      _ name: String, _ mode: FileDescriptor.AccessMode = .readWrite,
      _ caching: AIOFile.Caching = .buffered
    ) throws -> AIOFile {
      try AIOFile.open(faults[name], mode, caching: caching)
    }
  }

  /// Both ways to open what is there.
  private let cachings = [AIOFile.Caching.direct, .buffered]

  /// Files that give all their data, if asked long enough.
  private let readable = [
    "direct", "oddread-direct", "shortread-direct", "zerosize-direct", "zerosize-oddread-direct",
  ]

  private func assertEqual(
    _ bytes: [UInt8], _ expected: [UInt8], _ what: String, line: UInt = #line
  ) {
    guard bytes != expected else { return }
    let first = zip(bytes, expected).enumerated().first { $1.0 != $1.1 }?.offset
    XCTFail(
      """
      \(what): \(bytes.count) bytes, \(expected.count) expected\
      \(first.map { ", different from byte \($0) on" } ?? "")
      """, line: line)
  }

  // MARK: Reads

  func testReadsGiveAllTheData() throws {
    let fixture = try Fixture(self)
    let expected = FaultFileSystem.contents()
    for name in readable {
      for caching in cachings {
        let file = try fixture.open(name, .readOnly, caching)
        let what = "\(name), \(caching)"
        let whole = AIOBuffer(count: Fixture.size)
        let outcome = try fixture.context.readAndWait(file, at: 0, into: whole)
        XCTAssertEqual(outcome, .success(Fixture.size), what)
        assertEqual(whole.array, expected, what)
        // More than there is: the end of the file is where a read gives nothing.
        let more = AIOBuffer(count: 2 * Fixture.size)
        XCTAssertEqual(
          try fixture.context.readAndWait(file, at: 0, into: more), .success(Fixture.size), what)
        assertEqual(more[..<Fixture.size].array, expected, what)
        // From the middle.
        let part = AIOBuffer(count: 8192)
        XCTAssertEqual(
          try fixture.context.readAndWait(file, at: 12288, into: part), .success(8192), what)
        assertEqual(part.array, FaultFileSystem.contents(12288..<20480), what)
        XCTAssertEqual(
          try fixture.context.readAndWait(file, at: Int64(Fixture.size), into: part), .success(0),
          "\(what): at the end")
      }
    }
    try fixture.context.closeAndWait()
  }

  func testVectoredReadsGiveAllTheData() throws {
    let fixture = try Fixture(self)
    for name in readable {
      for (caching, counts) in [
        (AIOFile.Caching.direct, [4096, 8192, 65536, 4096]),
        (.buffered, [1, 4097, 65536, 999, 0, 7]),
      ] {
        let total = counts.reduce(0, +)
        let file = try fixture.open(name, .readOnly, caching)
        let buffers = counts.map { AIOBuffer(count: $0) }
        let outcome = try fixture.context.outcome {
          try fixture.context.read(file, at: 4096, into: buffers, completion: $0)
        }
        XCTAssertEqual(outcome, .success(total), "\(name), \(caching)")
        assertEqual(
          buffers.flatMap(\.array), FaultFileSystem.contents(4096..<4096 + total),
          "\(name), \(caching)")
      }
    }
    try fixture.context.closeAndWait()
  }

  func testAFailedReadIsReported() throws {
    let fixture = try Fixture(self)
    for name in ["eioread", "eioread-direct"] {
      for caching in cachings {
        let outcome = try fixture.context.readAndWait(
          try fixture.open(name, .readOnly, caching), at: 0, into: AIOBuffer(count: 4096))
        XCTAssertEqual(outcome.code, .device, "\(name), \(caching): \(outcome)")
      }
    }
    try fixture.context.closeAndWait()
  }

  // MARK: Files of the kernel's

  /// Files without `read_iter`, or whose size is said to be 0: `pread` gives the data.
  func testFilesOfTheKernel() throws {
    let context = try AIOContext(queueDepth: 4)
    for path in [
      "/proc/version", "/proc/self/cmdline", "/proc/cmdline", "/proc/sys/kernel/ostype",
      "/proc/filesystems", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/notes",
      "/sys/devices/system/cpu/online", "/sys/kernel/uevent_seqnum",
    ] {
      guard let descriptor = try? FileDescriptor.open(path, .readOnly) else { continue }
      defer { try? descriptor.close() }
      var expected = [UInt8](repeating: 0, count: 65536)
      let count = try expected.withUnsafeMutableBytes {
        try descriptor.read(fromAbsoluteOffset: 0, into: $0)
      }
      XCTAssertGreaterThan(count, 0, path)
      let buffer = AIOBuffer(count: 65536)
      let file = try AIOFile.open(FilePath(path), .readOnly, caching: .buffered)
      let outcome = try context.readAndWait(file, at: 0, into: buffer)
      XCTAssertEqual(outcome, .success(count), path)
      // What changes between two reads changes in its numbers, not in its beginning.
      XCTAssertEqual(buffer.array.prefix(6), expected.prefix(6), path)
    }
    try context.closeAndWait()
  }

  // MARK: Writes

  /// Files that take all the data, if asked long enough; each of another name. (A short write of a
  /// file that is opened with O_DIRECT, and on whose server the kernel need not go around the page
  /// cache, the kernel itself answers with EIO.)
  private let writable: [(name: String, caching: AIOFile.Caching)] = [
    ("empty-direct-1", .direct), ("empty-direct-2", .buffered), ("empty-oddwrite", .buffered),
    ("empty-shortwrite", .buffered), ("empty-oddwrite-direct-1", .direct),
    ("empty-oddwrite-direct-2", .buffered), ("empty-shortwrite-direct-1", .direct),
    ("empty-shortwrite-direct-2", .buffered),
  ]

  private func assertWrites(
    _ fixture: Fixture, _ expected: [UInt8], line: UInt = #line,
    _ write: (AIOFile, @escaping AIOCompletion) throws -> Void
  ) throws {
    for (name, caching) in writable {
      let file = try fixture.open(name, .readWrite, caching)
      let outcome = try fixture.context.outcome { try write(file, $0) }
      XCTAssertEqual(outcome, .success(expected.count - 4096), name, line: line)
      assertEqual(try fixture.faults.contents(of: name), expected, name, line: line)
    }
    try fixture.context.closeAndWait()
  }

  /// 4096 bytes of nothing, and then what no shift leaves as it is.
  private func bytes(_ count: Int) -> [UInt8] {
    [UInt8](repeating: 0, count: 4096) + (0..<count).map { UInt8(truncatingIfNeeded: $0 % 253 + 1) }
  }

  func testWritesTakeAllTheData() throws {
    let fixture = try Fixture(self)
    let expected = bytes(65536)
    let buffer = AIOBuffer([UInt8](expected[4096...]))
    try assertWrites(fixture, expected) {
      try fixture.context.write($0, at: 4096, from: buffer, completion: $1)
    }
  }

  func testVectoredWritesTakeAllTheData() throws {
    let fixture = try Fixture(self)
    let expected = bytes(65536)
    let buffer = AIOBuffer([UInt8](expected[4096...]))
    try assertWrites(fixture, expected) { file, completion in
      let isDirect = file.caching == .direct
      let cuts = isDirect ? [0, 4096, 20480, 24576, 65536] : [0, 1, 4098, 4098, 5000, 65536]
      let buffers = zip(cuts, cuts.dropFirst()).map { buffer[$0..<$1] }
      try fixture.context.write(file, at: 4096, from: buffers, completion: completion)
    }
  }

  /// Many at once, so that what resumes does so among others.
  func testManyWritesTakeAllTheData() throws {
    let fixture = try Fixture(self)
    for (name, caching) in writable {
      let file = try fixture.open(name, .readWrite, caching)
      let (done, wrong) = (DispatchGroup(), Locked<[Outcome]>([]))
      for index in 0..<32 {
        done.enter()
        let buffer = AIOBuffer(count: 16384)
        buffer.fill(UInt8(index + 1))
        try fixture.context.write(file, at: Int64(index * 16384), from: buffer) { outcome in
          if outcome != .success(16384) { wrong.withLock { $0.append(outcome) } }
          done.leave()
        }
      }
      XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
      let outcomes = wrong.withLock { $0 }
      XCTAssertEqual(outcomes.count, 0, "\(name): \(outcomes.first.map { "\($0)" } ?? "")")
      let expected = (0..<32).flatMap { [UInt8](repeating: UInt8($0 + 1), count: 16384) }
      assertEqual(try fixture.faults.contents(of: name), expected, name)
    }
    try fixture.context.closeAndWait()
  }

  /// A disk that becomes full on the way: an error, which says how far it got.
  func testAFullDisk() throws {
    let fixture = try Fixture(self)
    for name in ["enospc-direct", "enospc-oddwrite-direct"] {
      let file = try fixture.open(name)
      let outcome = try fixture.context.writeAndWait(
        file, at: Int64(Fixture.size - 8192), from: AIOBuffer(count: 16384))
      XCTAssertEqual(outcome.code, .noSpace, "\(name): \(outcome)")
      if case .failure(let error) = outcome { XCTAssertEqual(error.transferred, 8192, name) }
    }
    try fixture.context.closeAndWait()
  }

  func testAFailedSyncIsReportedOnce() throws {
    let fixture = try Fixture(self)
    let file = try fixture.open("eiofsync")
    let written = try fixture.context.writeAndWait(file, at: 0, from: AIOBuffer(count: 4096))
    XCTAssertEqual(written, .success(4096))
    for (round, expected) in [AIOError.Code.device, nil].enumerated() {
      let outcome = try fixture.context.outcome { try fixture.context.fsync(file, completion: $0) }
      XCTAssertEqual(outcome.code, expected, "sync \(round)")
      if case .failure(let error) = outcome {
        // The kernel calls the pages clean: a second success proves nothing.
        XCTAssertFalse(error.isRetryable, "\(error)")
      }
    }
    try fixture.context.closeAndWait()
  }

  /// What the kernel answers with EIO, `pwrite` too, is reported.
  func testAShortWriteThatTheKernelCallsAnError() throws {
    let fixture = try Fixture(self)
    let outcome = try fixture.context.writeAndWait(
      try fixture.open("oddwrite", .readWrite, .direct), at: 0, from: AIOBuffer(count: 16384))
    XCTAssertEqual(outcome.code, .device, "\(outcome)")
    try fixture.context.closeAndWait()
  }

  // MARK: Streams and copies

  func testChunksGiveAllTheData() async throws {
    let fixture = try Fixture(self)
    for name in readable {
      for caching in cachings {
        let file = try fixture.open(name, .readOnly, caching)
        var bytes: [UInt8] = []
        for try await chunk in fixture.context.chunks(of: file, size: 65536) {
          bytes += chunk.array
        }
        assertEqual(bytes, FaultFileSystem.contents(), "\(name), \(caching)")
      }
    }
    await fixture.context.close()
  }

  func testChunksOfFilesOfTheKernel() async throws {
    let context = try AIOContext(queueDepth: 4)
    for path in ["/proc/version", "/proc/self/cmdline", "/proc/sys/kernel/ostype"] {
      let expected = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
      let file = try await AIOFile.open(FilePath(path), .readOnly, caching: .buffered)
      var bytes: [UInt8] = []
      for try await chunk in context.chunks(of: file, size: 16) { bytes += chunk.array }
      assertEqual(bytes, expected, path)
    }
    await context.close()
  }

  func testAWriterWritesAllTheData() async throws {
    let fixture = try Fixture(self)
    let expected = [UInt8](bytes(300_000)[4096...])
    for (name, caching) in writable {
      let file = try fixture.open(name, .readWrite, caching)
      var writer = AIOFileWriter(file, on: fixture.context, blockSize: 65536)
      var rest = expected[...]
      while !rest.isEmpty {
        try await writer.write([UInt8](rest.prefix(7001)))
        rest = rest.dropFirst(7001)
      }
      let size = try await writer.finish()
      XCTAssertEqual(size, Int64(expected.count), name)
      assertEqual(try fixture.faults.contents(of: name), expected, name)
    }
    await fixture.context.close()
  }

  /// `aio-copy` of files whose size is known, and whose reads are short.
  func testCopies() throws {
    let fixture = try Fixture(self)
    for name in ["oddread-direct", "shortread-direct"] {
      let copy = fixture.directory.path.appending("copy-\(name)")
      let run = try ChildProcess.run(
        ChildProcess.built("aio-copy"), [fixture.faults[name].string, copy.string])
      XCTAssertEqual(run.status, 0, "\(name): \(run.errors)")
      let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: copy.string)))
      assertEqual(bytes, FaultFileSystem.contents(), name)
    }
    try fixture.context.closeAndWait()
  }
}
