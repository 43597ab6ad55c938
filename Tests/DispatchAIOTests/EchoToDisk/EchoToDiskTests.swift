// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// The daemon as a process, with clients over real sockets.
final class EchoToDiskTests: XCTestCase {
  private func data() throws -> (TemporaryDirectory, FilePath) {
    let directory = try temporaryDirectory()
    return (directory, directory.path.appending("data"))
  }

  private func assertSound(
    _ server: EchoServer, file: StaticString = #filePath, line: UInt = #line
  ) throws {
    let verify = try server.verify()
    XCTAssertEqual(verify.status, 0, verify.output + verify.errors, file: file, line: line)
    XCTAssertTrue(verify.output.contains(" 0 damages"), verify.output, file: file, line: line)
  }

  // MARK: Echoing

  func testAnyBytesComeBack() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "4M"])
    XCTAssertTrue(server.address.hasPrefix("127.0.0.1:"), server.address)
    let client = try EchoClient(port: server.port)
    let bytes = (0..<1000).map { UInt8(truncatingIfNeeded: $0) } + [0, 0, 10, 13, 0xff]
    XCTAssertTrue(client.exchange(bytes, until: bytes.count))
    XCTAssertEqual(client.received, bytes)
    // What was echoed is in the journal, while the server runs.
    let rows = try server.list()
    XCTAssertEqual(rows.map(\.connection), [1])
    XCTAssertEqual(rows.first?.peer, client.name)
    XCTAssertEqual(rows.first?.bytes, bytes.count)
    XCTAssertEqual(try server.replay(1), bytes)
    XCTAssertEqual(server.stop(), 0, server.logged)
    try assertSound(server)
    withExtendedLifetime(directory) {}
  }

  func testAUnixSocket() throws {
    let (directory, data) = try data()
    let path = directory.path.appending("socket").string
    for _ in 0..<2 {
      // The second finds the socket that the first left behind when it was killed.
      let server = try EchoServer(data, ["--segment-size", "1M"], address: ["--unix", path])
      XCTAssertEqual(server.address, path)
      let client = try EchoClient(unix: path)
      XCTAssertTrue(client.exchange([1, 2, 3], until: 3))
      XCTAssertEqual(client.received, [1, 2, 3])
      assertThrows(
        try EchoServer(
          FilePath(data.string + "2"), ["--segment-size", "1M"], address: ["--unix", path]),
        "another server answers there")
      server.kill()
    }
  }

  func testHalfClosedConnectionsGetTheirRemainingEchoes() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "4M"])
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(100_000)
    XCTAssertEqual(client.sendUntilStuck(bytes, patience: 5), bytes.count)
    client.endInput()
    XCTAssertTrue(client.exchange([], until: bytes.count))
    XCTAssertEqual(client.received, bytes)
    // And then the server closes its end.
    XCTAssertFalse(client.exchange([], until: bytes.count + 1))
    XCTAssertTrue(client.isClosed)
    XCTAssertEqual(server.stop(), 0)
    withExtendedLifetime(directory) {}
  }

  /// 50 connections, 200 MB of random bytes, in random pieces.
  func testManyConnectionsAtOnce() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data)
    let names = Locked<[String: [UInt8]]>([:])
    let port = server.port
    onThreads(50) { number in
      var generator = SeededGenerator(seed: UInt64(number))
      let bytes = randomBytes(4_000_000)
      guard let client = try? EchoClient(port: port) else { return XCTFail("no connection") }
      let finished = client.exchange(bytes, until: bytes.count) {
        Int.random(in: 1...(generator.oneIn(4) ? 100_000 : 5000), using: &generator)
      }
      XCTAssertTrue(finished, "connection \(number): \(client.received.count) bytes came back")
      XCTAssertTrue(client.received == bytes, "connection \(number): other bytes came back")
      names.withLock { $0[client.name] = bytes }
    }
    XCTAssertEqual(server.stop(), 0, server.logged)
    let sent = names.withLock { $0 }
    let rows = try server.list()
    XCTAssertEqual(rows.count, 50)
    for row in rows {
      let bytes = try XCTUnwrap(sent[row.peer ?? ""])
      XCTAssertEqual(row.bytes, bytes.count)
      XCTAssertTrue(try server.replay(row.connection) == bytes, "replay gives other bytes")
    }
    try assertSound(server)
    withExtendedLifetime(directory) {}
  }

  /// A quarter of such a segment, the most for a batch, is no multiple of the disk's sectors.
  func testFullBatchesOfAnUnevenSize() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 48, sectorSize: 4096)
    let server = try EchoServer(disk.path.appending("data"), ["--segment-size", "1052672"])
    let port = server.port
    let bytes = randomBytes(1_000_000)
    onThreads(8) { _ in
      guard let client = try? EchoClient(port: port) else { return XCTFail("no connection") }
      XCTAssertTrue(client.exchange(bytes, until: bytes.count))
      XCTAssertTrue(client.received == bytes)
    }
    XCTAssertEqual(server.stop(), 0, server.logged)
    try assertSound(server)
  }

  // MARK: Crashes

  /// The same, killed in the middle, twenty times: whatever came back is in the journal, also after
  /// the daemon has started again on it.
  func testKilledInTheMiddle() throws {
    let directory = try temporaryDirectory()
    var generator = SeededGenerator(seed: 1)
    var echoedInAll = 0
    // Fewer under a sanitizer, which takes ten times as long.
    let rounds = ProcessInfo.processInfo.environment["ECHO_KILLS"].flatMap(Int.init) ?? 20
    for round in 0..<rounds {
      let data = directory.path.appending("data")
      let server = try EchoServer(data, ["--segment-size", "8M"])
      let killAfter = Int.random(in: 1...20_000_000, using: &generator)
      let echoed = Locked(0)
      let clients = Locked<[(name: String, received: [UInt8], sent: [UInt8])]>([])
      let port = server.port
      let process = server.process.processIdentifier
      onThreads(50) { number in
        var generator = SeededGenerator(seed: UInt64(round * 50 + number))
        let bytes = randomBytes(4_000_000)
        // The last ones may find it killed already.
        guard let client = try? EchoClient(port: port) else { return }
        client.exchange(
          bytes, until: bytes.count, chunk: { Int.random(in: 1...20_000, using: &generator) }
        ) { count in
          let isEnough = echoed.withLock { sum in
            let before = sum
            sum += count
            return before < killAfter && sum >= killAfter
          }
          if isEnough { Glibc.kill(process, SIGKILL) }
        }
        clients.withLock { $0.append((client.name, client.received, bytes)) }
      }
      server.kill()
      echoedInAll += echoed.withLock { $0 }
      let verify = try server.verify()
      XCTAssertEqual(verify.status, 0, "round \(round): \(verify.output)")

      let next = try EchoServer(data, ["--segment-size", "8M"])
      let rows = Dictionary(uniqueKeysWithValues: try next.list().map { ($0.peer ?? "", $0) })
      let client = try EchoClient(port: next.port)
      XCTAssertTrue(client.exchange([1, 2, 3], until: 3))
      XCTAssertEqual(next.stop(), 0)
      try assertSound(next)
      let newest = try XCTUnwrap(next.list().last)
      XCTAssertEqual(newest.peer, client.name, "a connection's number was used again")
      for (name, received, sent) in clients.withLock({ $0 }) where !received.isEmpty {
        let row = try XCTUnwrap(rows[name], "round \(round): \(name) is not in the journal")
        let replayed = try next.replay(row.connection)
        XCTAssertTrue(
          isPrefix(received, of: replayed),
          "round \(round): \(received.count) bytes came back, \(replayed.count) are in the journal")
        XCTAssertTrue(
          isPrefix(replayed, of: sent), "round \(round): the journal has bytes that were not sent")
      }
      try FileManager.default.removeItem(atPath: data.string)
    }
    print("killed \(rounds) times, after \(echoedInAll) bytes had come back in all")
  }

  func testConnectionNumbersGoOnAfterARestart() throws {
    let (directory, data) = try data()
    for round in 0..<3 {
      let server = try EchoServer(data, ["--segment-size", "1M"])
      let client = try EchoClient(port: server.port)
      XCTAssertTrue(client.exchange([UInt8(round)], until: 1))
      XCTAssertEqual(try server.list().map(\.connection), (1...UInt64(round + 1)).map { $0 })
      for earlier in 0...round {
        XCTAssertEqual(try server.replay(UInt64(earlier + 1)), [UInt8(earlier)])
      }
      if round % 2 == 0 { server.kill() } else { XCTAssertEqual(server.stop(SIGINT), 0) }
    }
    withExtendedLifetime(directory) {}
  }

  // MARK: Shutting down

  func testTermFinishesWhatIsInFlight() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "16M"])
    let clients = try (0..<10).map { _ in try EchoClient(port: server.port) }
    let bytes = randomBytes(200_000)
    for client in clients { XCTAssertGreaterThan(client.sendUntilStuck(bytes, patience: 0.2), 0) }
    Glibc.kill(server.process.processIdentifier, SIGTERM)
    for client in clients {
      client.exchange([], until: bytes.count)
      // All that it received it echoed, and then closed.
      XCTAssertTrue(client.isClosed || client.received.count == bytes.count)
    }
    server.process.waitForEnd()
    XCTAssertEqual(server.process.terminationStatus, 0, server.logged)
    let rows = try server.list()
    for client in clients {
      guard let row = rows.first(where: { $0.peer == client.name }) else {
        // It came too late to be accepted.
        XCTAssertEqual(client.received, [])
        continue
      }
      XCTAssertEqual(row.bytes, client.received.count, "an echo is missing")
      XCTAssertTrue(try server.replay(row.connection) == client.received)
    }
    try assertSound(server)
    XCTAssertThrowsError(try EchoClient(port: server.port))
    withExtendedLifetime(directory) {}
  }

  // MARK: Limits

  /// A client that takes no echoes: the server stops reading from it, and serves others.
  func testAClientThatDoesNotRead() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "64M"])
    let stuck = try EchoClient(port: server.port)
    let bytes = randomBytes(64 << 20)
    let taken = stuck.sendUntilStuck(bytes, patience: 1)
    XCTAssertLessThan(taken, bytes.count, "the server never stopped reading")
    let other = try EchoClient(port: server.port)
    XCTAssertTrue(other.exchange(Array(bytes[..<1000]), until: 1000))
    // What it holds for the stuck one is bounded, however much it would send.
    let memory = try residentMemory(of: server.process.processIdentifier)
    XCTAssertLessThan(memory, 100 << 20)
    // It goes on when the client reads again.
    XCTAssertTrue(stuck.exchange([], until: taken))
    XCTAssertTrue(stuck.received[...] == bytes[..<taken])
    XCTAssertEqual(server.stop(), 0)
    withExtendedLifetime(directory) {}
  }

  /// The memory for each of many such clients is what is documented.
  func testTheMemoryOfClientsThatDoNotRead() throws {
    try XCTSkipIf(Sanitizer.isBuiltIn, "a sanitizer has memory of its own")
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "64M"])
    let bytes = randomBytes(8 << 20)
    func stuckClients(_ count: Int) throws -> [EchoClient] {
      let clients = try (0..<count).map { _ in try EchoClient(port: server.port) }
      var sent = Array(repeating: 0, count: count)
      // In turns, until none of them can send any more.
      while true {
        let before = sent
        for (index, client) in clients.enumerated() {
          sent[index] += client.sendUntilStuck(Array(bytes[sent[index]...]), patience: 0.005)
        }
        if sent == before { return clients }
      }
    }
    // Batch buffers and the like are there after the first.
    var clients = try stuckClients(40)
    let before = try residentMemory(of: server.process.processIdentifier)
    clients += try stuckClients(60)
    let growth = (try residentMemory(of: server.process.processIdentifier) - before) / 60
    XCTAssertLessThan(growth, 280 << 10)
    XCTAssertGreaterThan(growth, 128 << 10, "the clients are not stuck")
    for client in clients { client.reset() }
    withExtendedLifetime(directory) {}
  }

  private func residentMemory(of process: Int32) throws -> Int {
    let text = try String(contentsOfFile: "/proc/\(process)/statm", encoding: .ascii)
    return try XCTUnwrap(Int(text.split(separator: " ")[1])) * Int(sysconf(Int32(_SC_PAGESIZE)))
  }

  func testTooManyConnections() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "1M", "--max-connections", "2"])
    var clients = try (0..<2).map { _ in try EchoClient(port: server.port) }
    for client in clients { XCTAssertTrue(client.exchange([1], until: 1)) }
    let third = try EchoClient(port: server.port)
    XCTAssertFalse(third.exchange([1], until: 1))
    XCTAssertTrue(third.isClosed)
    XCTAssertTrue(server.logged.contains("2 connections are the most (--max-connections)"))
    // A place is free again when one has gone.
    clients.removeLast()
    XCTAssertTrue(
      eventually {
        guard let client = try? EchoClient(port: server.port) else { return false }
        return client.exchange([1], until: 1)
      })
    XCTAssertEqual(server.stop(), 0)
    withExtendedLifetime(directory) {}
  }

  func testIdleConnectionsAreClosed() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "1M", "--idle-timeout", "0.3"])
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1, 2], until: 2))
    XCTAssertFalse(client.exchange([], until: 3, seconds: 20))
    XCTAssertTrue(client.isClosed)
    XCTAssertTrue(server.logged.contains("idle for"))
    // Opened, data, closed.
    XCTAssertTrue(
      eventually { (try? server.verify())?.output.contains(" 3 records") ?? false },
      "the closing is not in the journal")
    XCTAssertEqual(server.stop(), 0)
    withExtendedLifetime(directory) {}
  }

  func testConnectionsThatReset() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "16M"])
    for round in 0..<200 {
      let client = try EchoClient(port: server.port)
      XCTAssertGreaterThan(client.sendUntilStuck([1, 2, 3], patience: 5), 0)
      if round % 2 == 0 { client.reset() }
    }
    let last = try EchoClient(port: server.port)
    XCTAssertTrue(last.exchange([9], until: 1))
    XCTAssertEqual(server.stop(), 0, server.logged)
    try assertSound(server)
    withExtendedLifetime(directory) {}
  }

  func testAFullDisk() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 24)
    let server = try EchoServer(disk.path.appending("data"), ["--segment-size", "4M"])
    let bytes = randomBytes(40 << 20)
    let client = try EchoClient(port: server.port)
    XCTAssertFalse(client.exchange(bytes, until: bytes.count), "there was room for everything")
    XCTAssertTrue(client.isClosed, "the client was not closed")
    XCTAssertTrue(
      server.logged.contains("closed: the journal failed: no room for a segment of 4MiB"),
      server.logged)
    // Nothing was echoed that is not durable.
    let row = try XCTUnwrap(server.list().first)
    let replayed = try server.replay(row.connection)
    XCTAssertGreaterThanOrEqual(replayed.count, client.received.count)
    XCTAssertTrue(bytes[..<client.received.count] == client.received[...])

    // Others get the same answer while it lasts (the last segment may have room for a little), and
    // service when there is room again.
    let more = Array(bytes[..<(5 << 20)])
    let refused = try EchoClient(port: server.port)
    XCTAssertFalse(refused.exchange(more, until: more.count))
    XCTAssertTrue(refused.isClosed)
    let trim = try EchoServer.command("trim", server.data.string, "--before", "4")
    XCTAssertEqual(trim.status, 0, trim.errors)
    XCTAssertEqual(trim.output, "3 segments deleted, 12MiB; the journal begins with segment 4\n")
    XCTAssertTrue(
      eventually {
        guard let client = try? EchoClient(port: server.port) else { return false }
        return client.exchange(more, until: more.count)
      }, "no service, though there is room again")
    XCTAssertEqual(server.stop(), 0)
    try assertSound(server)
    // Nor is there for the first segment of another.
    assertThrows(
      try EchoServer(disk.path.appending("other"), ["--segment-size", "1G"]),
      "make some, trim the journal, or choose a smaller --segment-size")
  }

  /// A write fails, and the next segment is written well: the journal is sound, and knows every
  /// connection that it has bytes of.
  func testAFailedWrite() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let bytes = randomBytes(20_000)
    // In turn: bytes are lost, and nothing but an opening is.
    for segment in 1...2 {
      let client = try EchoClient(port: server.port)
      XCTAssertTrue(client.exchange(bytes, until: bytes.count))
      let spare = data.appending("segment-000000000\(segment + 1).journal").string
      XCTAssertTrue(eventually { FileManager.default.fileExists(atPath: spare) })
      // The segment is written beyond that, the spare is not.
      try server.limitFiles(to: "8192")
      let loser = segment == 1 ? client : try EchoClient(port: server.port)
      let more = segment == 1 ? bytes : []
      XCTAssertFalse(loser.exchange(more, until: 2 * bytes.count, seconds: 20))
      XCTAssertTrue(loser.isClosed, server.logged)
      XCTAssertTrue(
        server.logged.contains("segment-000000000\(segment).journal: File too large"), server.logged
      )
      try server.limitFiles(to: "unlimited")
    }
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1], until: 1))
    XCTAssertEqual(server.stop(), 0, server.logged)
    try assertSound(server)
    XCTAssertFalse(try server.list().contains { $0.peer == nil })
    withExtendedLifetime(directory) {}
  }

  /// What could be lost unnoticed is an error: the last batch, and the mark outside of it.
  func testAnEndThatCannotBeMarked() throws {
    // Neither can be written; only the last batch, which is behind the others, cannot.
    for limit in ["1024", "8192"] {
      let (directory, data) = try data()
      let server = try EchoServer(data, ["--segment-size", "1M"])
      let client = try EchoClient(port: server.port)
      XCTAssertTrue(client.exchange([1], until: 1))
      let spare = data.appending("segment-0000000002.journal").string
      XCTAssertTrue(eventually { FileManager.default.fileExists(atPath: spare) })
      if limit == "8192" {
        XCTAssertTrue(client.exchange(randomBytes(20_000), until: 20_001))
      }
      try server.limitFiles(to: limit)
      XCTAssertEqual(server.stop(), 1, server.logged)
      withExtendedLifetime(directory) {}
    }
  }

  /// Only a full disk is called one.
  func testASegmentThatCannotBeMade() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "1M"])
    try server.limitFiles(to: "65536")
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1], until: 1))
    XCTAssertTrue(
      eventually { server.logged.contains("cannot make the journal's next segment") }, server.logged
    )
    XCTAssertFalse(server.logged.contains("no room"), server.logged)
    try server.limitFiles(to: "unlimited")
    XCTAssertTrue(
      eventually { server.logged.contains("the journal has its next segment") }, server.logged)
    XCTAssertEqual(server.stop(), 0)
    withExtendedLifetime(directory) {}
  }

  /// Fewer connections than asked for, rather than a journal without descriptors.
  func testALimitOnOpenFiles() throws {
    let (directory, data) = try data()
    func server(_ limit: String) throws -> EchoServer {
      try EchoServer(
        data, ["--segment-size", "1M"],
        under: ["/bin/sh", "-c", "ulimit -n \(limit); exec \"$@\"", "sh"])
    }
    let few = try server("74")
    XCTAssertTrue(few.logged.contains("--max-connections 1024: at most 10"), few.logged)
    let clients = try (0..<10).map { _ in try EchoClient(port: few.port) }
    for client in clients { XCTAssertTrue(client.exchange([1], until: 1)) }
    let eleventh = try EchoClient(port: few.port)
    XCTAssertFalse(eleventh.exchange([1], until: 1))
    // Segments can be made, and nobody is closed for that.
    let bytes = randomBytes(3_000_000)
    XCTAssertTrue(clients[0].exchange(bytes, until: bytes.count + 1))
    for client in clients[1...] { XCTAssertTrue(client.exchange([2], until: 2)) }
    XCTAssertEqual(few.stop(), 0, few.logged)
    assertThrows(try server("64"), "raise the limit")
    // A soft limit is raised.
    let raised = try EchoServer(
      data, ["--segment-size", "1M"],
      under: ["/bin/sh", "-c", "ulimit -Sn 64; exec \"$@\"", "sh"])
    XCTAssertFalse(raised.logged.contains("at most"), raised.logged)
    let limits = try String(
      contentsOfFile: "/proc/\(raised.process.processIdentifier)/limits", encoding: .utf8)
    let line = try XCTUnwrap(limits.split(separator: "\n").first { $0.contains("Max open files") })
    XCTAssertTrue(line.contains(" 1088 "), "\(line)")
    XCTAssertEqual(raised.stop(), 0)
    withExtendedLifetime(directory) {}
  }

  // MARK: Wrong use

  /// A server takes no processor time when nothing happens, also while clients are there.
  func testAnIdleServerRests() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let clients = try (0..<4).map { _ in try EchoClient(port: server.port) }
    for client in clients { XCTAssertTrue(client.exchange([1], until: 1)) }
    // Of the main thread, and of every other.
    func processorTime() -> Int {
      let tasks = "/proc/\(server.process.processIdentifier)/task"
      let all = (try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? []
      return all.reduce(0) { sum, task in
        let text = try? String(contentsOfFile: "\(tasks)/\(task)/schedstat", encoding: .utf8)
        return sum + (text?.split(separator: " ").first.flatMap { Int($0) } ?? 0)
      }
    }
    // Over a span in which looking for events, had it gone on, would have taken 200 ms.
    let rests = eventually {
      let before = processorTime()
      usleep(200_000)
      // In nanoseconds.
      return before > 0 && processorTime() - before < 2_000_000
    }
    XCTAssertTrue(rests, "an idle server keeps working")
    // And it answers after that.
    for client in clients { XCTAssertTrue(client.exchange([2], until: 2)) }
    XCTAssertEqual(server.stop(), 0, server.logged)
    withExtendedLifetime(directory) {}
  }

  func testASecondDaemonIsRefused() throws {
    let (directory, data) = try data()
    let server = try EchoServer(data, ["--segment-size", "1M"])
    assertThrows(
      try EchoServer(data, ["--segment-size", "1M"]),
      "another echo-to-disk is writing to this directory")
    XCTAssertEqual(server.stop(), 0)
    let next = try EchoServer(data, ["--segment-size", "1M"])
    XCTAssertEqual(next.stop(), 0)
    withExtendedLifetime(directory) {}
  }

  func testALimitOnTheSizeOfFiles() throws {
    let (directory, data) = try data()
    assertThrows(
      try EchoServer(
        // The Thread Sanitizer makes a small file of its own.
        data, ["--segment-size", "8M"],
        under: ["/bin/sh", "-c", "ulimit -f 8000; exec \"$@\"", "sh"]),
      "a segment of 8MiB in \(data) passes `ulimit -f` or the filesystem's limit: choose a smaller")
    withExtendedLifetime(directory) {}
  }

  func testWrongUse() throws {
    let directory = try temporaryDirectory()
    let nowhere = directory.path.appending("nowhere").string
    let journal = directory.path.appending("journal")
    _ = try HandMadeJournal(in: journal)
    for (arguments, status, words) in [
      (["--segment-size", "10k"], Int32(64), "--segment-size 10KiB: 1MiB to 1TiB"),
      (["--segment-size", "lots"], 64, "The value 'lots' is invalid for '--segment-size <bytes>'"),
      (["--segment-size", "1048577"], 64, "a multiple of 4KiB"),
      (["--queue-depth", "0"], 64, "--queue-depth 0: 1 to 4096"),
      // The loop of its own that this was for is no more.
      (["--poll", "100"], 64, "Unknown option '--poll'"),
      (["--max-connections", "0"], 64, "--max-connections 0"),
      (["--idle-timeout", "-1"], 64, "Missing value for '--idle-timeout <seconds>'"),
      (["--port", "99999"], 64, "--port 99999: 0 to 65535"),
      (["--sync", "always"], 64, "The value 'always' is invalid for '--sync <sync>'"),
      (
        ["--host", "no.such.host.invalid", "--data", nowhere], 1,
        "cannot listen on no.such.host.invalid:7777:"
      ),
      (["--data", "/proc/nowhere"], 1, "--data /proc/nowhere: No such file or directory"),
      (["--unix", String(repeating: "x", count: 200), "--data", nowhere], 1, "1 to 107 bytes"),
      (["list", nowhere + "2"], 1, "nowhere2: No such file or directory"),
      (["list", directory.path.string], 1, "no journal here"),
      (["verify", directory.path.string], 1, "no journal here"),
      (["trim", directory.path.string, "--before", "1"], 1, "no journal here"),
      (["replay", nowhere], 64, "Missing expected argument '--connection <n>'"),
      (["replay", journal.string, "--connection", "77"], 1, "no connection 77 in"),
    ] {
      let run = try ChildProcess.run(
        ChildProcess.built("echo-to-disk"),
        arguments.first?.hasPrefix("--") == true
          ? arguments
            + ["--segment-size", "1M"].filter { _ in !arguments.contains("--segment-size") }
          : arguments)
      XCTAssertEqual(run.status, status, "\(arguments): \(run.errors)")
      XCTAssertTrue(run.errors.contains(words), "\(arguments): \(run.errors)")
      XCTAssertEqual(run.output, "", "\(arguments)")
    }
  }

  private func assertThrows<Value>(
    _ body: @autoclosure () throws -> Value, _ words: String, file: StaticString = #filePath,
    line: UInt = #line
  ) {
    XCTAssertThrowsError(try body(), file: file, line: line) {
      XCTAssertTrue("\($0)".contains(words), "\($0)", file: file, line: line)
    }
  }
}
