// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import EchoToDisk

/// What is trimmed of a journal, by the daemon and by hand, and what its readers say of the rest.
final class RetentionTests: XCTestCase {
  private static let mebibyte = 1 << 20

  /// The segments in a directory, in order, whoever's they are.
  private func segments(_ data: FilePath) throws -> [UInt64] {
    try FileManager.default.contentsOfDirectory(atPath: data.string)
      .compactMap(JournalFormat.segment(ofFileName:)).sorted()
  }

  private func trim(_ data: FilePath, _ options: String...) throws -> ChildProcess {
    try ChildProcess.run(
      ChildProcess.built("echo-to-disk"), ["trim", data.string] + options, seconds: 60)
  }

  private func assertSound(_ data: FilePath, line: UInt = #line) throws {
    let verify = try EchoServer.command("verify", data.string)
    XCTAssertEqual(verify.status, 0, verify.output + verify.errors, line: line)
    let list = try EchoServer.list(data).run
    XCTAssertEqual(list.status, 0, list.errors, line: line)
  }

  /// A journal of some segments of 1 MiB, which a daemon has ended, and what connection 1 sent.
  private func journal(in data: FilePath, megabytes: Int) throws -> [UInt8] {
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let bytes = randomBytes(megabytes * Self.mebibyte)
    XCTAssertTrue(try EchoClient(port: server.port).exchange(bytes, until: bytes.count))
    XCTAssertEqual(server.stop(), 0, server.logged)
    return bytes
  }

  // MARK: By the daemon

