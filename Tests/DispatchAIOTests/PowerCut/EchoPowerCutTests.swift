// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// echo-to-disk: what was echoed is in the journal, whenever the power fails.
final class EchoPowerCutTests: XCTestCase {
  func testOnExt4() async throws { try await assertNothingIsLost(EchoWorkload(), on: "ext4") }
  func testOnXFS() async throws { try await assertNothingIsLost(EchoWorkload(), on: "xfs") }
  func testOnBtrfs() async throws { try await assertNothingIsLost(EchoWorkload(), on: "btrfs") }

  func testWithoutSyncOnExt4() async throws {
    try await assertSomethingIsLost(EchoWorkload(["--sync", "none"]), on: "ext4")
  }

  func testWithoutSyncOnXFS() async throws {
    try await assertSomethingIsLost(EchoWorkload(["--sync", "none"]), on: "xfs")
  }

  func testWithoutSyncOnBtrfs() async throws {
    try await assertSomethingIsLost(EchoWorkload(["--sync", "none"]), on: "btrfs")
  }
}

/// Clients that send to a daemon, which is stopped or killed, started again, and killed in the end.
private final class EchoWorkload: PowerCutWorkload {
  /// What a client has received; of nobody, when the daemon listened.
  struct Echo {
    var client: String?
    var count = 0
  }

  let name: String
  private let options: [String]
  private var echoes: Acknowledgements<Echo>?
  /// What each client sends, by its name.
  private let sent = Locked<[String: [UInt8]]>([:])

  init(_ options: [String] = []) {
    name = (["echo-to-disk"] + options).joined(separator: " ")
    self.options = ["--segment-size", "1M"] + options
  }

  func run(in path: FilePath, on disk: PowerCutDisk, random: inout SeededGenerator) throws {
    let echoes = self.echoes ?? Acknowledgements(disk)
    self.echoes = echoes
    for round in 0..<2 {
      let server = try EchoServer(path.appending("data"), options)
      echoes.record(Echo())
      let (port, seed, sent) = (server.port, random.next(), sent)
      onThreads(3) { number in
        var random = SeededGenerator(seed: seed &+ UInt64(number))
        guard let client = try? EchoClient(port: port) else { return XCTFail("no connection") }
        for _ in 0..<30 {
          let size = Int.random(in: 1...(random.oneIn(10) ? 300_000 : 10_000), using: &random)
          let bytes = randomBytes(size)
          sent.withLock { $0[client.name, default: []] += bytes }
          let isWhole = client.exchange(
            bytes, until: client.received.count + size,
            progress: { _ in
              echoes.record(Echo(client: client.name, count: client.received.count))
            })
          XCTAssertTrue(isWhole)
        }
        XCTAssertTrue(sent.withLock { $0[client.name] == client.received })
      }
      if round == 0, Bool.random(using: &random) {
        XCTAssertEqual(server.stop(), 0, server.logged)
      } else {
        server.kill()
      }
    }
  }

  func losses(in path: FilePath, after cut: PowerCutDisk.Cut) throws -> [String] {
    let data = path.appending("data")
    let promised = echoes?.promised(at: cut.position) ?? []
    var losses: [String] = []
    // Before, there may be no journal.
    if !promised.isEmpty {
      let (list, rows) = try EchoServer.list(data)
      for (client, bytes) in sent.withLock({ $0 }) {
        let count = promised.filter { $0.client == client }.map(\.count).max() ?? 0
        guard let row = rows.first(where: { $0.peer == client }) else {
          if count > 0 { losses.append("\(client) is not there") }
          continue
        }
        let (status, replayed) = try EchoServer.replay(data, row.connection)
        if status != 0 { losses.append("replay exits with \(status)") }
        if replayed.count < count || !isPrefix(replayed, of: bytes) {
          losses.append("\(count) bytes of \(client) came back, \(replayed.count) are there")
        }
      }
      if list.status != 0 { losses.append("list exits with \(list.status): \(list.errors)") }
      let verify = try EchoServer.command("verify", data.string)
      if verify.status != 0 { losses.append("verify: \(verify.output)\(verify.errors)") }
    }
    return losses + (try serveAgain(data))
  }

  /// What does not work when the daemon is started on what is there.
  private func serveAgain(_ data: FilePath) throws -> [String] {
    var losses: [String] = []
    let server = try EchoServer(data, options)
    let bytes = randomBytes(30_000)
    let client = try EchoClient(port: server.port)
    if !client.exchange(bytes, until: bytes.count) || client.received != bytes {
      losses.append("no echo: \(server.logged)")
    }
    let status = server.stop()
    if status != 0 { losses.append("status \(status): \(server.logged)") }
    let verify = try server.verify()
    if verify.status != 0 { losses.append("verify, later: \(verify.output)\(verify.errors)") }
    guard let row = try EchoServer.list(data).rows.last, row.peer == client.name else {
      return losses + ["the last connection is not \(client.name)"]
    }
    if try EchoServer.replay(data, row.connection) != (0, bytes) {
      losses.append("other bytes of a connection since")
    }
    return losses
  }
}
