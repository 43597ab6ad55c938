// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import EchoToDisk

/// What the commands would say of a journal, read in this process.
struct JournalContents {
  /// What `verify` calls damage or missing.
  private(set) var damages: [String] = []
  private(set) var torn: [String] = []
  private(set) var connections: Set<UInt64> = []
  private(set) var highestSequence: UInt64 = 0
  private var replays: [UInt64: ConnectionReplay] = [:]
  private var bytes: [UInt64: [UInt8]] = [:]

  /// - Parameters:
  ///   - asked: the connections to replay.
  ///   - read: in place of `pread(2)`.
  init(
    _ data: FilePath, asked: some Sequence<UInt64>,
    read: @escaping FileWindow.Read = FileWindow.systemRead
  ) throws {
    for connection in asked { replays[connection] = ConnectionReplay(connection) }
    try JournalReader(directory: data, read: read).read { event in
      switch event {
      case .batch(let header): highestSequence = max(highestSequence, header.sequence)
      case .record(let record, let payload, _):
        connections.insert(record.connection)
        replays[record.connection]?.take(event) {
          bytes[record.connection, default: []].append(contentsOf: $0)
        }
        _ = payload
      case .tornTail(let place): torn.append("\(place)")
      case .damage(let place, let what):
        damages.append("\(place): \(what)")
        for connection in replays.keys { replays[connection]?.take(event) { _ in } }
      case .gap(let connection, let range, let place):
        damages.append("\(place): \(JournalReader.describe(connection, range))")
        replays[connection]?.take(event) { _ in }
      case .endOfSegment: break
      }
    }
  }

  func bytes(of connection: UInt64) -> [UInt8] { bytes[connection] ?? [] }

  /// The exit status of `replay`.
  func status(of connection: UInt64) -> Int32 {
    switch replays[connection]?.outcome {
    case .complete: 0
    case .mayLackBytes: 3
    case .damaged, .unknown, nil: 1
    }
  }
}

/// The files of a journal in memory, to be put back after they have been harmed.
struct JournalSnapshot {
  let data: FilePath
  let files: [String: Data]
  /// What each connection sent, all of which was echoed.
  let sent: [UInt64: [UInt8]]

  /// A journal of three segments, by connections that spoke in turn, and a spare one.
  ///
  /// - Parameter areInTurn: whether each connection has ended before the next begins, so that their
  ///   numbers are not all in the first segment.
  init(
    in data: FilePath, connections: Int = 6, bytes: Int = 400_000, areInTurn: Bool = false,
    endsCleanly: Bool
  ) throws {
    self.data = data
    let server = try EchoServer(data, ["--segment-size", "1M"])
    sent =
      areInTurn
      ? try Self.sendInTurn(to: server, connections, bytes)
      : try Self.sendTogether(to: server, connections, bytes)
    XCTAssertTrue(eventually { (try? Self.hasSpare(data)) ?? false }, "no spare segment")
    if endsCleanly { XCTAssertEqual(server.stop(), 0) } else { server.kill() }
    var files: [String: Data] = [:]
    for name in try FileManager.default.contentsOfDirectory(atPath: data.string) {
      files[name] = try Data(contentsOf: URL(fileURLWithPath: data.appending(name).string))
    }
    self.files = files
  }

  private static func hasSpare(_ data: FilePath) throws -> Bool {
    let inspection = try JournalInspection(data)
    guard let last = inspection.segments.last, last.number == inspection.marks.end?.made
    else { return false }
    return try inspection.open(last).get().isFresh()
  }

  private static func sendInTurn(
    to server: EchoServer, _ connections: Int, _ bytes: Int
  ) throws -> [UInt64: [UInt8]] {
    var sent: [UInt64: [UInt8]] = [:]
    for number in 1...connections {
      let all = randomBytes(bytes)
      XCTAssertTrue(try EchoClient(port: server.port).exchange(all, until: bytes))
      sent[UInt64(number)] = all
    }
    return sent
  }

  private static func sendTogether(
    to server: EchoServer, _ connections: Int, _ bytes: Int
  ) throws -> [UInt64: [UInt8]] {
    var sent: [UInt64: [UInt8]] = [:]
    var clients: [EchoClient] = []
    for number in 1...connections {
      clients.append(try EchoClient(port: server.port))
      sent[UInt64(number)] = randomBytes(bytes)
      XCTAssertTrue(clients[number - 1].exchange([], until: 0))
      XCTAssertTrue(eventually { (try? server.list())?.count == number })
    }
    for part in 0..<8 {
      for (index, client) in clients.enumerated() {
        let all = sent[UInt64(index + 1)] ?? []
        let end = (part + 1) * bytes / 8
        XCTAssertTrue(client.exchange(Array(all[part * bytes / 8..<end]), until: end))
      }
    }
    return sent
  }

  var segments: [String] { files.keys.filter { $0.hasPrefix("segment-") }.sorted() }

  /// Puts everything back, in files of their own.
  func restore() throws {
    for name in try FileManager.default.contentsOfDirectory(atPath: data.string) {
      try FileManager.default.removeItem(atPath: data.appending(name).string)
    }
    for (name, bytes) in files {
      XCTAssertTrue(
        FileManager.default.createFile(atPath: data.appending(name).string, contents: bytes))
    }
  }
}
