// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import EchoToDisk

/// Segments that are cut, missing or partly unreadable.
final class JournalDamageTests: XCTestCase {
  private func snapshot(
    _ directory: TemporaryDirectory, endsCleanly: Bool = true
  ) throws -> JournalSnapshot {
    try JournalSnapshot(in: directory.path.appending("data"), endsCleanly: endsCleanly)
  }

  private func status(_ command: String, _ data: FilePath, _ more: String...) throws -> Int32 {
    try ChildProcess.run(
      ChildProcess.built("echo-to-disk"), [command, data.string] + more, seconds: 20
    ).status
  }

  /// The numbers of the segments that have batches, in order.
  private func used(_ data: FilePath) throws -> [UInt64] {
    let inspection = try JournalInspection(data)
    return try inspection.segments.filter { try inspection.open($0).get().firstHeader() != nil }
      .map(\.number)
  }

  private func expectDamage(
    _ snapshot: JournalSnapshot, _ words: [String], line: UInt = #line
  ) throws {
    let verify = try EchoServer.command("verify", snapshot.data.string)
    XCTAssertEqual(verify.status, 1, verify.output, line: line)
    for words in words { XCTAssertTrue(verify.output.contains(words), verify.output, line: line) }
    XCTAssertEqual(try status("list", snapshot.data), 1, line: line)
    let contents = try JournalContents(snapshot.data, asked: snapshot.sent.keys)
    for (connection, sent) in snapshot.sent {
      let replay = try status("replay", snapshot.data, "--connection", "\(connection)")
      XCTAssertEqual(replay, contents.status(of: connection), line: line)
      XCTAssertTrue(
        replay != 0 || contents.bytes(of: connection) == sent, "replay says 0", line: line)
    }
  }

  // MARK: Ends

