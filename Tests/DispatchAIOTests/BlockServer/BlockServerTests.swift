// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import BlockServer

/// The block device server as a process, with clients that say exactly what is meant.
final class BlockServerTests: XCTestCase {
  static let megabyte = 1 << 20

  /// A server of one export, `disk`.
  private func serve(
    _ bytes: [UInt8], _ options: [String] = [], in directory: TemporaryDirectory? = nil
  ) throws -> NBDServer {
    let directory = try directory ?? temporaryDirectory()
    let path = directory.path.appending("disk").string
    try Data(bytes).write(to: URL(fileURLWithPath: path))
    return try NBDServer(directory, ["disk"], options)
  }

  private func contents(_ server: NBDServer) throws -> [UInt8] {
    try server.directory.contents("disk")
  }

  // MARK: Reading and writing

  func testReadsAndWritesOfAnyPlaceAndLength() throws {
    // No multiple of a block.
    var expected = randomBytes(3 * Self.megabyte + 777)
    let server = try serve(expected)
    let client = try NBDClient(server)
    XCTAssertEqual(client.size, UInt64(expected.count))
    try Seeds.run(default: 1) { seed in
      var generator = SeededGenerator(seed: seed)
      for step in 0..<300 {
        let most = generator.oneIn(10) ? 2_500_000 : generator.oneIn(3) ? 20_000 : 1500
        var range = 0..<0
        switch Int.random(in: 0..<4, using: &generator) {
        case 0:  // Aligned.
          let from = Int.random(in: 0..<700, using: &generator) * 4096
          range = from..<from + 4096 * Int.random(in: 1...4, using: &generator)
        case 1:  // At the end.
          range = (expected.count - Int.random(in: 1...most, using: &generator))..<expected.count
        default:
          let from = Int.random(in: 0..<expected.count, using: &generator)
          range = from..<min(expected.count, from + Int.random(in: 1...most, using: &generator))
        }
        let why = "\(Seeds.replay(seed)), step \(step), \(range)"
        switch Int.random(in: 0..<5, using: &generator) {
        case 0, 1:
          let bytes = [UInt8](
            repeating: UInt8.random(in: 0...255, using: &generator), count: range.count)
          try client.write(bytes, at: range.lowerBound, flags: generator.oneIn(4) ? .fua : [])
          expected.replaceSubrange(range, with: bytes)
        case 2:
          let flags: NBD.CommandFlags = generator.oneIn(2) ? .noHole : []
          let reply = try client.call(
            .writeZeroes, flags: flags, at: range.lowerBound, count: range.count)
          XCTAssertEqual(reply.error, 0, why)
          expected.replaceSubrange(range, with: repeatElement(0, count: range.count))
        default:
          let read = try client.read(range)
          XCTAssertTrue(isPrefix(read, of: Array(expected[range])), why)
          XCTAssertEqual(read.count, range.count, why)
        }
      }
    }
    XCTAssertEqual(server.stop(), 0, server.logged)
    let file = try contents(server)
    XCTAssertEqual(file.count, expected.count)
    XCTAssertTrue(file == expected)
  }

  /// Writes that touch neighbouring bytes of the same blocks, many at once on several connections
  /// and loops: none undoes another.
  func testUnalignedWritesKeepOutOfEachOthersWay() throws {
    let size = 64 << 10
    let server = try serve([UInt8](repeating: 0, count: size), ["--loops", "2"])
    let clients = 4
    // Client c owns the bytes whose number is c modulo 4, in stripes of 100, and one of whole
    // blocks among them.
    onThreads(clients) { number in
      do {
        let client = try NBDClient(server)
        var pending = 0
        for round in 1...8 {
          for stripe in stride(from: number, to: size / 100, by: clients) {
            try client.ask(
              .write, at: stripe * 100,
              payload: [UInt8](repeating: UInt8(round * 16 + number), count: 100))
            pending += 1
            if pending == 32 {
              XCTAssertEqual(try client.reply().error, 0)
              pending -= 1
            }
          }
        }
        while pending > 0 {
          XCTAssertEqual(try client.reply().error, 0)
          pending -= 1
        }
      } catch { XCTFail("\(error)") }
    }
    XCTAssertEqual(server.stop(), 0, server.logged)
    let file = try contents(server)
    for stripe in 0..<size / 100 {
      let expected = UInt8(8 * 16 + stripe % clients)
      XCTAssertTrue(
        file[stripe * 100..<stripe * 100 + 100].allSatisfy { $0 == expected }, "stripe \(stripe)")
    }
  }

