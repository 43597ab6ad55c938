// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import EchoToDisk

/// Journals whose files were flipped, cut, swapped, linked, copied and removed at random.
final class JournalFuzzTests: XCTestCase {
  /// After a clean end whatever is missing is known to be missing.
  func testHarmAfterACleanEnd() throws { try fuzz(endsCleanly: true, share: 0.7) }

  /// After a crash the last batches may be torn, but nothing is read that was not sent.
  func testHarmAfterACrash() throws { try fuzz(endsCleanly: false, share: 0.3) }

  private func fuzz(endsCleanly: Bool, share: Double) throws {
    let directory = try temporaryDirectory()
    let snapshot = try JournalSnapshot(
      in: directory.path.appending("data"), endsCleanly: endsCleanly)
    let foreign = try JournalSnapshot(
      in: directory.path.appending("foreign"), connections: 1, bytes: 20_000, endsCleanly: true)
    var (damaged, whole) = (0, 0)
    let rounds = Fuzzing.rounds(
      of: "journal", in: self, share: share, least: 40
    ) { generator, what in
      try snapshot.restore()
      var harms: [Harm] = []
      for _ in 0..<(generator.oneIn(2) ? 1 : Int.random(in: 2...4, using: &generator)) {
        let harm = Harm.random(snapshot, foreign, &generator)
        if try harm.apply(to: snapshot) { harms.append(harm) }
      }
      // Whose journal it is, nothing tells then.
      if Harm.takeTheIdentity(harms) { return }
      let what = "\(harms.map(\.description)); \(what)"
      let before = try check(snapshot, harms, endsCleanly: endsCleanly, what)
      if !before.damages.isEmpty { damaged += 1 }
      if snapshot.sent.allSatisfy({ before.bytes(of: $0) == $1 }) { whole += 1 }
      let connection = UInt64.random(in: 1...UInt64(snapshot.sent.count), using: &generator)
      if generator.oneIn(10) { try checkPrograms(snapshot, before, connection, what) }
      if generator.oneIn(20) {
        try serve(snapshot, before, what)
      } else {
        try reopen(snapshot, before, what)
      }
    }
    print("\(rounds) rounds: \(damaged) with damage, \(whole) with every byte readable")
    // Harm is found, and most of it costs only some bytes.
    XCTAssertGreaterThan(damaged, rounds / 5)
    XCTAssertGreaterThan(whole, rounds / 20)
  }

  // MARK: Checking

  private func check(
    _ snapshot: JournalSnapshot, _ harms: [Harm], endsCleanly: Bool, _ what: String
  ) throws -> JournalContents {
    let contents = try JournalContents(snapshot.data, asked: snapshot.sent.keys)
    XCTAssertTrue(
      contents.connections.isSubset(of: snapshot.sent.keys), "connections that never were: \(what)")
    var isComplete = true
    for (connection, sent) in snapshot.sent {
      let replayed = contents.bytes(of: connection)
      XCTAssertTrue(isPrefix(replayed, of: sent), "connection \(connection), other bytes: \(what)")
      let isWhole = replayed.count == sent.count
      if !isWhole { isComplete = false }
      if endsCleanly {
        XCTAssertTrue(
          isWhole || contents.status(of: connection) != 0,
          "replay of connection \(connection) says 0, bytes are missing: \(what)")
      }
      // A single byte is in one batch, a single block in two at most.
      if harms.count == 1, case .flip = harms[0].kind {
        XCTAssertTrue(
          isWhole || contents.damages.count + contents.torn.count > 0, "nothing said: \(what)")
      }
    }
    if endsCleanly {
      XCTAssertTrue(
        isComplete || !contents.damages.isEmpty, "verify says 0, bytes are missing: \(what)")
      if harms.isEmpty { XCTAssertEqual(contents.damages, [], what) }
    }
    return contents
  }

  /// The daemon's start in this process.
  private func reopen(
    _ snapshot: JournalSnapshot, _ before: JournalContents, _ what: String
  ) throws {
    do {
      let opened = try JournalDirectory(snapshot.data)
      XCTAssertGreaterThan(opened.nextSequence, before.highestSequence, what)
      XCTAssertGreaterThan(opened.nextConnection, UInt64(before.connections.max() ?? 0), what)
    } catch let error as JournalError {
      XCTAssertFalse(before.damages.isEmpty, "\(error): \(what)")
    }
    let after = try JournalContents(snapshot.data, asked: snapshot.sent.keys)
    // A segment that is being made is removed at the start, and with it a second name of another.
    if what.contains(".making"), after.damages.isEmpty { return }
    XCTAssertEqual(before.damages.isEmpty, after.damages.isEmpty, "\(after.damages): \(what)")
  }