  func testASegmentThatIsCut() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let last = try XCTUnwrap(used(snapshot.data).last)
    let path = snapshot.data.appending(JournalFormat.fileName(of: last)).string
    for size in [200_000, 4096] {
      truncate(path, size)
      try expectDamage(
        snapshot,
        ["segment \(last) at offset \(size): the file has \(size) bytes, where its header says"])
    }
  }

  /// The last one with batches while the spare stays, the first, and the last two with batches
  /// after a crash.
  func testSegmentsThatAreMissing() throws {
    let directory = try temporaryDirectory()
    let clean = try snapshot(directory)
    let last = try XCTUnwrap(used(clean.data).last)
    for number in [last, 1] {
      try clean.restore()
      unlink(clean.data.appending(JournalFormat.fileName(of: number)).string)
      try expectDamage(
        clean, ["segment \(number) at offset 0: the file is missing; batch", " 1 damages"])
    }
    try clean.restore()
    // The spare of a journal that ended cleanly had nothing.
    unlink(clean.data.appending(JournalFormat.fileName(of: last + 1)).string)
    XCTAssertEqual(try status("verify", clean.data), 0)

    let other = try temporaryDirectory()
    let killed = try snapshot(other, endsCleanly: false)
    // The last two with batches.
    let gone = try used(killed.data).suffix(2)
    let (first, end) = (try XCTUnwrap(gone.first), try XCTUnwrap(gone.last))
    for number in gone {
      unlink(killed.data.appending(JournalFormat.fileName(of: number)).string)
    }
    try expectDamage(killed, ["the files of segments \(first) to \(end) are missing"])
    // A daemon gives no number again that they may have had.
    let server = try EchoServer(killed.data, ["--segment-size", "1M"])
    XCTAssertTrue(server.logged.contains("segments \(first) to \(end) are missing"))
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1], until: 1))
    XCTAssertEqual(server.stop(), 0)
    let newest = try XCTUnwrap(JournalContents(killed.data, asked: []).connections.max())
    XCTAssertGreaterThan(newest, killed.sent.keys.max() ?? 0)
    try expectDamage(killed, ["segments \(first) to \(end) are missing"])
  }

  /// Whichever segment a killed daemon's journal loses, the spare one included: the next daemon
  /// gives no number again that may have been in it, and the loss is told.
  func testNoNumberIsGivenAgain() throws {
    let directory = try temporaryDirectory()
    let killed = try JournalSnapshot(
      in: directory.path.appending("data"), areInTurn: true, endsCleanly: false)
    let before = try JournalContents(killed.data, asked: [])
    for name in killed.segments {
      try killed.restore()
      unlink(killed.data.appending(name).string)
      let server = try EchoServer(killed.data, ["--segment-size", "1M"])
      XCTAssertTrue(try EchoClient(port: server.port).exchange([1], until: 1))
      XCTAssertEqual(server.stop(), 0)
      let after = try JournalContents(killed.data, asked: [])
      XCTAssertEqual(after.connections.subtracting(killed.sent.keys).count, 1, name)
      XCTAssertGreaterThan(after.highestSequence, before.highestSequence, name)
      try expectDamage(killed, ["the file is missing"])
    }
  }

  /// Zeros from some batch on look like a segment that was never written further.
  func testATailOfZeros() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let last = try XCTUnwrap(used(snapshot.data).last)
    let reader = try openSegment(last, of: snapshot.data)
    let first = try XCTUnwrap(reader.firstHeader())
    let path = snapshot.data.appending(JournalFormat.fileName(of: last))
    let file = try FileDescriptor.open(path, .writeOnly)
    try file.closeAfter {
      _ = try file.writeAll(
        toAbsoluteOffset: Int64(first.end), [UInt8](repeating: 0, count: (1 << 20) - first.end))
    }
    try expectDamage(snapshot, ["segment \(last) at offset \(first.end): batch"])
    // And all of it.
    try zero(path, from: first.offset)
    try expectDamage(snapshot, ["batches \(first.sequence) to "])
  }

  private func zero(_ path: FilePath, from offset: Int) throws {
    let file = try FileDescriptor.open(path, .writeOnly)
    try file.closeAfter {
      _ = try file.writeAll(
        toAbsoluteOffset: Int64(offset), [UInt8](repeating: 0, count: (1 << 20) - offset))
    }
  }

  func testMarksThatAreDamagedOrMissing() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let marks = snapshot.data.appending(JournalFormat.marksName)
    let file = try FileDescriptor.open(marks, .writeOnly)
    try file.closeAfter { _ = try file.writeAll(toAbsoluteOffset: 4096 + 50, [0xff]) }
    try expectDamage(snapshot, ["damage: marks: 1 of its 4 marks are unreadable"])
    unlink(marks.string)
    try expectDamage(snapshot, ["damage: marks: the file is missing"])
    // A new one does not make it sound, and takes no number that was given.
    let server = try EchoServer(snapshot.data, ["--segment-size", "1M"])
    XCTAssertTrue(server.logged.contains("marks: the file is missing"), server.logged)
    XCTAssertEqual(server.stop(), 0)
    try expectDamage(snapshot, ["damage: marks: marks were lost at some time"])
  }

  /// What is trimmed is no damage; only the bytes of the connections that were there are missing.
  func testATrimmedJournal() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let last = try XCTUnwrap(used(snapshot.data).last)
    let refused = try EchoServer.command("trim", snapshot.data.string, "--before", "77")
    XCTAssertEqual(refused.status, 1)
    XCTAssertTrue(
      refused.errors.contains(
        "no readable segment with batches; the first that has some is 1, the last \(last)"),
      refused.errors)
    XCTAssertEqual(try status("trim", snapshot.data, "--before", "2"), 0)
    XCTAssertFalse(
      FileManager.default.fileExists(
        atPath: snapshot.data.appending(JournalFormat.fileName(of: 1)).string))
    XCTAssertEqual(try status("verify", snapshot.data), 0)
    XCTAssertEqual(try status("replay", snapshot.data, "--connection", "1"), 3)
    let server = try EchoServer(snapshot.data, ["--segment-size", "1M"])
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1, 2], until: 2))
    XCTAssertEqual(server.stop(), 0)
    XCTAssertEqual(try server.replay(7), [1, 2])
    XCTAssertEqual(try status("verify", snapshot.data), 0)
    // The next one is missed as before.
    unlink(snapshot.data.appending(JournalFormat.fileName(of: 2)).string)
    XCTAssertEqual(try status("verify", snapshot.data), 1)
  }

  /// No byte of a header, a record or a mark can change unnoticed, and only the record that it is
  /// in is lost.
  func testEveryByte() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    var journal = try HandMadeJournal(in: data)
    let (first, second) = (randomBytes(104), randomBytes(200))
    let offset = try journal.append([
      .opened(1, "12345678"), .init(kind: .data, connection: 1, payload: first),
      .init(kind: .data, connection: 2, payload: second),
    ])
    try journal.append([
      .init(kind: .closed, connection: 1, position: 104),
      .init(kind: .closed, connection: 2, position: 200),
    ])
    try journal.end()
    XCTAssertEqual(try JournalContents(data, asked: [1, 2]).damages, [])
    let header = JournalFormat.recordHeaderLength
    let records = offset + JournalFormat.headerLength
    let marks = data.appending(JournalFormat.marksName)
    let ranges: [(FilePath, Range<Int>, whole: [UInt64])] = [
      (journal.segment, 0..<JournalFormat.segmentHeaderLength, [1, 2]),
      (journal.segment, offset..<records, []),
      // The opening, the bytes of the first and those of the second.
      (journal.segment, records..<records + header + 16, [1, 2]),
      (journal.segment, records + header + 16..<records + 2 * header + 120, [2]),
      (journal.segment, records + 2 * header + 120..<records + 3 * header + 320, [1]),
      (marks, 0..<JournalFormat.markLength, [1, 2]),
      (marks, 3 * 4096..<3 * 4096 + JournalFormat.markLength, [1, 2]),
    ]
    for (path, range, whole) in ranges {
      let file = try FileDescriptor.open(path, .readWrite)
      try file.closeAfter {
        for place in range {
          var byte = [UInt8](repeating: 0, count: 1)
          _ = try byte.withUnsafeMutableBytes {
            try file.read(fromAbsoluteOffset: Int64(place), into: $0)
          }
          let changed = [byte[0] ^ (1 << UInt8(place % 8))]
          _ = try file.writeAll(toAbsoluteOffset: Int64(place), changed)
          let contents = try JournalContents(data, asked: [1, 2])
          _ = try file.writeAll(toAbsoluteOffset: Int64(place), byte)
          let what = "\(path) at \(place)"
          XCTAssertFalse(contents.damages.isEmpty, what)
          XCTAssertEqual(contents.bytes(of: 1) == first, whole.contains(1), what)
          XCTAssertEqual(contents.bytes(of: 2) == second, whole.contains(2), what)
          for connection in [1, 2] as [UInt64] where !whole.contains(connection) {
            XCTAssertNotEqual(contents.status(of: connection), 0, what)
          }
        }
      }
    }
  }

  // MARK: What cannot be read

  /// Each stands where a segment was; nothing hangs, and the others are read.
  func testWhatIsNoFile() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let path = snapshot.data.appending(JournalFormat.fileName(of: 2)).string
    for (what, make) in [
      ("no regular file", { mkfifo(path, 0o600) }), ("no regular file", { mkdir(path, 0o700) }),
      ("a symbolic link", { symlink("/nowhere", path) }),
      ("a symbolic link", { symlink("/dev/zero", path) }),
    ] {
      try snapshot.restore()
      unlink(path)
      XCTAssertEqual(make(), 0)
      try expectDamage(snapshot, ["segment-0000000002.journal: it is \(what)", " 1 damages"])
      let contents = try JournalContents(snapshot.data, asked: snapshot.sent.keys)
      // What each had said before is given back.
      for connection in snapshot.sent.keys {
        XCTAssertGreaterThan(contents.bytes(of: connection).count, 10_000, what)
      }
    }
  }

  /// As somebody who may not read one of them: it is named, and the others are read.
  func testASegmentThatMayNotBeRead() throws {
    try XCTSkipIf(getuid() != 0, "only root can give files to somebody else")
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let name = JournalFormat.fileName(of: 2)
    XCTAssertEqual(chmod(directory.path.string, 0o755), 0)
    for file in [""] + Array(snapshot.files.keys) where file != name {
      XCTAssertEqual(chown(snapshot.data.string + "/" + file, 65534, 65534), 0)
    }
    let setpriv = try ChildProcess.installed("setpriv", package: "util-linux")
    func run(_ arguments: String...) throws -> ChildProcess {
      let program = try ChildProcess.built("echo-to-disk")
      return try ChildProcess.run(
        setpriv, ["--reuid=65534", "--regid=65534", "--clear-groups", program] + arguments)
    }
    let data = snapshot.data.string
    let verify = try run("verify", data)
    try XCTSkipIf(verify.errors.contains("cannot execute"), "nobody may not run it here")
    XCTAssertEqual(verify.status, 1, verify.errors)
    let words = "damage: \(name): cannot be opened: Permission denied; batches "
    XCTAssertTrue(verify.output.contains(words), verify.output)
    XCTAssertTrue(verify.output.contains(" 1 damages"), verify.output)
    let list = try run("list", data)
    XCTAssertEqual(list.status, 1)
    XCTAssertEqual(list.output.split(separator: "\n").count, 1 + snapshot.sent.count, list.output)
    let replay = try run("replay", data, "--connection", "1")
    XCTAssertEqual(replay.status, 1)
    XCTAssertTrue(replay.errors.contains("bytes of connection 1 from position"), replay.errors)
  }

  /// Batches say themselves whose they are: all is read, and the damage is named once.
  func testAnUnreadableHeader() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    for number in [1, 2] as [UInt64] {
      try snapshot.restore()
      let path = snapshot.data.appending(JournalFormat.fileName(of: number))
      let file = try FileDescriptor.open(path, .writeOnly)
      try file.closeAfter { _ = try file.writeAll(toAbsoluteOffset: 20, [0xff, 0xfe]) }
      let contents = try JournalContents(snapshot.data, asked: snapshot.sent.keys)
      XCTAssertEqual(
        contents.damages, ["segment \(number) at offset 0: its header is unreadable"])
      for (connection, sent) in snapshot.sent {
        XCTAssertTrue(contents.bytes(of: connection) == sent)
        XCTAssertEqual(contents.status(of: connection), 0)
      }
    }
  }

  /// One bad block in the middle of a batch of 60 connections, and one in its header.
  func testABadBlock() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    var journal = try HandMadeJournal(in: data)
    let bytes = randomBytes(8000)
    let connections = Array(1...60 as ClosedRange<UInt64>)
    let offset = try journal.append(
      connections.map { .init(kind: .data, connection: $0, payload: bytes) })
    try journal.append(connections.map { .init(kind: .closed, connection: $0, position: 8000) })
    try journal.append([])

    // In the middle of the payload of one of them.
    let record = 8000 + JournalFormat.recordHeaderLength
    let bad = (offset + JournalFormat.headerLength + 20 * record + 1000 + 4095) / 4096 * 4096
    for (first, whole) in [(bad, 59), (offset / 4096 * 4096, 0)] {
      let contents = try JournalContents(data, asked: connections) { file, offset, memory in
        if offset < first + 4096, offset + memory.count > first {
          // As the kernel does: what is before it, and then the error.
          guard offset < first else { throw Errno.ioError }
          return try FileWindow.systemRead(
            file, offset, .init(rebasing: memory[..<(first - offset)]))
        }
        return try FileWindow.systemRead(file, offset, memory)
      }
      XCTAssertEqual(connections.filter { contents.bytes(of: $0) == bytes }.count, whole)
      XCTAssertEqual(connections.filter { contents.status(of: $0) == 0 }.count, whole)
      let damages = contents.damages.filter { !$0.contains("bytes of connection") }
      XCTAssertTrue(damages.allSatisfy { $0.contains("Input/output error") }, "\(damages)")
      XCTAssertTrue(
        damages.contains {
          $0.hasPrefix("segment 1 at offset ")
            && $0.contains("at offset \(max(first, whole == 0 ? first : first)): ")
        },
        "\(damages)")
    }
  }
}
