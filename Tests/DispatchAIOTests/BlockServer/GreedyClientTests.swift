// SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import SystemPackage
import XCTest

@testable import BlockServer

/// Clients that ask for more than their share, or leave their work behind: others are served
/// meanwhile, within bounds of time and memory.
final class GreedyClientTests: XCTestCase {
  private static let mebibyte = 1 << 20

  /// A server of a file of holes, in which `data` ranges have been written.
  private func serve(
    megabytes: Int, data: [Range<Int>] = [], _ options: [String] = []
  ) throws -> NBDServer {
    let directory = try temporaryDirectory()
    let path = directory.path.appending("disk").string
    let descriptor = open(path, O_CREAT | O_RDWR, 0o600)
    defer { close(descriptor) }
    XCTAssertEqual(ftruncate(descriptor, off_t(megabytes << 20)), 0)
    for range in data {
      let bytes = [UInt8](repeating: 7, count: range.count)
      XCTAssertEqual(pwrite(descriptor, bytes, bytes.count, off_t(range.lowerBound)), range.count)
    }
    return try NBDServer(directory, ["disk"], options)
  }

  /// 8192 extents in 32 MiB.
  private static let fragments = stride(from: 0, to: 32 << 20, by: 8192).map { $0..<$0 + 4096 }

  /// The bytes of a request, many times.
  private func flood(
    _ command: NBD.Command, count: Int, at offset: Int = 0, length: Int, payload: [UInt8] = []
  ) -> [UInt8] {
    let request =
      Message.request(
        command.rawValue, flags: 0, offset: UInt64(offset), length: UInt32(length)) + payload
    return [UInt8]((0..<count).map { _ in request }.joined())
  }

  /// How long a body takes, in seconds.
  private func seconds(_ body: () throws -> Void) rethrows -> Double {
    let start = ContinuousClock.now
    try body()
    return (ContinuousClock.now - start) / .seconds(1)
  }

  /// Has `count` clients send `flood` and take replies of so many bytes; meanwhile another makes a
  /// request again and again, the slowest of which has to take less than half of the time that the
  /// flood takes, unless that is short: behind all of the flood it would take nearly all.
  private func assertOthersAreServed(
    _ server: NBDServer, _ flood: [UInt8], replies: Int, clients count: Int,
    _ request: (NBDClient) throws -> Void, file: StaticString = #filePath, line: UInt = #line
  ) throws {
    let healthy = try NBDClient(server)
    let group = DispatchGroup()
    var slowest = 0.0
    let isOver = Locked(false)
    let total = try seconds {
      for _ in 0..<count {
        let client = try NBDClient(server)
        try client.send(flood)
        nonisolated(unsafe) let receiver = client  // Its own thread's from here on.
        DispatchQueue(label: "receiver").async(group: group) {
          XCTAssertTrue(receiver.skip(replies))
        }
      }
      group.notify(queue: .global()) { isOver.withLock { $0 = true } }
      repeat {
        slowest = max(slowest, try seconds { try request(healthy) })
      } while !isOver.withLock {
        $0
      }
    }
    XCTAssertLessThan(slowest, max(total / 2, 2), "of \(total) s", file: file, line: line)
  }

  // MARK: Clients that have gone

  /// What has not begun when its client leaves is not done.
  func testTheWorkOfClientsThatHaveGoneIsDropped() throws {
    let server = try serve(megabytes: 32, data: Self.fragments)
    let requests = flood(.blockStatus, count: 128, length: 32 << 20)
    for _ in 0..<100 {
      let client = try NBDClient(server)
      try client.send(requests)
    }
    // All together takes a minute and more.
    let client = try NBDClient(server)
    let time = try seconds {
      XCTAssertEqual(try client.call(.blockStatus, count: 32 << 20).extents.count, 4096)
    }
    XCTAssertLessThan(time, 10)
    XCTAssertLessThan(seconds { XCTAssertEqual(server.stop(), 0, server.logged) }, 10)
  }

