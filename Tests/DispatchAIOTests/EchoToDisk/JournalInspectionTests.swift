// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import EchoToDisk

/// What is in a journal's directory: files under wrong names, the lock, and bytes that clients
/// chose.
final class JournalInspectionTests: XCTestCase {
  private func snapshot(_ directory: TemporaryDirectory) throws -> JournalSnapshot {
    try JournalSnapshot(
      in: directory.path.appending("data"), connections: 2, bytes: 800_000, endsCleanly: true)
  }

  /// The daemon does not start, and says why; the readers call it damage, and read what there is.
  private func expectRefusal(
    _ snapshot: JournalSnapshot, _ name: String, _ words: String, line: UInt = #line
  ) throws {
    XCTAssertThrowsError(try EchoServer(snapshot.data, ["--segment-size", "1M"]), line: line) {
      let error = "\($0)"
      XCTAssertTrue(error.contains(name), error, line: line)
      XCTAssertTrue(error.contains(words), error, line: line)
      XCTAssertTrue(error.contains("move the file out of the directory"), error, line: line)
    }
    let verify = try EchoServer.command("verify", snapshot.data.string)
    XCTAssertEqual(verify.status, 1, line: line)
    XCTAssertTrue(verify.output.contains("damage: \(name): \(words)"), verify.output, line: line)
  }

  private func expectAllBytes(_ snapshot: JournalSnapshot, line: UInt = #line) throws {
    let contents = try JournalContents(snapshot.data, asked: snapshot.sent.keys)
    for (connection, sent) in snapshot.sent {
      XCTAssertTrue(contents.bytes(of: connection) == sent, line: line)
    }
  }

  // MARK: Segments under other numbers