  func testTheDaemonKeepsSoManyBytes() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let metrics = directory.path.appending("metrics").string
    let server = try EchoServer(
      data, ["--segment-size", "1M", "--keep-bytes", "4M", "--metrics", "unix:\(metrics)"])
    let first = try EchoClient(port: server.port)
    XCTAssertTrue(first.exchange([1, 2, 3], until: 3))
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(10 * Self.mebibyte)
    XCTAssertTrue(
      client.exchange(
        bytes, until: bytes.count,
        progress: { _ in XCTAssertLessThanOrEqual((try? self.segments(data).count) ?? 0, 4) }))
    let last = try EchoClient(port: server.port)
    XCTAssertTrue(last.exchange([4, 5], until: 2))
    XCTAssertTrue(
      eventually { server.logged.contains("1 segments trimmed, 1MiB; the journal begins with") },
      server.logged)
    try assertSound(data)
    // Of one connection nothing is left, of one its end, and one is whole.
    let rows = try server.list()
    XCTAssertEqual(rows.map(\.connection), [2, 3])
    XCTAssertEqual(rows.map { $0.peer == nil }, [true, false])
    XCTAssertEqual(try EchoServer.replay(data, 1).0, 1)
    let (status, rest) = try EchoServer.replay(data, 2)
    XCTAssertEqual(status, 3)
    XCTAssertEqual(rest.count, rows.first?.bytes)
    XCTAssertGreaterThan(rest.count, Self.mebibyte)
    XCTAssertTrue(bytes.suffix(rest.count) == rest[...])
    XCTAssertEqual(try server.replay(3), [4, 5])
    let text = try ChildProcess.run(
      ChildProcess.installed("curl", package: "curl"),
      ["-s", "--unix-socket", metrics, "http://localhost/metrics"]
    ).output
    let begin = try XCTUnwrap(segments(data).first)
    XCTAssertTrue(text.contains("\necho_to_disk_segments 4\n"), text)
    XCTAssertTrue(text.contains("\necho_to_disk_segment_bytes \(4 * Self.mebibyte)\n"), text)
    XCTAssertTrue(text.contains("\necho_to_disk_trimmed_segments_total \(begin - 1)\n"), text)
    XCTAssertEqual(server.stop(), 0)
    XCTAssertTrue(
      server.logged.contains("4 segments, 4MiB on disk, \(begin - 1) trimmed"), server.logged)
    try assertSound(data)
  }

  /// At the start, too, and what a limit of age says without a write.
  func testTheDaemonKeepsSoManyDays() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let bytes = try journal(in: data, megabytes: 4)
    let before = try segments(data)
    var server = try EchoServer(data, ["--segment-size", "1M", "--keep-days", "1"])
    XCTAssertEqual(server.stop(), 0)
    XCTAssertEqual(try segments(data), before)
    for number in before.prefix(2) {
      var times = [timespec(tv_sec: time(nil) - 100_000, tv_nsec: 0), timespec()]
      times[1] = times[0]
      let path = data.appending(JournalFormat.fileName(of: number)).string
      XCTAssertEqual(utimensat(AT_FDCWD, path, times, 0), 0)
    }
    // What its header says counts, too: the segments have been made today.
    server = try EchoServer(data, ["--segment-size", "1M", "--keep-days", "1"])
    XCTAssertEqual(server.stop(), 0)
    XCTAssertEqual(try segments(data), before)
    // 0.9 seconds, with connections at rest; the last segment that has batches stays.
    server = try EchoServer(data, ["--segment-size", "1M", "--keep-days", "0.00001"])
    XCTAssertTrue(eventually { (try? segments(data).count) ?? 0 <= 2 }, server.logged)
    let (status, rest) = try EchoServer.replay(data, 1)
    XCTAssertEqual(status, 3)
    XCTAssertTrue(bytes.suffix(rest.count) == rest[...])
    XCTAssertFalse(rest.isEmpty)
    XCTAssertEqual(server.stop(), 0)
    try assertSound(data)
  }

  /// Killed at any moment, while it trims at least every other time.
  func testKilledWhileItTrims() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    var random = SeededGenerator(seed: 18)
    for _ in 0..<6 {
      let server = try EchoServer(data, ["--segment-size", "1M", "--keep-bytes", "3M"])
      let client = try EchoClient(port: server.port)
      let bytes = randomBytes(8 * Self.mebibyte)
      let stop = Int.random(in: 1..<bytes.count, using: &random)
      client.exchange(bytes, until: stop)
      server.kill()
      try assertSound(data)
      let row = try XCTUnwrap(EchoServer.list(data).rows.last)
      let (status, rest) = try EchoServer.replay(data, row.connection)
      XCTAssertEqual(status, row.peer == nil ? 3 : 0)
      // What was echoed last is there, wherever the rest begins.
      let place = rest.isEmpty ? bytes.indices.prefix(0) : Data(bytes).range(of: Data(rest))
      XCTAssertGreaterThanOrEqual(place?.upperBound ?? -1, client.received.count)
    }
    let server = try EchoServer(data, ["--segment-size", "1M", "--keep-bytes", "3M"])
    XCTAssertEqual(server.stop(), 0)
    XCTAssertLessThanOrEqual(try segments(data).count, 3)
    try assertSound(data)
  }

  /// Killed between the mark and the deletion: nobody misses or reads what is left, and the next
  /// trimming deletes it.
  func testWhatAKilledTrimmingLeaves() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    _ = try journal(in: data, megabytes: 3)
    let first = data.appending(JournalFormat.fileName(of: 1)).string
    let contents = try Data(contentsOf: URL(fileURLWithPath: first))
    XCTAssertEqual(try trim(data, "--before", "3").status, 0)
    for deletes in [{ try self.trim(data, "--keep-bytes", "1G").status }, { try self.serve(data) }]
    {
      try contents.write(to: URL(fileURLWithPath: first))
      try assertSound(data)
      XCTAssertEqual(try EchoServer.replay(data, 1).0, 3)
      XCTAssertEqual(try deletes(), 0)
      XCTAssertEqual(try segments(data).first, 3)
      try assertSound(data)
    }
  }

  private func serve(_ data: FilePath) throws -> Int32 {
    try EchoServer(data, ["--segment-size", "1M", "--keep-bytes", "1G"]).stop()
  }

  // MARK: By hand

  func testTrimKeepsSoManyBytes() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    _ = try journal(in: data, megabytes: 4)
    let all = try segments(data)
    let dry = try trim(data, "--keep-bytes", "3.5M", "--dry-run")
    XCTAssertEqual(dry.status, 0, dry.errors)
    let begin = all[all.count - 3]
    XCTAssertEqual(
      dry.output,
      "\(begin - 1) segments would be deleted, \(begin - 1)MiB; the journal would begin with "
        + "segment \(begin)\n")
    XCTAssertEqual(try segments(data), all)
    XCTAssertEqual(try EchoServer.replay(data, 1).0, 0)
    let wet = try trim(data, "--keep-bytes", "3.5M", "--keep-days", "1")
    XCTAssertEqual(
      wet.output,
      "\(begin - 1) segments deleted, \(begin - 1)MiB; the journal begins with segment \(begin)\n")
    XCTAssertEqual(try segments(data), all.suffix(3))
    // The last one that has batches stays, whatever is asked for.
    XCTAssertEqual(try trim(data, "--keep-bytes", "0", "--keep-days", "0.0000001").status, 0)
    XCTAssertEqual(try segments(data), all.suffix(2))
    XCTAssertEqual(try EchoServer.replay(data, 1).0, 3)
    try assertSound(data)
  }

  /// A reader's segment stays until it has read it, and with it all that it has yet to read.
  func testWhatIsReadIsKept() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let bytes = try journal(in: data, megabytes: 3)
    var read: [UInt8] = []
    var replay = ConnectionReplay(1)
    var hasBegun = false
    try JournalReader(directory: data).read { event in
      replay.take(event) { read += $0 }
      switch event {
      case .record(let record, _, _) where record.kind == .data && !hasBegun:
        hasBegun = true
        let trim = try trim(data, "--keep-bytes", "0")
        XCTAssertEqual(trim.status, 1)
        XCTAssertTrue(trim.output.hasPrefix("0 segments deleted"), trim.output)
        XCTAssertTrue(trim.errors.contains("segment 1 is being read"), trim.errors)
        let server = try EchoServer(data, ["--segment-size", "1M", "--keep-bytes", "3M"])
        XCTAssertTrue(server.logged.contains("segment 1 is being read"), server.logged)
        XCTAssertEqual(server.stop(), 0)
        XCTAssertEqual(try segments(data).first, 1)
      case .endOfSegment(1, _):
        // It is released when the next one is held.
        XCTAssertEqual(try trim(data, "--before", "2").status, 1)
      case .endOfSegment(2, _):
        XCTAssertEqual(try trim(data, "--before", "3").status, 1)
        XCTAssertEqual(try segments(data).first, 2)
      case .damage(let place, let what): XCTFail("\(place): \(what)")
      default: break
      }
    }
    XCTAssertTrue(hasBegun)
    XCTAssertTrue(read == bytes)
    guard case .complete = replay.outcome else { return XCTFail("\(replay.outcome)") }
    XCTAssertEqual(try trim(data, "--keep-bytes", "0").status, 0)
  }

  // MARK: Short connections

  /// A batch takes a block of the disk: there is none without a record, and what a short connection
  /// sends is in the one that says that it was opened.
  func testShortConnections() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    for _ in 0..<20 {
      let client = try EchoClient(port: server.port)
      XCTAssertTrue(client.exchange(randomBytes(32), until: 32))
      client.endInput()
      XCTAssertFalse(client.exchange([], until: 33))
    }
    // One that sends nothing is recorded, too, soon.
    let silent = try EchoClient(port: server.port)
    XCTAssertTrue(eventually { (try? server.list())?.last?.peer == silent.name })
    server.kill()
    var opened: Set<UInt64> = []
    var batch: BatchHeader?
    try JournalReader(directory: data).read { event in
      switch event {
      case .batch(let header):
        XCTAssertGreaterThan(header.records, 0)
        batch = header
        opened = []
      case .record(let record, _, _):
        if record.kind == .opened { opened.insert(record.connection) }
        if record.kind == .data { XCTAssertTrue(opened.contains(record.connection)) }
      case .damage(let place, let what): XCTFail("\(place): \(what)")
      default: break
      }
    }
    // At most one more for each closing, where the machine is so slow that it is due.
    XCTAssertLessThanOrEqual(try XCTUnwrap(batch).sequence, 2 * 20 + 1)
  }

  func testWrongUse() throws {
    let data = try temporaryDirectory().path.appending("data").string
    for (arguments, words) in [
      (["trim", data], "nothing to trim by: give --before, or --keep-bytes"),
      (
        ["trim", data, "--before", "2", "--keep-days", "1"], "not with --keep-bytes or --keep-days"
      ),
      (["trim", data, "--keep-bytes", "few"], "The value 'few' is invalid for '--keep-bytes"),
      (["trim", data, "--keep-days", "0"], "--keep-days 0.0: days, more than 0, up to 36500"),
      (["--data", data, "--keep-days", "nan"], "--keep-days nan: days, more than 0"),
      (
        ["--data", data, "--keep-bytes", "100M"],
        "--keep-bytes 100MiB: 3 segments or more, which are 192MiB"
      ),
    ] {
      let run = try ChildProcess.run(ChildProcess.built("echo-to-disk"), arguments)
      XCTAssertEqual(run.status, 64, "\(arguments)")
      XCTAssertTrue(run.errors.contains(words), "\(arguments): \(run.errors)")
    }
  }
}