  /// The same of requests that wait for a range, and for the disk.
  func testWhatWaitsForARangeIsDropped() throws {
    let server = try serve(megabytes: 64, ["--queue-depth", "4"])
    let writes = flood(
      .write, count: 200, at: 10, length: 100, payload: [UInt8](repeating: 1, count: 100))
    let reads = flood(.read, count: 200, length: 4096)
    for _ in 0..<100 {
      let client = try NBDClient(server)
      try client.send(writes + reads)
    }
    let client = try NBDClient(server)
    XCTAssertLessThan(try seconds { try client.write([5], at: 50) }, 10)
    XCTAssertEqual(try client.read(50..<51), [5])
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// Zeroings of half of the disk by a client that has gone: neither a read nor a write waits
  /// for those that have not begun.
  func testZeroingsOfAClientThatHasGoneAreDropped() throws {
    let server = try serve(megabytes: 2048, data: Self.fragments)
    do {
      let client = try NBDClient(server)
      try client.send(flood(.writeZeroes, count: 60, length: 1 << 30))
    }
    let client = try NBDClient(server)
    let time = try seconds {
      XCTAssertEqual(try client.read(1 << 30..<1 << 30 + 4096).count, 4096)
      // Behind what is zeroed: what has begun may end after this.
      try client.write([9], at: (1 << 30) + 5)
      XCTAssertEqual(try client.read((1 << 30) + 5..<(1 << 30) + 6), [9])
    }
    XCTAssertLessThan(time, 5)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// A client that leaves while its request is with the disk: others get its place when that has
  /// ended. And a second signal does not wait for that.
  func testAPlaceIsFreeWhenItsWorkHasEnded() throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    func serve() throws -> NBDServer {
      try NBDServer(
        directory, ["disk=\(files["hangread-direct"])"], ["--max-connections", "1"])
    }
    let server = try serve()
    // Its connection ends at once, because what follows is no request.
    let client = try NBDClient(server)
    try client.ask(.read, at: 0, count: 4096)
    XCTAssertTrue(eventually { files.hanging == 1 })
    try client.send([UInt8](repeating: 0, count: 28))
    XCTAssertTrue(client.isClosedSoon())
    XCTAssertThrowsError(try NBDClient(server))
    kill(server.process.processIdentifier, SIGTERM)
    XCTAssertTrue(eventually { server.logged.contains("SIGTERM") })
    XCTAssertTrue(server.process.isRunning)
    kill(server.process.processIdentifier, SIGINT)
    // It has ended, except for the thread in the kernel.
    files.release()
    server.process.waitForEnd()
    XCTAssertEqual(server.process.terminationStatus, 128 + SIGINT)
    let next = try serve()
    try { _ = try NBDClient(next).ask(.read, at: 0, count: 4096) }()
    XCTAssertTrue(eventually { (try? NBDClient(next).read(0..<1)) == [0] })
    XCTAssertEqual(next.stop(), 0, next.logged)
  }

  // MARK: Turns

  func testBlockStatusDoesNotHoldUpOthers() throws {
    let server = try serve(megabytes: 64, data: Self.fragments)
    try assertOthersAreServed(
      server, flood(.blockStatus, count: 30, length: 32 << 20), replies: 30 * (24 + 8 * 4096),
      clients: 8
    ) {
      XCTAssertEqual(try $0.call(.writeZeroes, at: 40 << 20, count: 4096).error, 0)
      XCTAssertEqual(try $0.read(40 << 20..<40 << 20 + 4096).count, 4096)
    }
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  func testTrimsOfAllOfTheDiskDoNotHoldUpReads() throws {
    let server = try serve(megabytes: 2048, data: Self.fragments)
    try assertOthersAreServed(
      server, flood(.trim, count: 200, length: 2 << 30), replies: 200 * 16, clients: 100
    ) { XCTAssertEqual(try $0.read(1 << 30..<1 << 30 + 4096).count, 4096) }
    try assertOthersAreServed(
      server, flood(.writeZeroes, count: 50, length: 2 << 30), replies: 50 * 16, clients: 20
    ) { XCTAssertEqual(try $0.read(1 << 30..<1 << 30 + 4096).count, 4096) }
    // A write waits for the ranges that have begun, and takes its turn with those that have not.
    try assertOthersAreServed(
      server, flood(.trim, count: 20, length: 2 << 30), replies: 20 * 16, clients: 100
    ) { try $0.write([UInt8](repeating: 8, count: 4096), at: 1 << 30) }
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// A read waits neither for a write that has its range, nor for a zeroing that waits for it; a
  /// write behind them does.
  func testReadsWaitForNoRange() throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    let server = try NBDServer(directory, ["disk=\(files["hangwrite-direct"])"])
    let writer = try NBDClient(server)
    try writer.ask(.write, at: 10, payload: [UInt8](repeating: 0xee, count: 5000))
    XCTAssertTrue(eventually { files.hanging == 1 })
    let zeroer = try NBDClient(server)
    try zeroer.ask(.writeZeroes, at: 4096, count: 4096)
    let client = try NBDClient(server)
    for offset in [0, 100, 4096, 6000] {
      XCTAssertEqual(
        try client.read(offset..<offset + 3000), FaultFileSystem.contents(offset..<offset + 3000))
    }
    let second = try NBDClient(server)
    try second.ask(.write, at: 4000, payload: [UInt8](repeating: 0xdd, count: 200))
    XCTAssertEqual(try client.read(4000..<4001), FaultFileSystem.contents(4000..<4001))
    XCTAssertEqual(files.hanging, 1)
    files.release()
    for waiting in [writer, zeroer, second] { XCTAssertEqual(try waiting.reply().error, 0) }
    XCTAssertEqual(try client.read(10..<11), [0xee])
    XCTAssertEqual(try client.read(4000..<4001), [0xdd])
    XCTAssertEqual(try client.read(5000..<5001), [0])
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  func testManyReadsDoNotHoldUpOthers() throws {
    let server = try serve(megabytes: 64, data: [0..<32 << 20])
    try assertOthersAreServed(
      server, flood(.read, count: 256, length: 4096), replies: 256 * (28 + 4096), clients: 128
    ) { XCTAssertEqual(try $0.read(1 << 20..<1 << 20 + 4096).count, 4096) }
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  func testUnalignedWritesOfOneBlockDoNotHoldUpOthers() throws {
    let server = try serve(megabytes: 64, data: [0..<1 << 20])
    try assertOthersAreServed(
      server,
      flood(.write, count: 200, at: 10, length: 10, payload: [UInt8](repeating: 1, count: 10)),
      replies: 200 * 16, clients: 32
    ) { XCTAssertEqual(try $0.read(0..<4096).count, 4096) }
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  // MARK: The log

  /// A client that reads from a bad disk again and again has every answer, and a few lines of the
  /// log.
  func testErrorsOfTheDiskDoNotFillTheLog() throws {
    let directory = try temporaryDirectory()
    let files = try FaultFileSystem(in: directory)
    let server = try NBDServer(directory, ["disk=\(files["eioread-direct"])"])
    let client = try NBDClient(server, structured: false)
    let count = 3000
    try client.send(flood(.read, count: count, length: 4096))
    XCTAssertTrue(client.skip(count * 16))
    XCTAssertEqual(server.stop(), 0, server.logged)
    let lines = server.logged.split(separator: "\n")
    XCTAssertTrue(lines.contains { $0.contains("Input/output error") }, server.logged)
    XCTAssertTrue(lines.contains { $0.contains(" more of these in the last ") }, server.logged)
    XCTAssertLessThan(lines.count, 200)
  }

  // MARK: Memory

  /// Writes of which nearly nothing arrives cost nearly nothing, and do not last for ever.
  func testPayloadThatDoesNotArrive() throws {
    let server = try serve(megabytes: 64, ["--stall-limit", "3"])
    let before = server.residentMemory
    let clients = try (0..<250).map { _ in
      let client = try NBDClient(server)
      try client.send(
        Message.request(1, offset: 0, length: 32 << 20) + [UInt8](repeating: 1, count: 100))
      return client
    }
    let healthy = try NBDClient(server)
    let bytes = randomBytes(8 << 20)
    try healthy.write(bytes, at: 0)
    XCTAssertTrue(try healthy.read(0..<bytes.count) == bytes)
    XCTAssertLessThan(server.residentMemory - before, 64 << 20)
    for client in clients { XCTAssertTrue(client.isClosedSoon()) }
    XCTAssertTrue(server.logged.contains("--stall-limit"), server.logged)
    XCTAssertEqual(try healthy.read(0..<1), [bytes[0]])
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// A payload that arrives slowly but steadily is written.
  func testPayloadMayBeSlow() throws {
    let server = try serve(megabytes: 64, ["--stall-limit", "1"])
    let client = try NBDClient(server)
    let bytes = randomBytes(3 << 20)
    try client.send(Message.request(1, offset: 0, length: UInt32(bytes.count)))
    let start = ContinuousClock.now
    var sent = 0
    while sent < bytes.count {
      try client.send(Array(bytes[sent..<min(sent + 65536, bytes.count)]))
      sent += 65536
      // 2 s for all, 0.7 s for each MiB.
      let next = start + .seconds(2) * Double(sent) / Double(bytes.count)
      XCTAssertTrue(eventually { ContinuousClock.now > next })
    }
    XCTAssertEqual(try client.reply().error, 0)
    XCTAssertTrue(try client.read(0..<bytes.count) == bytes)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// Clients that ask for all they can, and take none of it: together they have what `--memory`
  /// says, others are served, and when they leave the memory is the system's again.
  func testMemoryOfAllConnectionsTogether() throws {
    let limit = 64 << 20
    let server = try serve(
      megabytes: 64, data: [0..<64 << 20], ["--memory", "64", "--stall-limit", "2"])
    let before = server.residentMemory
    let small = flood(.read, count: 100, length: 256 << 10)
    let large = flood(.read, count: 3, length: 32 << 20)
    var clients = try (0..<40).map { number in
      // Replies in parts, and whole.
      let client = try NBDClient(server, structured: number % 2 == 0)
      client.sendAtOnce(small + large)
      return client
    }
    // One that only writes: it waits for the end of those that take nothing.
    let writer = try NBDClient(server)
    let bytes = randomBytes(32 << 20)
    for _ in 0..<10 {
      XCTAssertEqual(try NBDClient(server).read(0..<4096).count, 4096)
    }
    try writer.write(bytes, at: 0)
    XCTAssertTrue(try writer.read(0..<1 << 20) == Array(bytes[..<Self.mebibyte]))
    let bound = limit + MemoryBudget.small + MemoryBudget.large + 40 * MemoryBudget.largestSmall
    XCTAssertLessThan(server.peakMemory - before, bound + 16 << 20)
    XCTAssertFalse(clients.isEmpty)
    clients = []
    XCTAssertTrue(
      eventually { server.residentMemory - before < BufferPool.mostUnused + 16 << 20 },
      "\(server.residentMemory - before)")
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// What a client has not taken counts from when it was there to be taken: of one that was idle
  /// when it was last looked at, that is now.
  func testAClientThatWasIdleHasNotStalled() throws {
    let loop = try ServerLoop(
      number: 0, exports: [], settings: .init(), logger: Logger(label: "test"), whenClosed: {})
    var sockets: [Int32] = [0, 0]
    XCTAssertEqual(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &sockets), 0)
    defer { close(sockets[1]) }
    let limit = Duration.seconds(30)
    let now = ContinuousClock.now
    let connection = Locked(Connection?.none)
    /// Runs a body in a turn of the loop, and waits until what it has to send is sent.
    func turn(_ body: @escaping @Sendable (Connection) -> Void) throws {
      let turned = expectation(description: "turned")
      let socket = sockets[0]
      loop.context.async {
        connection.withLock { connection in
          if connection == nil {
            connection = try? Connection(peer: "", socket: socket, loop: loop, handshakeLimit: nil)
          }
          if let connection { body(connection) }
        }
        loop.context.async { turned.fulfill() }
      }
      wait(for: [turned], timeout: 30)
    }
    try turn { $0.checkStall(now, limit, othersWait: true) }
    try turn { connection in
      XCTAssertTrue(connection.outbox.isEmpty)
      connection.checkStall(now, limit, othersWait: true)
      connection.session.output = [1, 2, 3]
      connection.sendAnswer()
      connection.checkStall(now + .seconds(3600), limit, othersWait: true)
      XCTAssertFalse(connection.isClosed)
      connection.checkStall(now + .seconds(3629), limit, othersWait: true)
      XCTAssertFalse(connection.isClosed)
      connection.checkStall(now + .seconds(3631), limit, othersWait: true)
      XCTAssertTrue(connection.isClosed)
    }
    connection.withLock { $0 = nil }
    let drained = expectation(description: "drained")
    loop.drain(timeout: .zero) { _ in drained.fulfill() }
    wait(for: [drained], timeout: 30)
  }
}