  /// The daemon itself, which serves, or says why not; and no damage is forgotten by that.
  private func serve(
    _ snapshot: JournalSnapshot, _ before: JournalContents, _ what: String
  ) throws {
    let server: EchoServer
    do {
      server = try EchoServer(snapshot.data, ["--segment-size", "1M"])
    } catch let error as EchoServer.Failure {
      XCTAssertTrue(error.description.contains("out of the directory"), "\(error): \(what)")
      return XCTAssertFalse(before.damages.isEmpty, what)
    }
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(100_000)
    XCTAssertTrue(client.exchange(bytes, until: bytes.count), what)
    client.endInput()
    client.exchange([], until: bytes.count + 1)
    XCTAssertEqual(server.stop(), 0, "\(server.logged): \(what)")
    let all = try JournalContents(snapshot.data, asked: [])
    let number = try XCTUnwrap(all.connections.max())
    XCTAssertFalse(snapshot.sent.keys.contains(number), "a number was given again: \(what)")
    let after = try JournalContents(
      snapshot.data, asked: Array(snapshot.sent.keys) + [number])
    XCTAssertEqual(after.bytes(of: number), bytes, what)
    XCTAssertEqual(after.status(of: number), 0, "\(after.damages): \(what)")
    // As in `reopen`.
    if !before.damages.isEmpty, !what.contains(".making") {
      XCTAssertFalse(after.damages.isEmpty, "forgotten: \(what)")
    }
    for connection in snapshot.sent.keys {
      XCTAssertTrue(after.bytes(of: connection) == before.bytes(of: connection), what)
    }
    try checkPrograms(snapshot, after, number, what)
  }

  /// The programs end, in time, and say what was found in this process: their exit status, and
  /// every byte of a connection.
  private func checkPrograms(
    _ snapshot: JournalSnapshot, _ contents: JournalContents, _ connection: UInt64, _ what: String
  ) throws {
    let data = snapshot.data.string
    let replayed = "\(data).replayed"
    let program = try ChildProcess.built("echo-to-disk")
    for (arguments, status) in [
      (["verify", data], contents.damages.isEmpty ? 0 : 1),
      (["list", data], contents.damages.isEmpty ? 0 : 1),
      (["replay", data, "--connection", "\(connection)"], contents.status(of: connection)),
    ] {
      let run = try ChildProcess.run(
        "/bin/sh", ["-c", "\"$@\" >\"$0\"", replayed, program] + arguments, seconds: 20)
      let what = "\(arguments), \(run.errors): \(what)"
      XCTAssertFalse(run.wasSignalled, what)
      XCTAssertEqual(run.status, status, what)
    }
    let bytes = try Data(contentsOf: URL(fileURLWithPath: replayed))
    XCTAssertTrue(bytes.elementsEqual(contents.bytes(of: connection)), "other bytes: \(what)")
  }
}

/// One thing that happens to a journal's directory.
private struct Harm: CustomStringConvertible {
  enum Kind {
    case flip(String, Int, UInt8)
    case zero(String, Range<Int>)
    case cut(String, Int)
    case extend(String, Int)
    case swapFiles(String, String)
    case swapBlocks(String, Int, String, Int)
    case copy(String, to: String)
    case foreign(Data, to: String)
    case rename(String, to: String)
    case hardLink(String, to: String)
    case symbolicLink(String)
    case remove(String)
    case directory(String)
    case pipe(String)
  }

  let kind: Kind

  var description: String {
    if case .foreign(_, let name) = kind { return "foreign(to: \(name))" }
    return "\(kind)"
  }

