// SPDX-License-Identifier: Apache-2.0
//
// What FlyingFox expects of a pool: the cases of its own tests, and those of a ring.

#if FlyingFox
import DispatchAIOFlyingFox
import FlyingSocks
import Foundation
import XCTest

final class AIOSocketPoolTests: XCTestCase {
  private func pair() throws -> (Socket, Socket) {
    var descriptors: [Int32] = [0, 0]
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &descriptors) == 0 else {
      throw SocketError.makeFailed("socketpair")
    }
    let sockets = descriptors.map { Socket(file: .init(rawValue: $0)) }
    for socket in sockets { try socket.setFlags(.nonBlocking) }
    return (sockets[0], sockets[1])
  }

  /// Calls `body` with a pool that runs.
  private func withRunningPool(
    _ body: (AIOSocketPool) async throws -> Void
  ) async throws {
    let context = try AIOContext(queueDepth: 8)
    let pool = AIOSocketPool(context)
    try await pool.prepare()
    let run = Task { try await pool.run() }
    do { try await body(pool) } catch { XCTFail("\(error)") }
    run.cancel()
    await assertThrows {
      try await run.value
    } _: {
      XCTAssert($0 is CancellationError, "\($0)")
    }
    await context.close()
  }

  // MARK: The life of a pool

  func testAPoolThatIsNotPreparedRefuses() async throws {
    let pool = AIOSocketPool(try AIOContext(queueDepth: 8))
    let (a, b) = try pair()
    await assertThrows {
      try await pool.run()
    } _: {
      XCTAssert($0 is SocketError, "\($0)")
    }
    await assertThrows {
      try await pool.suspendSocket(a, untilReadyFor: .read)
    } _: {
      XCTAssert($0 is SocketError, "\($0)")
    }
    try a.close()
    try b.close()
  }

  func testAPoolRunsOnceAtATime() async throws {
    try await withRunningPool { pool in
      let (a, b) = try pair()
      // It runs, once a wait has ended.
      _ = try b.write(Data([1]))
      try await pool.suspendSocket(a, untilReadyFor: .read)
      await assertThrows {
        try await pool.run()
      } _: {
        XCTAssert($0 is SocketError, "\($0)")
      }
      // The one that runs is not disturbed.
      try await pool.suspendSocket(a, untilReadyFor: .read)
      try a.close()
      try b.close()
    }
  }

  func testTheEndOfTheRunEndsWaitsAndRefusesNewOnes() async throws {
    let context = try AIOContext(queueDepth: 8)
    let pool = AIOSocketPool(context)
    try await pool.prepare()
    let run = Task { try await pool.run() }
    let (a, b) = try pair()
    let wait = Task { try await pool.suspendSocket(a, untilReadyFor: .read) }
    run.cancel()
    await assertThrows {
      try await run.value
    } _: {
      XCTAssert($0 is CancellationError, "\($0)")
    }
    // The wait began before the end, or after it.
    await assertThrows {
      try await wait.value
    } _: {
      XCTAssert($0 is CancellationError || $0 is SocketError, "\($0)")
    }
    await assertThrows {
      try await pool.suspendSocket(a, untilReadyFor: .read)
    } _: {
      XCTAssert($0 is SocketError, "\($0)")
    }
    // Prepared anew, it runs anew.
    try await pool.prepare()
    let second = Task { try await pool.run() }
    _ = try b.write(Data([1]))
    try await pool.suspendSocket(a, untilReadyFor: .read)
    second.cancel()
    _ = await second.result
    try a.close()
    try b.close()
    await context.close()
  }

  func testAContextThatClosesEndsTheRunAndWaits() async throws {
    let context = try AIOContext(queueDepth: 8)
    let pool = AIOSocketPool(context)
    try await pool.prepare()
    let run = Task { try await pool.run() }
    let (a, b) = try pair()
    let wait = Task { try await pool.suspendSocket(a, untilReadyFor: .read) }
    _ = try b.write(Data([1]))
    try await wait.value
    _ = try a.read(atMost: 1)
    let last = Task { try await pool.suspendSocket(a, untilReadyFor: .read) }
    await context.close()
    await assertThrows {
      try await last.value
    } _: {
      XCTAssert($0 is CancellationError || $0 is SocketError, "\($0)")
    }
    await assertThrows {
      try await run.value
    } _: {
      XCTAssertEqual($0 as? SocketError, .disconnected)
    }
    await assertThrows {
      try await pool.prepare()
    } _: {
      XCTAssert($0 is SocketError, "\($0)")
    }
    try a.close()
    try b.close()
  }

  // MARK: Waits

  func testReadinessResumesAWait() async throws {
    try await withRunningPool { pool in
      let (a, b) = try pair()
      try await pool.suspendSocket(a, untilReadyFor: .write)
      async let readable: Void = pool.suspendSocket(a, untilReadyFor: .read)
      _ = try b.write(Data([7]))
      try await readable
      XCTAssertEqual(try a.read(), 7)
      try a.close()
      try b.close()
    }
  }

  func testSeveralTasksMayWaitForOneSocket() async throws {
    try await withRunningPool { pool in
      let (a, b) = try pair()
      try await withThrowingTaskGroup(of: Void.self) { group in
        for _ in 0..<4 {
          group.addTask { try await pool.suspendSocket(a, untilReadyFor: .read) }
          group.addTask { try await pool.suspendSocket(a, untilReadyFor: [.read, .write]) }
        }
        _ = try b.write(Data([7]))
        try await group.waitForAll()
      }
      try a.close()
      try b.close()
    }
  }

  func testCancellationReachesAWait() async throws {
    try await withRunningPool { pool in
      let (a, b) = try pair()
      let wait = Task { try await pool.suspendSocket(a, untilReadyFor: .read) }
      wait.cancel()
      await assertThrows {
        try await wait.value
      } _: {
        XCTAssert($0 is CancellationError, "\($0)")
      }
      // And one that has not begun.
      let late = Task {
        withUnsafeCurrentTask { $0?.cancel() }
        try await pool.suspendSocket(a, untilReadyFor: .read)
      }
      await assertThrows {
        try await late.value
      } _: {
        XCTAssert($0 is CancellationError, "\($0)")
      }
      // The socket is not spoilt.
      _ = try b.write(Data([7]))
      try await pool.suspendSocket(a, untilReadyFor: .read)
      try a.close()
      try b.close()
    }
  }

  func testTheEndOfTheStreamIsADisconnection() async throws {
    try await withRunningPool { pool in
      // What was sent before is read first, as FlyingFox has it.
      let (a, b) = try pair()
      _ = try b.write(Data([7]))
      try b.close()
      try await pool.suspendSocket(a, untilReadyFor: .read)
      XCTAssertEqual(try a.read(), 7)
      try a.close()
      // An error of the socket.
      let (c, d) = try pair()
      _ = try c.write(Data([7]))
      try d.close()
      await assertThrows {
        try await pool.suspendSocket(c, untilReadyFor: .write)
      } _: {
        XCTAssertEqual($0 as? SocketError, .disconnected)
      }
      try c.close()
    }
  }

  func testWhatCannotBeWaitedForIsAFailure() async throws {
    try await withRunningPool { pool in
      let file = open("/proc/self/exe", O_RDONLY)
      defer { close(file) }
      await assertThrows {
        try await pool.suspendSocket(
          Socket(file: .init(rawValue: file)), untilReadyFor: .read)
      } _: {
        guard case .failed(type: "epoll", errno: EPERM, _) = $0 as? SocketError else {
          return XCTFail("\($0)")
        }
      }
    }
  }

  /// Numbers of sockets are used again and again, and nobody tells the pool.
  func testASocketWithTheNumberOfAClosedOneIsWatched() async throws {
    try await withRunningPool { pool in
      for number in 0..<200 {
        let (a, b) = try pair()
        async let readable: Void = pool.suspendSocket(a, untilReadyFor: .read)
        _ = try b.write(Data([UInt8(number)]))
        try await readable
        XCTAssertEqual(try a.read(), UInt8(number))
        try a.close()
        try b.close()
      }
    }
  }

  // MARK: FlyingFox's sockets

  func testASocketReadsAndWritesMoreThanItsBuffer() async throws {
    try await withRunningPool { pool in
      let (first, second) = try pair()
      let a = try AsyncSocket(socket: first, pool: pool)
      let b = try AsyncSocket(socket: second, pool: pool)
      try first.setValue(1024, for: .sendBufferSize)
      let data = Data((0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 7) })
      let writing = Task { try await a.write(data) }
      let read = try await b.read(bytes: data.count)
      try await writing.value
      XCTAssertEqual(Data(read), data)
      try a.close()
      try b.close()
    }
  }

  private func delaysSmallSegments(_ socket: Socket) -> Bool {
    var (value, length) = (Int32(0), socklen_t(MemoryLayout<Int32>.size))
    getsockopt(socket.file.rawValue, Int32(IPPROTO_TCP), TCP_NODELAY, &value, &length)
    return value == 0
  }

  /// Connections send small segments at once, unless the pool is told otherwise.
  func testSmallSegmentsAreNotDelayed() async throws {
    for delays in [false, true] {
      let context = try AIOContext(queueDepth: 8)
      let pool = AIOSocketPool(context, delaysSmallSegments: delays)
      try await pool.prepare()
      let listener = try Socket(domain: AF_INET)
      try listener.bind(to: .inet(ip4: "127.0.0.1", port: 0))
      try listener.listen()
      guard case .ip4(_, let port) = try listener.sockname() else { return XCTFail("no port") }
      let server = try AsyncSocket(socket: listener, pool: pool)
      let accepting = Task { try await server.accept() }
      // Until it waits; where nothing is to change, nothing is to be seen.
      while !delays, delaysSmallSegments(listener) { await Task.yield() }
      let client = try await AsyncSocket.connected(
        to: .inet(ip4: "127.0.0.1", port: port), pool: pool)
      let connection = try await accepting.value
      XCTAssertEqual(delaysSmallSegments(connection.socket), delays)
      for socket in [server, client, connection] { try socket.close() }
      await context.close()
    }
  }

  func testASocketConnectsAndAccepts() async throws {
    try await withRunningPool { pool in
      let listener = try Socket(domain: AF_INET)
      try listener.bind(to: .inet(ip4: "127.0.0.1", port: 0))
      try listener.listen()
      guard case .ip4(_, let port) = try listener.sockname() else { return XCTFail("no port") }
      let server = try AsyncSocket(socket: listener, pool: pool)
      async let accepted = server.accept()
      let client = try await AsyncSocket.connected(
        to: .inet(ip4: "127.0.0.1", port: port), pool: pool)
      try await client.write(Data("Fish".utf8))
      let connection = try await accepted
      let text = try await connection.read(bytes: 4)
      XCTAssertEqual(text, Array("Fish".utf8))
      for socket in [server, client, connection] { try socket.close() }
    }
  }
}
#endif
