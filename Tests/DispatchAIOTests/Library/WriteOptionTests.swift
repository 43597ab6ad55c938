// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What a write does beside writing: the kernel's flags, and the bytes on each file system.
final class WriteOptionTests: XCTestCase {
  /// Every option, on every kind of file, writes and reads the same bytes as without.
  func testOptionsChangeNoByte() throws {
    for (name, directory) in try fileSystems() {
      let context = try AIOContext(queueDepth: 8)
      for caching in [AIOFile.Caching.direct, .buffered, .automatic] {
        let file = try directory.open("\(caching)", caching: caching)
        let options: [AIOWriteOptions] = [
          [], .dataSync, .sync, .uncached, [.dataSync, .uncached],
        ]
        for (index, options) in options.enumerated() {
          let bytes = (0..<8192).map { UInt8(truncatingIfNeeded: $0 * 7 + index) }
          // It extends the file, overwrites it, and is vectored.
          for _ in 0..<2 {
            XCTAssertEqual(
              try context.outcome {
                try context.write(
                  file, at: Int64(index * 8192), from: AIOBuffer(bytes), options: options,
                  completion: $0)
              }, .success(8192), "\(name), \(caching), \(options)")
          }
          let parts = [AIOBuffer(Array(bytes[..<4096])), AIOBuffer(Array(bytes[4096...]))]
          XCTAssertEqual(
            try context.outcome {
              try context.write(
                file, at: Int64(index * 8192), from: parts, options: options, completion: $0)
            }, .success(8192), "\(name), \(caching), \(options)")
          let into = AIOBuffer(count: 8192)
          XCTAssertEqual(
            try context.outcome {
              try context.read(
                file, at: Int64(index * 8192), into: into, options: .uncached, completion: $0)
            }, .success(8192), "\(name), \(caching)")
          XCTAssertEqual(into.array, bytes, "\(name), \(caching), \(options)")
        }
      }
      try context.closeAndWait()
    }
  }

  /// Each flag is in the system calls, also where writes are made together: those with the same
  /// options only.
  func testTheKernelGetsTheFlags() throws {
    let directory = try temporaryDirectory()
    let log = try SystemCallLog(
      tracing: "io_submit,pwritev,pwritev2", ChildProcess.built("dispatch-aio-probe"),
      ["write-options", directory.path.string], in: directory)
    XCTAssertEqual(log.run.status, 0, log.run.errors)
    // Direct: inline, in the ring, but for the first, which extends the file.
    let inRing = KernelChoice.ofProcess == .best ? 1 : 0
    XCTAssertEqual(log.calls(with: "io_submit(", "RWF_DSYNC|RWF_NOWAIT").count, inRing)
    XCTAssertEqual(log.calls(with: "io_submit(", "RWF_SYNC|RWF_NOWAIT").count, inRing)
    XCTAssertEqual(log.calls(with: "pwritev2(", "RWF_SYNC)").count, 1 - inRing)
    // Buffered: eight durable writes between eight plain ones on either side; never together.
    let durable = log.calls(with: "pwritev2(", "RWF_DSYNC)").dropFirst(2 - inRing)
    let plain = log.calls(with: "pwritev(", "4096")
    XCTAssertEqual(answers(durable), 8 * 4096)
    XCTAssertLessThan(durable.count, 8, "durable writes share flushes: \(durable)")
    XCTAssertEqual(answers(plain), 16 * 4096)
    // Appends: together, each with its place.
    let appends = log.calls(with: "pwritev2(", "RWF_DSYNC|RWF_APPEND")
    XCTAssertEqual(answers(appends), 8 * 4096)
    XCTAssertLessThan(appends.count, 8)
    XCTAssertEqual(
      log.run.output, "\((0..<8).map { 24 * 4096 + $0 * 4096 })\n", "the places of the appends")
  }

  private func answers(_ calls: some Sequence<String>) -> Int {
    calls.reduce(0) { $0 + (Int($1.split(separator: " ").last ?? "") ?? 0) }
  }

  /// Appends of several contexts, threads and processes: each is where it was told, in one piece.
  func testAppendsSayWhereTheyWent() throws {
    let directory = try temporaryDirectory()
    for caching in [AIOFile.Caching.direct, .buffered] {
      let name = "\(caching)"
      // Two descriptors of one file, one of them used by two contexts.
      let first = try directory.open(name, caching: caching)
      let second = try directory.open(name, caching: caching)
      let contexts = try (0..<3).map { _ in try AIOContext(queueDepth: 8) }
      let files = [first, first, second]
      let places = Locked<[Int: UInt8]>([:])
      let done = DispatchGroup()
      for round in 0..<40 {
        for (number, context) in contexts.enumerated() {
          let byte = UInt8(round * 3 + number + 1)
          let block = [UInt8](repeating: byte, count: 4096)
          done.enter()
          try context.append(files[number], from: AIOBuffer(block)) { result in
            if case .success(let offset) = result { places.withLock { $0[offset] = byte } }
            done.leave()
          }
        }
      }
      XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
      let contents = try directory.contents(name)
      XCTAssertEqual(contents.count, 120 * 4096)
      let told = places.withLock { $0 }
      XCTAssertEqual(told.count, 120, "each has a place of its own")
      for (offset, byte) in told {
        XCTAssertTrue(contents[offset..<offset + 4096].allSatisfy { $0 == byte }, "\(offset)")
      }
      for context in contexts { try context.closeAndWait() }
    }
  }

