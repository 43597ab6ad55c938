// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import BlockServer

/// Clients of aio-nbd that say what no client should: a healthy one, of the same loop and memory,
/// is served exactly meanwhile, and nothing of the others stays.
final class NBDFuzzTests: XCTestCase {
  private static let size = 64 << 20
  /// The name is unlike that of the export the hostile clients know, so that no mutation meets it.
  private static let healthyExport = "0123456789"

  func testHostileClients() throws {
    Fuzzing.limitQuarantine()
    let directory = try temporaryDirectory()
    for name in ["disk", Self.healthyExport] {
      let path = directory.path.appending(name).string
      XCTAssertTrue(FileManager.default.createFile(atPath: path, contents: nil))
      XCTAssertEqual(truncate(path, off_t(Self.size)), 0)
    }
    let server = try NBDServer(
      directory, ["disk", Self.healthyExport],
      ["--memory", "64", "--handshake-limit", "2", "--stall-limit", "2"])
    let disk = try HealthyDisk(server, Self.healthyExport, size: Self.size)
    let fuzzed = FuzzedServer(
      server, directory, pools: BufferPool.mostUnused, healthy: disk.use)
    Fuzzing.rounds(of: "NBD", in: self) { try round(fuzzed, server, &$0, $1) }
    fuzzed.stop()
    XCTAssertTrue(try directory.contents(Self.healthyExport) == disk.contents)
  }

  private func round(
    _ fuzzed: FuzzedServer, _ server: NBDServer, _ generator: inout SeededGenerator, _ what: String
  ) throws {
    try fuzzed.round(what) {
      try (0..<Int.random(in: 1...24, using: &generator)).map { _ in
        FuzzClient(
          try NBDClient.connect(server.socket), FuzzScript(Self.bytes(&generator), &generator))
      }
    } checkReceived: {
      Self.checkReceived($0, what)
    }
  }

  /// Whatever a client says, the server speaks the protocol to it.
  private static func checkReceived(_ client: FuzzClient, _ what: String) {
    let greeting = Array("NBDMAGICIHAVEOPT".utf8) + [0, 3]
    XCTAssertTrue(
      client.received.prefix(18).elementsEqual(greeting.prefix(client.received.count)), what)
  }

  // MARK: What is said

  private static func bytes(_ generator: inout SeededGenerator) -> [UInt8] {
    switch Int.random(in: 0..<6, using: &generator) {
    case 0:
      return Message.conversation(&generator, exports: ["disk"], size: UInt64(size))
    case 1: return options(&generator)
    case 2, 3: return entry(&generator) + requests(&generator, most: 40)
    case 4: return entry(&generator) + flood(&generator)
    default:
      return Message.mutated(
        Message.conversation(&generator, exports: ["disk"], size: UInt64(size)), &generator)
    }
  }

  private static func entry(_ generator: inout SeededGenerator) -> [UInt8] {
    Message.clientFlags() + (generator.oneIn(3) ? [] : Message.option(8))
      + (generator.oneIn(3) ? [] : Message.option(10, Message.queries("disk", ["base:allocation"])))
      + (generator.oneIn(4)
        ? Message.option(1, Array("disk".utf8)) : Message.option(7, Message.info("disk", [3])))
  }

  /// Options whose lengths, and those within them, are anything.
  private static func options(_ generator: inout SeededGenerator) -> [UInt8] {
    let flags: [UInt32] = [0, 1, 2, 3, 3, 3, 3, 4, .max]
    var bytes = Message.clientFlags(flags.randomElement(using: &generator) ?? 3)
    for _ in 0..<Int.random(in: 1...60, using: &generator) {
      let option =
        generator.oneIn(9)
        ? UInt32.random(in: 0...(.max), using: &generator)
        : UInt32.random(in: 0...12, using: &generator)
      let name = generator.oneIn(3) ? String(repeating: "d", count: 4097) : "disk"
      var data: [UInt8] =
        switch Int.random(in: 0..<5, using: &generator) {
        case 0: []
        case 1: Message.info(name, [0, 1, 2, 3, .max])
        case 2: Message.queries(name, ["base:allocation", "", "base:"])
        case 3: Message.queries(name, [], count: edge(&generator))
        default: Message.bytes(edge(&generator) as UInt32) + Array(name.utf8) + [0, 9]
        }
      if generator.oneIn(20) { data = [UInt8](repeating: 1, count: 40 << 10) }
      if generator.oneIn(6) { data = Message.mutated(data, &generator) }
      var length = UInt32(data.count)
      if generator.oneIn(12) { length = edge(&generator) }
      bytes += Message.optionHeader(option, length: length) + data
    }
    return bytes
  }

