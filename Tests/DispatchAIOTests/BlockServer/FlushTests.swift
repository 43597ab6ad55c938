// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import XCTest

@testable import BlockServer

/// What a flush says after one that failed.
final class FlushTests: XCTestCase {
  private static let ioError: UInt32 = 5

  /// A server of a file whose first fsync after a write fails, and whose later ones succeed, as the
  /// kernel's do after pages could not be written back.
  private func serve(
    _ options: [String] = [], _ body: (NBDServer) throws -> Void
  ) throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    try body(NBDServer(directory, ["disk=\(files["eiofsync"])"], options))
  }

  /// Zeros of less than a block go through the page cache, from where they may be lost: nobody is
  /// told again that all is on the disk, on whichever connection and loop.
  func testAFlushThatFailedOverThePageCacheFailsForGood() throws {
    try serve(["--loops", "2"]) { server in
      let clients = try (0..<2).map { _ in try NBDClient(server) }
      XCTAssertEqual(try clients[0].call(.writeZeroes, at: 100, count: 1000).error, 0)
      for _ in 0..<2 {
        for client in clients { XCTAssertEqual(try client.call(.flush).error, Self.ioError) }
      }
      // FUA is a flush, too.
      let write = try clients[1].call(
        .write, flags: .fua, at: 4096, payload: [UInt8](repeating: 1, count: 4096))
      XCTAssertEqual(write.error, Self.ioError)
      XCTAssertEqual(try clients[1].read(100..<1100), [UInt8](repeating: 0, count: 1000))
      XCTAssertTrue(server.logged.contains("every flush fails from now on"), server.logged)
      XCTAssertEqual(server.stop(), 1, server.logged)
    }
  }

  /// The last fdatasync of one loop takes the error; the other's client, whose flush begins after
  /// that, is told nevertheless.
  func testTheLastSyncOfALoopFailsTheFlushesOfTheOthers() throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    let server = try NBDServer(
      directory, ["disk=\(files["hangread-direct-eiofsync"])"], ["--loops", "2"])
    let clients = try (0..<2).map { _ in try NBDClient(server) }
    XCTAssertEqual(try clients[0].call(.writeZeroes, at: 0, count: 4096).error, 0)
    // A flush behind as many requests as may be in progress.
    let read = Message.request(NBD.Command.read.rawValue, flags: 0, offset: 8192, length: 512)
    let flush = Message.request(
      NBD.Command.flush.rawValue, flags: 0, cookie: 7, offset: 0, length: 0)
    try clients[1].send((0..<Connection.mostRequests).flatMap { _ in read } + flush)
    XCTAssertTrue(eventually { files.hanging > 0 })
    kill(server.process.processIdentifier, SIGTERM)
    XCTAssertTrue(eventually { server.logged.contains("fdatasync") }, server.logged)
    files.release()
    let replies = try (0...Connection.mostRequests).map { _ in try clients[1].reply() }
    XCTAssertEqual(replies.first { $0.cookie == 7 }?.error, Self.ioError)
    server.process.waitUntilExit()
    XCTAssertEqual(server.process.terminationStatus, 1, server.logged)
  }

  /// What was written directly waits in the device for the next flush.
  func testAFlushThatFailedOverTheDeviceMaySucceedLater() throws {
    try serve { server in
      let client = try NBDClient(server)
      let bytes = [UInt8](repeating: 1, count: 4096)
      try client.write(bytes, at: 0)
      XCTAssertEqual(try client.call(.flush).error, Self.ioError)
      XCTAssertEqual(try client.call(.flush).error, 0)
      XCTAssertEqual(try client.call(.write, flags: .fua, at: 0, payload: bytes).error, 0)
      XCTAssertEqual(server.stop(), 0, server.logged)
    }
  }

  /// Of a device what fails is the flush of its own cache; nor does that lose what was written.
  func testAFailedFlushOfABlockDevice() throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    let device = try LoopDevice(over: files["eiofsync"].string, options: [])
    let server = try NBDServer(directory, ["disk=\(device.path)"])
    let client = try NBDClient(server)
    let bytes = [UInt8](repeating: 1, count: 4096)
    try client.write(bytes, at: 0)
    XCTAssertEqual(try client.call(.flush).error, Self.ioError)
    XCTAssertEqual(try client.call(.flush).error, 0)
    XCTAssertEqual(try client.read(0..<4096), bytes)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// Zeros of a file that are no whole pages are in the page cache, although the filesystem makes
  /// them.
  func testZerosThatAreNoWholePagesAreCached() throws {
    let error = try XCTUnwrap(
      assertRefused(.notFound) { try AIOFile.open("/nowhere/at/all", .readOnly) })
    let directory = try temporaryDirectory()
    let path = directory.path.appending("disk")
    try Data(repeating: 1, count: 16384).write(to: URL(fileURLWithPath: path.string))
    for (range, keepsRoom, isCached) in [
      (4096..<12288, false, false), (100..<5000, false, true), (0..<5000, false, true),
      (100..<8192, true, true), (200..<300, false, true),
    ] as [(Range<UInt64>, Bool, Bool)] {
      let export = try Export(name: "disk", path: path, readOnly: false)
      guard export.file.caching == .direct else { throw XCTSkip("no direct I/O") }
      XCTAssertNil(export.zero(range, keepsRoom: keepsRoom, onlyFast: true))
      XCTAssertTrue(export.syncs.begin {})
      export.syncs.end(error)
      XCTAssertEqual(export.syncs.failure != nil, isCached, "\(range)")
    }
  }

  /// One fdatasync at a time, of all loops; a failed one that has to write back pages is the last.
  func testTheGate() throws {
    let error = try XCTUnwrap(
      assertRefused(.notFound) { try AIOFile.open("/nowhere/at/all", .readOnly) })
    for (isBuffered, writes, fails) in [
      (false, false, false), (false, true, true), (true, false, true), (true, true, true),
    ] {
      let gate = SyncGate(isBuffered: isBuffered)
      let ended = Locked(0)
      func begin() -> Bool { gate.begin { ended.withLock { $0 += 1 } } }
      XCTAssertTrue(begin())
      XCTAssertFalse(begin())
      // The running one may not have covered it.
      if writes { gate.noteCachedWrite() }
      gate.end(nil)
      XCTAssertEqual(ended.withLock { $0 }, 1)
      XCTAssertTrue(begin())
      gate.end(error)
      XCTAssertEqual(gate.failure != nil, fails, "\(isBuffered) \(writes)")
      XCTAssertEqual(ended.withLock { $0 }, 1)
    }
  }
}
