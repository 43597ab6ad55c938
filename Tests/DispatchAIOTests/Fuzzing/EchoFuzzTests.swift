// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import EchoToDisk

/// Clients of echo-to-disk that reset, stop half way, take nothing, and come in crowds: a healthy
/// one is echoed to meanwhile, and of each connection all that was echoed is in the journal.
final class EchoFuzzTests: XCTestCase {
  /// The bytes after which nobody has much to say any more: the journal keeps them all.
  private static let manyBytes = 300 << 20

  /// What a connection got back.
  private struct Echoed {
    let sent: [UInt8]
    var count: Int
  }

  /// By the first eight bytes, which each connection has for itself.
  private var connections: [[UInt8]: Echoed] = [:]
  private var bytesSent = 0

  func testHostileClients() throws {
    Fuzzing.limitQuarantine()
    let directory = try temporaryDirectory()
    let server = try EchoServer(
      directory.path.appending("data"), ["--segment-size", "4M", "--idle-timeout", "20"])
    let fuzzed = FuzzedServer(server, directory, pools: 0) { [self] what in
      let client = try EchoClient(port: server.port)
      let bytes = newBytes(100_000)
      XCTAssertTrue(client.exchange(bytes, until: bytes.count, seconds: 5), what)
      XCTAssertTrue(client.received == bytes, "other bytes, \(what)")
      note(bytes, echoed: bytes.count)
      client.endInput()
      client.exchange([], until: bytes.count + 1, seconds: 5)
      XCTAssertTrue(client.isClosed, what)
    }
    Fuzzing.rounds(of: "echo", in: self) { try round(fuzzed, server, &$0, $1) }
    fuzzed.stop()
    try checkJournal(server)
  }

  private func round(
    _ fuzzed: FuzzedServer, _ server: EchoServer, _ generator: inout SeededGenerator, _ what: String
  ) throws {
    try fuzzed.round(what) {
      try (0..<Int.random(in: 1...40, using: &generator)).map { _ in
        // Few have much to say, and some nothing.
        let counts = [0, 8, 100, 5000, 70_000, 600_000]
        let isMore = bytesSent < Self.manyBytes && generator.oneIn(3)
        let count = isMore ? counts.randomElement(using: &generator) ?? 0 : 2000
        return FuzzClient(
          try HTTPClient.connect(port: server.port), FuzzScript(newBytes(count), &generator))
      }
    } checkReceived: { client in
      let sent = client.script.bytes
      XCTAssertTrue(isPrefix(client.received, of: sent), "other bytes, \(what)")
      if client.received.count >= 8 { note(sent, echoed: client.received.count) }
    }
  }

  /// Bytes that begin as no others do.
  private func newBytes(_ count: Int) -> [UInt8] {
    bytesSent += count
    let number = UInt64(connections.count) << 32 | UInt64(bytesSent)
    var generator = SeededGenerator(seed: number)
    let first = withUnsafeBytes(of: generator.next()) { Array($0) }
    let start = Int.random(in: 0..<blockContents.count - count, using: &generator)
    return Array((first + blockContents[start..<start + count]).prefix(count))
  }

  private func note(_ sent: [UInt8], echoed: Int) {
    let key = Array(sent.prefix(8))
    connections[key] = Echoed(sent: sent, count: max(echoed, connections[key]?.count ?? 0))
  }

  /// `verify` finds nothing, and every connection has what was echoed to it, and nothing that was
  /// not sent.
  private func checkJournal(_ server: EchoServer) throws {
    let verify = try server.verify()
    XCTAssertEqual(verify.status, 0, verify.output)
    let numbers = try JournalContents(server.data, asked: []).connections
    let contents = try JournalContents(server.data, asked: numbers)
    XCTAssertEqual(contents.damages, [])
    var found = 0
    for number in numbers {
      let bytes = contents.bytes(of: number)
      XCTAssertEqual(contents.status(of: number), 0)
      guard bytes.count >= 8, let echoed = connections[Array(bytes.prefix(8))] else { continue }
      found += 1
      XCTAssertGreaterThanOrEqual(bytes.count, echoed.count, "connection \(number)")
      XCTAssertTrue(isPrefix(bytes, of: echoed.sent), "connection \(number)")
    }
    XCTAssertEqual(found, connections.count, "connections that were echoed to are missing")
  }
}