  /// Requests whose every field is at an edge, or beyond.
  private static func requests(_ generator: inout SeededGenerator, most: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    for _ in 0..<Int.random(in: 1...most, using: &generator) {
      let command = generator.oneIn(12) ? .max : UInt16.random(in: 0...8, using: &generator)
      if command == 2, !generator.oneIn(6) { continue }
      let length = length(&generator)
      var request = Message.request(
        command,
        flags: generator.oneIn(3) ? .random(in: 0...(.max), using: &generator) & 0x3f : 0,
        cookie: .random(in: 0...(.max), using: &generator), offset: offset(length, &generator),
        length: length)
      if generator.oneIn(40) { request[.random(in: 0..<4, using: &generator)] ^= 1 }
      bytes += request
      if command == 1 {
        // What does not come of a large payload is the next requests', or nobody's.
        bytes += [UInt8](repeating: 3, count: min(Int(length), 100_000))
      }
    }
    return bytes
  }

  private static func flood(_ generator: inout SeededGenerator) -> [UInt8] {
    let commands: [UInt16] = [0, 3, 4, 5, 6, 7]
    let command = commands.randomElement(using: &generator) ?? 0
    let length: UInt32 = command == 3 ? 0 : generator.oneIn(2) ? UInt32(size / 2) : 4096
    let request = Message.request(
      command, offset: command == 3 ? 0 : .random(in: 0...4096, using: &generator), length: length)
    let count = Int.random(in: 1...300, using: &generator)
    return [UInt8]((0..<count).map { _ in request }.joined())
  }

  private static func length(_ generator: inout SeededGenerator) -> UInt32 {
    generator.oneIn(2) ? .random(in: 0...70_000, using: &generator) : edge(&generator)
  }

  private static func edge(_ generator: inout SeededGenerator) -> UInt32 {
    let edges: [UInt32] = [
      0, 1, 2, 511, 512, 4095, 4096, 4097, 65536, 256 << 10, 32 << 20, (32 << 20) + 1,
      UInt32(size), UInt32(size) + 1, 1 << 31 - 1, 1 << 31, .max - 1, .max,
    ]
    return edges.randomElement(using: &generator) ?? 0
  }

  private static func offset(_ length: UInt32, _ generator: inout SeededGenerator) -> UInt64 {
    let size = UInt64(size)
    let edges: [UInt64] = [
      0, 1, 511, 512, size - 1, size, size + 1, size &- UInt64(length), size &- UInt64(length) &+ 1,
      1 << 63 - 1, 1 << 63, 1 << 63 &- UInt64(length), .max, 0 &- UInt64(length),
    ]
    return generator.oneIn(2)
      ? .random(in: 0..<size, using: &generator) : edges.randomElement(using: &generator) ?? 0
  }
}

/// An export of which a client knows every byte.
private final class HealthyDisk {
  private let server: NBDServer
  private let export: String
  private(set) var contents: [UInt8]
  private var uses = 0

  init(_ server: NBDServer, _ export: String, size: Int) throws {
    (self.server, self.export) = (server, export)
    contents = [UInt8](repeating: 0, count: size)
  }

  /// Writes, zeroes and reads at places that change, and compares.
  func use(_ what: String) throws {
    uses += 1
    var generator = SeededGenerator(seed: UInt64(uses))
    let client = try NBDClient(server, export: export, structured: generator.oneIn(2))
    let start = Int.random(in: 0..<contents.count - (1 << 20), using: &generator)
    let count = Int.random(in: 1...100_000, using: &generator)
    let bytes = blockContents[uses..<uses + count]
    try client.write(Array(bytes), at: start, flags: generator.oneIn(2) ? .fua : [])
    contents.replaceSubrange(start..<start + count, with: bytes)
    let zeroed = start + count / 3..<start + count / 2
    XCTAssertEqual(
      try client.call(.writeZeroes, at: zeroed.lowerBound, count: zeroed.count).error, 0, what)
    contents.replaceSubrange(zeroed, with: repeatElement(0, count: zeroed.count))
    XCTAssertEqual(try client.call(.flush).error, 0, what)
    let range = max(0, start - 5000)..<start + count + 5000
    XCTAssertTrue(try client.read(range) == Array(contents[range]), "other bytes, \(what)")
    // The others' export answers, too, whatever is in it.
    let other = try NBDClient(server)
    XCTAssertEqual(try other.read(0..<5000).count, 5000, what)
  }
}