  func testSimpleRepliesToOldClients() throws {
    let bytes = randomBytes(2 * Self.megabyte)
    let server = try serve(bytes)
    let client = try NBDClient(server, structured: false)
    XCTAssertEqual(client.flags & NBD.TransmissionFlags.sendDF.rawValue, 0)
    XCTAssertEqual(try client.read(0..<bytes.count), bytes)
    XCTAssertEqual(try client.call(.read, at: bytes.count, count: 1).error, 22)
    XCTAssertEqual(try client.read(1..<100), Array(bytes[1..<100]))
    XCTAssertEqual(server.stop(), 0)
  }

  func testTheLargestRequests() throws {
    let size = 33 << 20
    let bytes = randomBytes(size)
    let server = try serve(bytes)
    let client = try NBDClient(server)
    let most = 32 << 20
    XCTAssertEqual(try client.read(5..<5 + most), Array(bytes[5..<5 + most]))
    let whole = try client.call(.read, flags: .df, at: 0, count: most)
    XCTAssertEqual(whole.data.count, 1, "chunks")
    XCTAssertTrue(isPrefix(whole.bytes, of: bytes))
    XCTAssertEqual(try client.call(.read, at: 0, count: most + 1).error, 75)
    try client.write(Array(bytes[..<most].reversed()), at: 512)
    // Too large: refused, and its payload passed over.
    XCTAssertEqual(
      try client.call(.write, payload: [UInt8](repeating: 0, count: most + 1)).error, 22)
    XCTAssertEqual(try client.read(512..<512 + most), Array(bytes[..<most].reversed()))
    XCTAssertEqual(server.stop(), 0)
  }

  /// A small read overtakes large ones that were asked for before it. All read a hole, so that the
  /// order is the server's: mq-deadline, for one, has requests that follow each other on the disk
  /// pass a small one for up to half a second.
  func testLargeRequestsDoNotHoldUpSmallOnes() throws {
    let directory = try temporaryDirectory()
    let path = directory.path.appending("disk").string
    _ = FileManager.default.createFile(atPath: path, contents: nil)
    XCTAssertEqual(truncate(path, 64 << 20), 0)
    let server = try NBDServer(directory, ["disk"])
    let client = try NBDClient(server)
    // Each time the small one arrives at another moment of the server's work.
    for _ in 0..<8 {
      for part in 0..<3 { try client.ask(.read, at: part << 20, count: 32 << 20) }
      let small = try client.ask(.read, at: 4096, count: 512)
      XCTAssertEqual(try client.reply().cookie, small)
      for _ in 0..<3 { XCTAssertEqual(try client.reply().error, 0) }
    }
    XCTAssertEqual(server.stop(), 0)
  }

  // MARK: Holes

  func testBlockStatusTellsTheHoles() throws {
    let directory = try temporaryDirectory()
    let path = directory.path.appending("disk").string
    let mebibyte = Self.megabyte
    _ = FileManager.default.createFile(atPath: path, contents: nil)
    XCTAssertEqual(truncate(path, off_t(8 * mebibyte)), 0)
    let server = try NBDServer(directory, ["disk"])
    let client = try NBDClient(server)
    try client.write([UInt8](repeating: 1, count: mebibyte), at: 2 * mebibyte)
    func status(_ flags: NBD.CommandFlags = []) throws -> [[UInt32]] {
      try client.call(.blockStatus, flags: flags, at: 0, count: 8 * mebibyte).extents
        .map { [$0.length >> 20, $0.flags] }
    }
    guard try status().count > 1 else { throw XCTSkip("this filesystem tells of no holes") }
    XCTAssertEqual(try status(), [[2, 3], [1, 0], [5, 3]])
    XCTAssertEqual(try status(.requestOne), [[2, 3]])
    try client.write([UInt8](repeating: 1, count: 2 * mebibyte), at: 5 * mebibyte)
    XCTAssertEqual(try client.call(.trim, at: 5 * mebibyte, count: mebibyte).error, 0)
    XCTAssertEqual(try status(), [[2, 3], [1, 0], [3, 3], [1, 0], [1, 3]])
    XCTAssertEqual(
      try client.call(.writeZeroes, flags: .fastZero, at: 2 * mebibyte, count: mebibyte).error, 0)
    XCTAssertEqual(try status(), [[6, 3], [1, 0], [1, 3]])
    let used = try XCTUnwrap(
      FileManager.default.attributesOfItem(atPath: path)[.size] as? Int)
    XCTAssertEqual(used, 8 * mebibyte)
    XCTAssertEqual(server.stop(), 0)
  }