  func testASegmentUnderAnotherNumber() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    func path(_ name: String) -> String { snapshot.data.appending(name).string }
    let names = snapshot.segments
    for (from, to) in [
      (names[0], "segment-0000000009.journal"),
      (names[names.count - 1], "segment-0000000009.journal"),
      (names[1], "segment-18446744073709551615.journal"), (names[1], "segment-7.journal"),
    ] {
      try snapshot.restore()
      try FileManager.default.copyItem(atPath: path(from), toPath: path(to))
      let number = try XCTUnwrap(JournalFormat.segment(ofFileName: from))
      try expectRefusal(snapshot, to, "the file says that it is segment \(number)")
      try expectAllBytes(snapshot)
    }
    // Swapped: each is read where it belongs.
    try snapshot.restore()
    rename(path(names[0]), path("x"))
    rename(path(names[1]), path(names[0]))
    rename(path("x"), path(names[1]))
    try expectRefusal(snapshot, names[0], "the file says that it is segment 2")
    try expectAllBytes(snapshot)
  }

  /// What is written through a link is written elsewhere.
  func testALinkedSegment() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let spare = try XCTUnwrap(snapshot.segments.last)
    let path = snapshot.data.appending(spare).string
    let elsewhere = directory.path.appending("elsewhere").string
    link(path, elsewhere)
    try expectRefusal(snapshot, spare, "the file has 2 links")
    unlink(path)
    symlink(elsewhere, path)
    try expectRefusal(snapshot, spare, "it is a symbolic link")
    XCTAssertEqual(
      try Data(contentsOf: URL(fileURLWithPath: elsewhere)), snapshot.files[spare])
  }

  func testAnotherJournalsSegment() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let other = try JournalSnapshot(
      in: directory.path.appending("other"), connections: 1, bytes: 1000, endsCleanly: true)
    for name in [snapshot.segments[0], try XCTUnwrap(snapshot.segments.last)] {
      try snapshot.restore()
      try XCTUnwrap(other.files[name] ?? other.files[other.segments[0]]).write(
        to: URL(fileURLWithPath: snapshot.data.appending(name).string))
      try expectRefusal(snapshot, name, "it is a segment of another journal")
      let contents = try JournalContents(snapshot.data, asked: [1])
      XCTAssertTrue(isPrefix(contents.bytes(of: 1), of: snapshot.sent[1] ?? []))
    }
  }

  /// The marks of another journal are blamed, and not the segments.
  func testAnotherJournalsMarks() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let other = try JournalSnapshot(
      in: directory.path.appending("other"), connections: 1, bytes: 1000, endsCleanly: true)
    let marks = snapshot.data.appending(JournalFormat.marksName)
    try XCTUnwrap(other.files[JournalFormat.marksName]).write(
      to: URL(fileURLWithPath: marks.string))
    try expectRefusal(snapshot, "marks", "the file is of another journal")
    try expectAllBytes(snapshot)
    // A link is not followed.
    unlink(marks.string)
    symlink(other.data.appending(JournalFormat.marksName).string, marks.string)
    XCTAssertThrowsError(try EchoServer(snapshot.data, ["--segment-size", "1M"]))
    XCTAssertEqual(
      try Data(contentsOf: URL(fileURLWithPath: other.data.appending("marks").string)),
      other.files["marks"])
  }

  /// The newest segment, which has nothing, is no reason not to start; the daemon says which it is.
  func testADamagedSpare() throws {
    let directory = try temporaryDirectory()
    let snapshot = try snapshot(directory)
    let spare = snapshot.data.appending(try XCTUnwrap(snapshot.segments.last))
    let number = snapshot.segments.count
    for (words, harm) in [
      (
        "its header is unreadable",
        {
          let file = try FileDescriptor.open(spare, .writeOnly)
          try file.closeAfter { _ = try file.writeAll(toAbsoluteOffset: 20, [0xff, 0xfe]) }
        }
      ),
      ("the file is empty", { truncate(spare.string, 0) }),
    ] as [(String, () throws -> Void)] {
      try snapshot.restore()
      try harm()
      let server = try EchoServer(snapshot.data, ["--segment-size", "1M"])
      XCTAssertTrue(
        server.logged.contains("segment \(number) at offset 0: \(words)"), server.logged)
      let client = try EchoClient(port: server.port)
      XCTAssertTrue(client.exchange([1, 2, 3], until: 3))
      XCTAssertEqual(server.stop(), 0)
      XCTAssertEqual(try JournalContents(snapshot.data, asked: [3]).bytes(of: 3), [1, 2, 3])
      try expectAllBytes(snapshot)
    }
  }

  /// A whole older copy put back is a sound journal, of which nothing inside it can tell that there
  /// was more: it is read, and goes on from there.
  func testAnOlderDirectoryPutBack() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let older = try JournalSnapshot(in: data, endsCleanly: true)
    var server = try EchoServer(data, ["--segment-size", "1M"])
    let later = try EchoClient(port: server.port)
    XCTAssertTrue(later.exchange(randomBytes(2_000_000), until: 2_000_000))
    XCTAssertEqual(server.stop(), 0)
    try older.restore()
    XCTAssertEqual(try EchoServer.command("verify", data.string).status, 0)
    server = try EchoServer(data, ["--segment-size", "1M"])
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(1_500_000)
    XCTAssertTrue(client.exchange(bytes, until: bytes.count))
    XCTAssertEqual(server.stop(), 0, server.logged)
    XCTAssertEqual(try server.verify().status, 0)
    for (connection, sent) in older.sent { XCTAssertTrue(try server.replay(connection) == sent) }
    XCTAssertTrue(try server.replay(UInt64(older.sent.count + 1)) == bytes)
  }

  // MARK: The lock

  /// Whatever is deleted in the directory, a second daemon is refused.
  func testTheLockCannotBeDeleted() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    for name in try FileManager.default.contentsOfDirectory(atPath: data.string) {
      unlink(data.appending(name).string)
    }
    XCTAssertThrowsError(try EchoServer(data, ["--segment-size", "1M"])) {
      XCTAssertTrue("\($0)".contains("another echo-to-disk is writing to this directory"), "\($0)")
    }
    server.kill()
  }

  /// A new segment replaces no file, and follows no link.
  func testANewSegmentReplacesNothing() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let victim = directory.path.appending("victim").string
    try Data("precious".utf8).write(to: URL(fileURLWithPath: victim))
    let opened = try JournalDirectory(data, syncs: false)
    func make(_ number: UInt64) throws {
      _ = try Segment(
        making: number, in: opened.directory, data, opened.identity, size: 1 << 20, syncs: false)
    }
    let name = data.appending(JournalFormat.fileName(of: 1)).string
    symlink(victim, name + JournalFormat.unfinishedSuffix)
    try make(1)
    XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: victim)), Data("precious".utf8))
    let before = try Data(contentsOf: URL(fileURLWithPath: name))
    XCTAssertThrowsError(try make(1)) { XCTAssertTrue($0 is Segment.NumberTaken, "\($0)") }
    XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: name)), before)
    XCTAssertFalse(
      FileManager.default.fileExists(atPath: name + JournalFormat.unfinishedSuffix))
    // The path leads elsewhere now.
    rename(data.string, directory.path.appending("moved").string)
    mkdir(data.string, 0o700)
    XCTAssertThrowsError(try make(2)) { XCTAssertTrue("\($0)".contains("replaced"), "\($0)") }
  }

  /// The daemon continues under the next number.
  func testANumberThatIsTaken() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let taken = data.appending(JournalFormat.fileName(of: 2)).string
    XCTAssertTrue(FileManager.default.createFile(atPath: taken, contents: Data([1])))
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(1_500_000)
    XCTAssertTrue(client.exchange(bytes, until: bytes.count))
    XCTAssertTrue(server.logged.contains("segment-0000000002.journal exists"), server.logged)
    XCTAssertEqual(server.stop(), 0)
    XCTAssertEqual(try Data(contentsOf: URL(fileURLWithPath: taken)), Data([1]))
    let contents = try JournalContents(data, asked: [1])
    XCTAssertTrue(contents.bytes(of: 1) == bytes)
    XCTAssertEqual(contents.damages, ["segment 2 at offset 0: its header is unreadable"])
  }

  // MARK: Bytes that clients chose

  /// A client sends the journal itself back, aligned as batches are, and its batch is torn.
  func testForgedBatchesInAPayload() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let first = try EchoClient(port: server.port)
    XCTAssertTrue(first.exchange([1, 2, 3], until: 3))
    let segment = data.appending(JournalFormat.fileName(of: 1))
    let own = [UInt8](try Data(contentsOf: URL(fileURLWithPath: segment.string)).prefix(40_000))
    let forger = try EchoClient(port: server.port)
    // At each distance from the beginning of a unit.
    for shift in stride(from: 0, to: 512, by: 8) {
      XCTAssertTrue(
        forger.exchange(
          [UInt8](repeating: 0, count: shift) + own.prefix(4096),
          until: forger.received.count + shift + 4096))
    }
    server.kill()
    // The last batch with data is torn: its header is gone.
    let reader = try openSegment(1, of: data)
    var headers: [BatchHeader] = []
    reader.headers(from: reader.header.unit) { headers.append($0) }
    let torn = try XCTUnwrap(headers.last { $0.length > 4000 })
    let file = try FileDescriptor.open(segment, .writeOnly)
    try file.closeAfter {
      _ = try file.writeAll(
        toAbsoluteOffset: Int64(torn.offset), [UInt8](repeating: 0xaa, count: 96))
      _ = try file.writeAll(
        toAbsoluteOffset: Int64(torn.end), [UInt8](repeating: 0, count: (1 << 20) - torn.end))
    }
    let verify = try EchoServer.command("verify", data.string)
    XCTAssertEqual(verify.status, 0, verify.output)
    XCTAssertTrue(verify.output.contains("torn tail: segment 1 at offset \(torn.offset)"))
    let next = try EchoServer(data, ["--segment-size", "1M"])
    let client = try EchoClient(port: next.port)
    XCTAssertTrue(client.exchange([9], until: 1))
    XCTAssertEqual(next.stop(), 0)
    XCTAssertEqual(try next.replay(3), [9])
    let following = try openSegment(2, of: data)
    XCTAssertEqual(following.firstHeader()?.sequence, torn.sequence)
  }

  /// Even with the right key a header is valid only where it belongs, with numbers that its place
  /// explains.
  func testNumbersThatThePlaceDoesNotExplain() throws {
    let directory = try temporaryDirectory()
    let file = SegmentHeader(
      unit: 512, identity: JournalIdentity(), segment: 3, size: 1 << 20, created: 0)
    let good = BatchHeader(
      segment: 3, offset: 1536, sequence: 11, first: 10, before: 9, durable: 9, nextConnection: 5,
      length: 80, records: 2, unit: 512)
    func read(_ header: BatchHeader, at offset: Int, _ identity: JournalIdentity? = nil)
      -> BatchHeader?
    {
      withUnsafeTemporaryAllocation(byteCount: 96, alignment: 8) { bytes in
        header.write(to: bytes, identity ?? file.identity)
        return BatchHeader(UnsafeRawBufferPointer(bytes), at: offset, in: file)
      }
    }
    XCTAssertEqual(read(good, at: 1536), good)
    XCTAssertNil(read(good, at: 2048))
    XCTAssertNil(read(good, at: 1536, JournalIdentity()))
    let changes: [(inout BatchHeader) -> Void] = [
      { $0.sequence = .max }, { $0.sequence = 13 }, { $0.sequence = 10 }, { $0.first = 0 },
      { $0.durable = 11 }, { $0.durable = .max }, { $0.before = 10 }, { $0.durable = 8 },
      { $0.nextConnection = .max }, { $0.length = 1 << 20 }, { $0.records = 3 }, { $0.unit = 0 },
      { $0.unit = 1 << 30 }, { $0.segment = 4 },
    ]
    for (index, change) in changes.enumerated() {
      var header = good
      change(&header)
      XCTAssertNil(read(header, at: 1536), "change \(index)")
    }
    withExtendedLifetime(directory) {}
  }

  func testNobodyElseReadsTheJournal() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(
      data, ["--segment-size", "1M"], under: ["/bin/sh", "-c", "umask 0; exec \"$@\"", "sh"])
    XCTAssertEqual(server.stop(), 0)
    func mode(_ path: FilePath) -> mode_t {
      var status = stat()
      XCTAssertEqual(lstat(path.string, &status), 0)
      return status.st_mode & 0o777
    }
    XCTAssertEqual(mode(data), 0o700)
    for name in try FileManager.default.contentsOfDirectory(atPath: data.string) {
      XCTAssertEqual(mode(data.appending(name)), 0o600, name)
    }
  }

  /// A table that a terminal shows has nothing that it would act on; and there is a date in it.
  func testWhatAClientChoseIsEscaped() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    var journal = try HandMadeJournal(in: data)
    try journal.append([
      .opened(1, "/tmp/\u{1b}[2J\u{202e}\\x"), .opened(2, "a\u{85}\nb\u{2028}c"),
    ])
    let list = try EchoServer.command("list", data.string)
    XCTAssertEqual(list.status, 0, list.errors)
    XCTAssertTrue(list.output.contains("/tmp/\\u{1B}[2J\\u{202E}\\x"), list.output)
    XCTAssertTrue(list.output.contains("a\\u{85}\\nb\\u{2028}c"), list.output)
    XCTAssertTrue(list.output.contains("1970-01-01T00:00:00"), list.output)
    let lines = list.output.split(separator: "\n")
    XCTAssertEqual(lines.count, 3)
    // The columns begin where their headings do.
    let columns = lines.map { line in
      (line.firstRange(of: "opened") ?? line.firstRange(of: "1970-"))
        .map { line.distance(from: line.startIndex, to: $0.lowerBound) }
    }
    XCTAssertEqual(Set(columns).count, 1, list.output)
    let full = try ChildProcess.run(
      "/bin/sh", ["-c", "\(ChildProcess.built("echo-to-disk")) list \(data) >/dev/full"])
    XCTAssertEqual(full.status, 1, full.errors)
  }
}