  func testAppendsForTasks() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 8)
    let file = try directory.open(caching: .buffered)
    let buffer = AIOUniqueBuffer(count: 100)
    var places: [Int64] = []
    for _ in 0..<3 { places.append(try await context.append(file, from: buffer)) }
    places.append(try await context.append(file, from: buffer, range: 10..<20, options: .dataSync))
    let parts = [AIOBuffer(count: 7), AIOBuffer(count: 9)]
    places.append(try await context.append(file, from: parts))
    // What is written elsewhere does not matter, nor that the file was opened to append.
    try await context.write(file, at: 0, from: buffer)
    let appending = try directory.open(options: .append, caching: .buffered)
    places.append(try await context.append(appending, from: buffer))
    XCTAssertEqual(places, [0, 100, 200, 300, 310, 326])
    await context.close()
  }

  /// A disk that fills up: an append that has no room is told how much went, and no other is split.
  func testAppendsOnAFullDisk() throws {
    let directory = try temporaryDirectory()
    defer { withExtendedLifetime(directory) {} }
    let disk = try SmallDisk(in: directory, megabytes: 16)
    let context = try AIOContext(queueDepth: 4)
    do {
      let file = try AIOFile.open(
        disk.path.appending("log"), .readWrite, options: .create, caching: .buffered)
      let buffer = AIOBuffer([UInt8](repeating: 7, count: 3 << 20))
      var (end, failure) = (0, nil as AIOError?)
      for _ in 0..<20 where failure == nil {
        switch try context.outcome({ try context.append(file, from: buffer, completion: $0) }) {
        case .success(let offset):
          XCTAssertEqual(offset, end)
          end += buffer.count
        case .failure(let error): failure = error
        }
      }
      let error = try XCTUnwrap(failure)
      XCTAssertEqual(error.code, .noSpace)
      XCTAssertEqual(error.operation, .append)
      XCTAssertEqual(Int(try file.size()), end + error.transferred)
      // The next is behind what went, and is told so.
      try file.truncate(to: 4096)
      XCTAssertEqual(
        try context.outcome { try context.append(file, from: buffer[..<100], completion: $0) },
        .success(4096))
      file.close()
      XCTAssertTrue(eventually { file.isDescriptorClosed })
    }
    try context.closeAndWait()
  }

  /// The rules of an untorn write, for a disk that has them.
  func testUntornWritesAreChecked() throws {
    var traits = OpenFile.Traits(alignment: BlockAlignment(memory: 512, offset: 512))
    traits.isDirect = true
    let file = OpenFile(
      descriptor: -1, path: "disk", traits: traits, atomicWriteUnit: 4096...65536
    ) { _ in }
    func check(_ counts: [Int], at offset: Int64) throws(AIOError) {
      let memory = counts.map { AIOBuffer(count: $0) }
      let operation: DispatchAIO.Operation =
        memory.count == 1 ? .write(from: .buffer(memory[0])) : .write(from: .buffers(memory))
      _ = try operation.check(file, offset, .atomic)
    }
    for (counts, offset) in [([4096], 0), ([4096], 4096), ([65536], 65536), ([16384], 49152)] {
      XCTAssertNoThrow(try check(counts, at: Int64(offset)))
    }
    for (counts, offset, words) in [
      ([2048], 0, "from 4096 to 65536"), ([131072], 0, "131072 were given"),
      ([12288], 0, "a power of two"), ([8192], 4096, "the offset of an untorn write"),
      ([4096, 4096], 0, "2 were given"),
    ] {
      let error = try XCTUnwrap(assertRefused(.misaligned) { try check(counts, at: Int64(offset)) })
      XCTAssertTrue("\(error)".contains(words), "\(error)")
    }
    // Here, whatever the disk has: none or a range of powers of two.
    let directory = try temporaryDirectory()
    if let unit = try directory.open().atomicWriteUnit {
      XCTAssertEqual(unit.lowerBound & (unit.lowerBound - 1), 0)
    }
    XCTAssertNil(try directory.open(caching: .buffered).atomicWriteUnit)
  }

  /// The directories to try things in, by the name of their file system.
  private func fileSystems() throws -> [(String, TemporaryDirectory)] {
    var all = [("disk", try temporaryDirectory())]
    if let memory = try? TemporaryDirectory(in: "/dev/shm") { all.append(("tmpfs", memory)) }
    return all
  }
}