  /// Goal: what somebody has cut off the file is not taken for zeros: neither a read of it nor its
  /// block status says so, and the log says what is wrong.
  func testAFileThatIsCut() throws {
    let mebibyte = Self.megabyte
    let server = try serve([UInt8](repeating: 1, count: 4 * mebibyte))
    let client = try NBDClient(server)
    let path = server.directory.path.appending("disk").string
    XCTAssertEqual(truncate(path, off_t(2 * mebibyte + 777)), 0)
    func status(_ range: Range<Int>) throws -> [[UInt32]] {
      try client.call(.blockStatus, at: range.lowerBound, count: range.count).extents
        .map { [$0.length, $0.flags] }
    }
    let extents = try status(0..<4 * mebibyte)
    XCTAssertEqual(extents.map { $0[0] }.reduce(0, +), UInt32(4 * mebibyte))
    XCTAssertTrue(extents.allSatisfy { $0[1] == 0 }, "\(extents)")
    XCTAssertEqual(try status(3 * mebibyte..<4 * mebibyte), [[UInt32(mebibyte), 0]])
    XCTAssertEqual(try client.call(.read, at: 3 * mebibyte, count: 4096).error, 5)
    XCTAssertTrue(
      eventually {
        server.logged.contains(
          "read of 4096 bytes at offset \(3 * mebibyte) of disk: the file ends before; it "
            + "had \(4 * mebibyte) bytes")
      }, server.logged)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// A file whose end falls into a page: nothing of it keeps its room.
  func testTheLastPageIsTrimmedToo() throws {
    let size = 3 * 4096 + 777
    let server = try serve([UInt8](repeating: 1, count: size))
    let client = try NBDClient(server)
    for command in [NBD.Command.trim, .writeZeroes] {
      try client.write([UInt8](repeating: 1, count: size), at: 0)
      XCTAssertEqual(try client.call(.flush).error, 0)
      XCTAssertEqual(try client.call(command, at: 4096, count: size - 4096).error, 0)
      let extents = try client.call(.blockStatus, at: 0, count: size).extents
      guard extents.count > 1 else { throw XCTSkip("this filesystem tells of no holes") }
      XCTAssertEqual(extents.map(\.length), [4096, UInt32(size) - 4096])
      XCTAssertEqual(extents.map(\.flags), [0, 3])
      XCTAssertEqual(try client.read(0..<4097), [UInt8](repeating: 1, count: 4096) + [0])
    }
    XCTAssertEqual(server.stop(), 0, server.logged)
    XCTAssertEqual(try contents(server).count, size)
  }

  /// An export of no bytes is one in which nothing can be read.
  func testAnEmptyFile() throws {
    let server = try serve([])
    XCTAssertTrue(server.logged.contains("has 0 bytes"), server.logged)
    let client = try NBDClient(server)
    XCTAssertEqual(client.size, 0)
    XCTAssertEqual(try client.call(.read, at: 0, count: 1).error, 22)
    XCTAssertEqual(try client.call(.write, payload: [1]).error, 28)
    XCTAssertEqual(try client.call(.trim, at: 0, count: 0).error, 0)
    XCTAssertEqual(try client.call(.flush).error, 0)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// A request of no bytes succeeds, at any place up to the end, and changes nothing.
  func testRequestsOfNoBytes() throws {
    let bytes = randomBytes(5000)
    let server = try serve(bytes)
    for structured in [true, false] {
      let client = try NBDClient(server, structured: structured)
      for offset in [0, 10, 5000] {
        for command in [NBD.Command.read, .write, .trim, .writeZeroes, .cache] {
          let reply = try client.call(command, at: offset, count: 0)
          XCTAssertEqual(reply.error, 0, "\(command) at \(offset)")
          XCTAssertEqual(reply.bytes, [])
        }
      }
      XCTAssertEqual(try client.call(.read, at: 5001, count: 0).error, 22)
    }
    XCTAssertEqual(server.stop(), 0)
    XCTAssertTrue(try contents(server) == bytes)
  }

  /// Paths in which there is a `=`, and names.
  func testNames() throws {
    let directory = try temporaryDirectory()
    for name in ["a=b", "c"] { _ = try directory.makeFile(name, size: 4096) }
    let server = try NBDServer(directory, ["a=b", "d=c"])
    for name in ["a=b", "d"] { XCTAssertEqual(try NBDClient(server, export: name).size, 4096) }
    XCTAssertThrowsError(try NBDClient(server, export: "c"))
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  // MARK: Options and ends

  func testReadOnlyExportsStayAsTheyAre() throws {
    let bytes = randomBytes(Self.megabyte)
    let server = try serve(bytes, ["--read-only"])
    let client = try NBDClient(server)
    XCTAssertNotEqual(client.flags & NBD.TransmissionFlags.readOnly.rawValue, 0)
    XCTAssertEqual(try client.call(.write, payload: [1, 2, 3]).error, 1)
    XCTAssertEqual(try client.call(.trim, at: 0, count: 4096).error, 1)
    XCTAssertEqual(try client.call(.writeZeroes, at: 0, count: 4096).error, 1)
    XCTAssertEqual(try client.call(.flush).error, 0)
    XCTAssertEqual(try client.read(0..<bytes.count), bytes)
    XCTAssertEqual(server.stop(), 0)
  }

  func testRequestsInFlightAreAnsweredBeforeTheEnd() throws {
    let server = try serve([UInt8](repeating: 3, count: 8 * Self.megabyte))
    let client = try NBDClient(server)
    for part in 0..<8 { try client.ask(.read, at: part << 20, count: 1 << 20) }
    // The first reply shows that the server has them.
    _ = try client.reply()
    kill(server.process.processIdentifier, SIGTERM)
    for _ in 1..<8 { XCTAssertEqual(try client.reply().bytes.count, 1 << 20) }
    XCTAssertTrue(client.isClosedSoon())
    server.process.waitForEnd()
    XCTAssertEqual(server.process.terminationStatus, 0)
  }

  func testAClientThatLeavesIsAnsweredFirst() throws {
    let server = try serve([UInt8](repeating: 3, count: Self.megabyte))
    let client = try NBDClient(server)
    try client.ask(.read, at: 0, count: 4096)
    try client.ask(.disconnect)
    XCTAssertEqual(try client.reply().bytes.count, 4096)
    XCTAssertTrue(client.isClosedSoon())
    XCTAssertEqual(server.stop(), 0)
  }

  /// The end of the input arrives together with the last request, and is announced once only.
  func testTheEndMayComeWithTheLastRequest() throws {
    let server = try serve([UInt8](repeating: 3, count: Self.megabyte))
    let bytes =
      Message.clientFlags() + Message.option(7, Message.info("disk", []))
      + Message.request(0, offset: 0, length: 4096)
    for _ in 0..<50 {
      let client = try NBDClient(connect: server.socket)
      try client.send(bytes)
      shutdown(client.socket, Int32(SHUT_WR))
      XCTAssertTrue(client.isClosedSoon())
    }
    XCTAssertEqual(server.stop(), 0)
  }

  /// What a server needs it has before it listens: descriptors may be used up later. (Here the
  /// worker wakes the loop, which waits for more requests of a client that has just made some.)
  func testNoDescriptorIsMadeLater() throws {
    let server = try serve([UInt8](repeating: 1, count: 1 << 20))
    let client = try NBDClient(server)
    // Which leads to waits of the loop.
    for _ in 0..<100 { XCTAssertEqual(try client.read(0..<1), [1]) }
    var before = server.descriptors
    for _ in 0..<3000 {
      XCTAssertEqual(try client.read(0..<512).count, 512)
      XCTAssertEqual(try client.call(.blockStatus, count: 1 << 20).error, 0)
    }
    // Dispatch may close a timer's in between.
    for descriptor in server.descriptors {
      guard let index = before.firstIndex(of: descriptor) else {
        XCTFail("\(descriptor) was made later")
        continue
      }
      before.remove(at: index)
    }
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  func testBadArguments() throws {
    let directory = try temporaryDirectory()
    let path = directory.path
    for name in ["full", "other"] { _ = try directory.makeFile(name, size: 4096) }
    let note = try directory.makeFile("note", size: 10) { _ in 65 }.string
    let server = try NBDServer(directory, ["other"])
    let program = try ChildProcess.built("aio-nbd")
    let full = path.appending("full").string
    let table: [([String], String)] = [
      ([], "file"),
      ([path.appending("none").string], "No such file"),
      ([path.string], "it is no regular file and no block device"),
      (["/dev/null"], "it is no regular file and no block device"),
      ([full, "x/../\(full)"], "two exports would be named 'full'"),
      (["=\(full)"], "neither a file nor NAME=PATH"),
      ([full, "--port", "70000"], "--port 70000: 0 to 65535"),
      ([full, "--loops", "0"], "--loops 0: 1 to 64"),
      ([full, "--handshake-limit=-1"], "--handshake-limit -1.0: seconds, 0, or 0.001"),
      ([full, "--queue-depth", "0"], "--queue-depth 0: 1 to 4096"),
      // The loop of its own that this was for is no more.
      ([full, "--linger", "500"], "Unknown option '--linger'"),
      ([full, "--unix", server.socket], "another server answers there"),
      ([full, "--unix", note], "a file of that name is there, and it is no socket"),
      ([path.appending("other").string], "is an export already"),
      ([path.appending("other").string, "--read-only"], "is an export already"),
      (["a=\(full)", "b=\(full)"], "is an export already"),
      ([full, "--unix", "x", "--port", "1"], "either that, or --host and --port"),
      ([full, "--inetd"], "no connected socket"),
      ([full, "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid:10809"),
    ]
    for (arguments, expected) in table {
      let run = try ChildProcess.run(program, arguments, seconds: 20)
      XCTAssertNotEqual(run.status, 0, "\(arguments)")
      XCTAssertFalse(run.wasSignalled, "\(arguments)")
      XCTAssertTrue(run.errors.contains(expected), "\(arguments): \(run.errors)")
    }
    XCTAssertEqual(try directory.contents("note"), [UInt8](repeating: 65, count: 10))
    XCTAssertEqual(server.stop(), 0)
  }

  /// A socket pair's end as standard input: served once, and then the server ends.
  func testInetd() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile("disk", size: 10_000)
    var ends: [Int32] = [0, 0]
    XCTAssertEqual(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends), 0)
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try ChildProcess.built("aio-nbd"))
    process.arguments = ["serve", "--inetd", path.string]
    process.standardInput = FileHandle(fileDescriptor: ends[1], closeOnDealloc: true)
    let output = Pipe()
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try process.run()
    let client = try NBDClient(ends[0], export: "")
    XCTAssertEqual(client.size, 10_000)
    XCTAssertEqual(try client.read(9990..<10_000), (9990..<10_000).map { UInt8($0 & 0xff) })
    try client.ask(.disconnect)
    process.waitForEnd()
    XCTAssertEqual(process.terminationStatus, 0)
    XCTAssertEqual(output.fileHandleForReading.readDataToEndOfFile(), Data())
  }

  /// A listening socket that is there already, as descriptor 3.
  func testSocketActivation() throws {
    let directory = try temporaryDirectory()
    let disk = try directory.makeFile("disk", size: 10_000)
    let path = directory.path.appending("socket").string
    let listening = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = NBDClient.address(path)
    let bound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(listening, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    XCTAssertEqual(bound, 0)
    XCTAssertEqual(listen(listening, 5), 0)
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    // `exec` keeps the process, and so its number.
    process.arguments = [
      "-c", #"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@""#, "sh",
      try ChildProcess.built("aio-nbd"), "serve", disk.string,
    ]
    process.standardInput = FileHandle(fileDescriptor: listening, closeOnDealloc: true)
    let output = Pipe()
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try process.run()
    defer { if process.isRunning { process.kill() } }
    // The kernel lets clients connect before anybody accepts.
    for _ in 0..<2 {
      let client = try NBDClient(NBDClient.connect(path), export: "")
      XCTAssertEqual(try client.read(9990..<10_000), (9990..<10_000).map { UInt8($0 & 0xff) })
    }
    kill(process.processIdentifier, SIGTERM)
    process.waitForEnd()
    XCTAssertEqual(process.terminationStatus, 0)
    XCTAssertEqual(output.fileHandleForReading.readDataToEndOfFile(), Data())
  }

  /// A block device with sectors of 4096 bytes: what is smaller is read, modified and written.
  func testABlockDevice() throws {
    let directory = try temporaryDirectory()
    let device = try LoopDevice(in: directory, megabytes: 8, sectorSize: 4096)
    let server = try NBDServer(directory, ["disk=\(device.path)"])
    let client = try NBDClient(server)
    XCTAssertEqual(client.size, 8 << 20)
    var expected = randomBytes(100_000)
    try client.write(expected, at: 4096 - 3)
    try client.write([1, 2, 3], at: 8000, flags: .fua)
    expected.replaceSubrange(8000 - 4093..<8003 - 4093, with: [1, 2, 3])
    XCTAssertEqual(try client.call(.writeZeroes, at: 20_001, count: 30_000).error, 0)
    expected.replaceSubrange(
      20_001 - 4093..<50_001 - 4093, with: repeatElement(0, count: 30_000))
    XCTAssertEqual(try client.call(.trim, at: 1 << 20, count: 1 << 20).error, 0)
    XCTAssertEqual(try client.call(.flush).error, 0)
    let read = try client.read(4093..<104_093)
    XCTAssertTrue(read == expected)
    XCTAssertEqual(
      try client.call(.blockStatus, count: 8 << 20).extents.reduce(0) { $0 + Int($1.length) },
      8 << 20)
    XCTAssertEqual(server.stop(), 0, server.logged)
    let image = try directory.contents("image")
    XCTAssertTrue(Array(image[4093..<104_093]) == expected)
  }

  /// Those who never choose an export lose their place; those who have, may take their time.
  func testAHandshakeIsNotForever() throws {
    let server = try serve(
      [UInt8](repeating: 3, count: 4096), ["--handshake-limit", "0.5", "--max-connections", "3"])
    let good = try NBDClient(server)
    let silent = try NBDClient(connect: server.socket)
    let half = try NBDClient(connect: server.socket)
    try half.send(Message.clientFlags() + Message.option(3))
    XCTAssertTrue(silent.isClosedSoon())
    XCTAssertTrue(half.isClosedSoon())
    XCTAssertTrue(
      eventually { server.logged.contains("has chosen no export within 0.5 seconds") },
      server.logged)
    XCTAssertEqual(try NBDClient(server).read(0..<1), [3])
    XCTAssertEqual(try good.read(0..<1), [3])
    XCTAssertEqual(server.stop(), 0)
  }

  func testTooManyConnectionsAreRefused() throws {
    let server = try serve([UInt8](repeating: 3, count: 4096), ["--max-connections", "2"])
    let first = try NBDClient(server)
    let second = try NBDClient(server)
    XCTAssertThrowsError(try NBDClient(server))
    XCTAssertEqual(try first.read(0..<1), [3])
    XCTAssertEqual(try second.read(0..<1), [3])
    XCTAssertEqual(server.stop(), 0)
  }

  /// A write whose reply came, followed by a flush whose reply came, is there after kill -9.
  func testNothingFlushedIsLostByKill() throws {
    let rounds = Int(ProcessInfo.processInfo.environment["NBD_KILLS"] ?? "") ?? 3
    let directory = try temporaryDirectory()
    let blocks = 256
    var bytes = [UInt8](repeating: 0, count: blocks * 4096)
    for round in 0..<rounds {
      let server = try serve(bytes, ["--loops", "2"], in: directory)
      /// Per block, the last number that a flush covered.
      let flushed = Locked([UInt32](repeating: 0, count: blocks))
      let flushes = Locked(0)
      let writers = DispatchGroup()
      for number in 0..<2 {
        DispatchQueue(label: "writer").async(group: writers) {
          var generator = SeededGenerator(seed: UInt64(round * 2 + number))
          var written: [Int: UInt32] = [:]
          guard let client = try? NBDClient(server) else { return XCTFail("no connection") }
          // Ends when the server is killed.
          for count in UInt32(1)... {
            // Each writer has every other block; an unaligned write is one, too.
            let block = Int.random(in: 0..<blocks / 2, using: &generator) * 2 + number
            let stamp = Message.bytes(count)
            do {
              if generator.oneIn(2) {
                try client.write(stamp, at: block * 4096 + 100)
              } else {
                var whole = [UInt8](repeating: 7, count: 4096)
                whole.replaceSubrange(100..<104, with: stamp)
                try client.write(whole, at: block * 4096)
              }
              written[block] = count
              if count % 10 == 0 {
                guard try client.call(.flush).error == 0 else { return XCTFail("flush") }
                flushed.withLock { for (block, count) in written { $0[block] = count } }
                flushes.withLock { $0 += 1 }
              }
            } catch { return }
          }
        }
      }
      XCTAssertTrue(eventually { flushes.withLock { $0 } >= 20 + 10 * round })
      server.kill()
      XCTAssertEqual(writers.wait(timeout: .now() + 60), .success)
      bytes = try contents(server)
      for (block, count) in flushed.withLock({ $0 }).enumerated() where count > 0 {
        let found: UInt32 = bytes.withUnsafeBytes { $0.number(at: block * 4096 + 100) }
        XCTAssertGreaterThanOrEqual(found, count, "round \(round), block \(block)")
      }
      bytes = [UInt8](repeating: 0, count: blocks * 4096)
    }
  }

  // MARK: Hostile clients

  func testHalfMessagesAndDisconnects() throws {
    let server = try serve([UInt8](repeating: 9, count: 4 * Self.megabyte))
    let good = try NBDClient(server)
    let beginnings: [[UInt8]] = [
      [], [0], Message.clientFlags(), Message.clientFlags() + Array("IHAVE".utf8),
      Message.clientFlags() + Message.optionHeader(7, length: 4000),
      Message.clientFlags() + Message.optionHeader(7, length: 4_000_000) + [1, 2, 3],
      Message.clientFlags() + Message.optionHeader(1, length: .max),
      Array("GET / HTTP/1.1\r\n\r\n".utf8), [UInt8](repeating: 0xff, count: 100_000),
    ]
    for beginning in beginnings {
      let client = try NBDClient(connect: server.socket)
      try? client.send(beginning)
    }
    // And in the transmission phase, with requests under way.
    for (index, ending) in [
      Message.request(1, offset: 0, length: 32 << 20) + [1, 2, 3],
      Array(Message.request(0, offset: 0, length: 512)[..<20]), [0, 0, 0, 0],
    ].enumerated() {
      let client = try NBDClient(server)
      for part in 0..<4 { try client.ask(.read, at: part << 20, count: 1 << 20) }
      try client.ask(.writeZeroes, at: index << 12, count: 100)
      try client.ask(.write, at: 100, payload: [UInt8](repeating: 1, count: 1000))
      try client.send(ending)
    }
    XCTAssertEqual(try good.read(1_000_000..<1_000_001), [9])
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// Clients that ask for all they can and take nothing: the server's memory stays within what it
  /// says.
  func testMemoryIsBounded() throws {
    let size = 64 << 20
    let server = try serve([UInt8](repeating: 9, count: size))
    let before = server.peakMemory
    var clients: [NBDClient] = []
    for _ in 0..<3 {
      let client = try NBDClient(server)
      clients.append(client)
      // 50 GB of replies.
      _ = fcntl(client.socket, F_SETFL, fcntl(client.socket, F_GETFL) | O_NONBLOCK)
      for count in 0..<2000 {
        guard
          (try? client.ask(
            .read, at: count % 16 << 20, count: count % 2 == 0 ? 32 << 20 : 256 << 10))
            != nil
        else { break }
      }
    }
    for _ in 0..<3 {
      // Half of a largest write each.
      let client = try NBDClient(server)
      clients.append(client)
      try client.send(Message.request(1, offset: 0, length: 32 << 20))
      try client.send([UInt8](repeating: 1, count: 16 << 20))
    }
    // Others are served meanwhile.
    XCTAssertEqual(try NBDClient(server).read(0..<512).count, 512)
    let bound = MemoryBudget.small + MemoryBudget.large + Self.megabyte
    XCTAssertLessThan(server.peakMemory - before, 6 * bound + (64 << 20))
    clients = []
    XCTAssertEqual(try NBDClient(server).read(0..<512).count, 512)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }
}