  static func random(
    _ snapshot: JournalSnapshot, _ foreign: JournalSnapshot, _ generator: inout SeededGenerator
  ) -> Harm {
    let segments = snapshot.segments
    let any = segments[Int.random(in: 0..<segments.count, using: &generator)]
    let other = segments[Int.random(in: 0..<segments.count, using: &generator)]
    let file = generator.oneIn(8) ? JournalFormat.marksName : any
    let size = snapshot.files[file]?.count ?? 0
    // Often at the beginning, and at that of a block.
    var offset = Int.random(
      in: 0..<(generator.oneIn(3) ? min(size, 8192) : size), using: &generator)
    if generator.oneIn(3) {
      offset = offset / 512 * 512 + Int.random(in: 0..<96, using: &generator)
    }
    if file == JournalFormat.marksName, generator.oneIn(2) { offset = offset / 4096 * 4096 + 40 }
    let unknown = JournalFormat.fileName(of: UInt64.random(in: 1...9, using: &generator))
    let kinds: [Kind] = [
      .flip(file, offset, 1 << UInt8.random(in: 0...7, using: &generator)),
      .flip(file, offset, UInt8.random(in: 1...255, using: &generator)),
      .zero(file, offset..<min(size, offset + (generator.oneIn(2) ? 512 : 70_000))),
      .cut(file, generator.oneIn(4) ? 0 : offset),
      .extend(file, Int.random(in: 1...5000, using: &generator)),
      .swapFiles(any, other),
      .swapBlocks(any, offset / 512, other, Int.random(in: 0..<2048, using: &generator)),
      .copy(any, to: generator.oneIn(9) ? "segment-18446744073709551615.journal" : unknown),
      .foreign(foreign.files[foreign.segments[0]] ?? Data(), to: unknown),
      .rename(any, to: unknown), .hardLink(any, to: unknown), .symbolicLink(file), .remove(file),
      .directory(file),
      .pipe(file), .foreign(foreign.files[JournalFormat.marksName] ?? Data(), to: "marks"),
    ]
    return Harm(kind: kinds[Int.random(in: 0..<kinds.count, using: &generator)])
  }

  /// Whether the marks may be gone, and another journal's segment as good as the own ones.
  static func takeTheIdentity(_ harms: [Harm]) -> Bool {
    harms.count > 2 && harms.contains { $0.description.contains("foreign(") }
      && harms.contains { $0.description.contains("marks") }
  }

  /// - Returns: whether something has changed.
  func apply(to snapshot: JournalSnapshot) throws -> Bool {
    func path(_ name: String) -> String { snapshot.data.appending(name).string }
    func read(_ name: String) -> Data? {
      var status = stat()
      guard lstat(path(name), &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
      return try? Data(contentsOf: URL(fileURLWithPath: path(name)))
    }
    func write(_ name: String, _ bytes: Data) -> Bool {
      unlink(path(name))
      return FileManager.default.createFile(atPath: path(name), contents: bytes)
    }
    func change(_ name: String, _ body: (inout Data) -> Void) -> Bool {
      guard let before = read(name) else { return false }
      var after = before
      body(&after)
      return after != before && write(name, after)
    }
    switch kind {
    case .flip(let name, let offset, let mask):
      return change(name) { if offset < $0.count { $0[offset] ^= mask } }
    case .zero(let name, let range):
      return change(name) { bytes in
        for offset in range where offset < bytes.count { bytes[offset] = 0 }
      }
    case .cut(let name, let size): return change(name) { $0 = $0.prefix(size) }
    case .extend(let name, let count): return change(name) { $0 += Data(count: count) }
    case .swapFiles(let a, let b):
      guard a != b, let first = read(a), let second = read(b) else { return false }
      return write(a, second) && write(b, first)
    case .swapBlocks(let a, let i, let b, let j):
      guard let first = read(a), let second = read(b), (i + 1) * 512 <= first.count,
        (j + 1) * 512 <= second.count
      else { return false }
      let (x, y) = (first[i * 512..<(i + 1) * 512], second[j * 512..<(j + 1) * 512])
      return x != y
        && change(a) { $0.replaceSubrange(i * 512..<(i + 1) * 512, with: y) }
        && change(b) { $0.replaceSubrange(j * 512..<(j + 1) * 512, with: x) }
    case .copy(let name, let other):
      guard name != other, let bytes = read(name) else { return false }
      return write(other, bytes)
    case .foreign(let bytes, let name): return write(name, bytes)
    case .rename(let name, let other):
      return name != other && rename(path(name), path(other)) == 0
    case .hardLink(let name, let other):
      guard name != other, read(name) != nil else { return false }
      unlink(path(other))
      return link(path(name), path(other)) == 0
    case .symbolicLink(let name):
      unlink(path(name))
      return symlink(["/dev/zero", "/nowhere", path("x")][name.utf8.count % 3], path(name)) == 0
    case .remove(let name): return unlink(path(name)) == 0
    case .directory(let name):
      unlink(path(name))
      return mkdir(path(name), 0o700) == 0
    case .pipe(let name):
      unlink(path(name))
      return mkfifo(path(name), 0o600) == 0
    }
  }
}
