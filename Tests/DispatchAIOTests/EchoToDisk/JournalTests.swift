// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import Logging
import SystemPackage
import XCTest

@testable import EchoToDisk

/// The bytes before the payload of a batch's first record.
private let headers = JournalFormat.headerLength + JournalFormat.recordHeaderLength

/// A reader of one segment of a journal.
func openSegment(_ number: UInt64, of data: FilePath) throws -> SegmentReader {
  let inspection = try JournalInspection(data)
  return try inspection.open(XCTUnwrap(inspection.segments.first { $0.number == number })).get()
}

/// The journal on disk: what is torn, what is damaged, and what a restart makes of it.
final class JournalTests: XCTestCase {
  /// A journal of some batches in one segment, of three connections that spoke in turn.
  private struct Sample {
    let directory: TemporaryDirectory
    var data: FilePath { directory.path.appending("data") }
    var segment: FilePath { data.appending(JournalFormat.fileName(of: 1)) }
    let sent: [[UInt8]]
    /// Where the batches are, in order.
    var batches: [(header: BatchHeader, offset: Int)] = []

    init(_ directory: TemporaryDirectory, endsCleanly: Bool) throws {
      self.directory = directory
      let server = try EchoServer(
        directory.path.appending("data"), ["--segment-size", "1M", "--log-level", "debug"])
      var sent: [[UInt8]] = []
      for _ in 0..<3 {
        let client = try EchoClient(port: server.port)
        let bytes = randomBytes(10_000)
        for start in stride(from: 0, to: bytes.count, by: 2500) {
          XCTAssertTrue(
            client.exchange(Array(bytes[start..<start + 2500]), until: start + 2500))
        }
        sent.append(bytes)
      }
      self.sent = sent
      if endsCleanly { XCTAssertEqual(server.stop(), 0) } else { server.kill() }
      let reader = try openSegment(1, of: data)
      var offset = reader.header.unit
      while case .valid(let header, _) = reader.batch(at: offset) {
        batches.append((header, offset))
        offset = header.end
      }
      XCTAssertGreaterThanOrEqual(batches.count, 12)
    }

    /// The last batch that carries data of a connection.
    func lastData() throws -> (header: BatchHeader, offset: Int) {
      try XCTUnwrap(batches.last { $0.header.length > 2000 })
    }

    func change(at offset: Int, _ body: (inout [UInt8]) -> Void) throws {
      var bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: segment.string)))
      var part = Array(bytes[offset...])
      body(&part)
      bytes.replaceSubrange(offset..., with: part)
      try Data(bytes).write(to: URL(fileURLWithPath: segment.string))
    }

    func verify() throws -> ChildProcess { try EchoServer.command("verify", data.string) }

    func replay(_ connection: Int) throws -> ChildProcess {
      try EchoServer.command("replay", data.string, "--connection", "\(connection)")
    }
  }

  // MARK: Torn tails

  /// Whatever part of the last batch is missing: what was before it is readable, and a restart
  /// goes on in a new segment.
  func testATornTail() throws {
    let directory = try temporaryDirectory()
    // Each is given the file from the batch on, and the length of the batch.
    let tears: [(inout [UInt8], Int) -> Void] = [
      // Not in the padding, which means nothing.
      { bytes, length in bytes[length - 8] ^= 1 },
      { bytes, _ in for i in 512..<bytes.count { bytes[i] = 0 } },
      { bytes, _ in for i in 0..<512 { bytes[i] = 0 } },
      { bytes, _ in for i in 0..<16 { bytes[i] = 0xaa } },
    ]
    for (index, tear) in tears.enumerated() {
      try? FileManager.default.removeItem(atPath: directory.path.appending("data").string)
      let sample = try Sample(directory, endsCleanly: false)
      let last = try sample.lastData()
      // Batches behind it, with the closing of the connection, would be torn as well.
      let end = JournalFormat.headerLength + last.header.length
      try sample.change(at: last.offset) { bytes in
        for i in end..<bytes.count { bytes[i] = 0 }
        tear(&bytes, end)
      }
      let verify = try sample.verify()
      XCTAssertEqual(verify.status, 0, verify.output)
      XCTAssertTrue(
        verify.output.contains("torn tail: segment 1 at offset \(last.offset)"), verify.output)
      XCTAssertTrue(verify.output.contains("1 torn tails, 0 damages"), verify.output)

      let before = try Data(contentsOf: URL(fileURLWithPath: sample.segment.string))
      let server = try EchoServer(sample.data, ["--segment-size", "1M"])
      XCTAssertTrue(
        server.logged.contains("ended within a batch, at segment 1 at offset \(last.offset)"),
        "\(index): \(server.logged)")
      let client = try EchoClient(port: server.port)
      XCTAssertTrue(client.exchange([1, 2, 3], until: 3))
      XCTAssertEqual(server.stop(), 0)
      XCTAssertEqual(
        try Data(contentsOf: URL(fileURLWithPath: sample.segment.string)), before,
        "the restart touched the torn segment")
      let again = try sample.verify()
      XCTAssertEqual(again.status, 0, again.output)
      XCTAssertTrue(again.output.contains("1 torn tails, 0 damages"), again.output)
      XCTAssertEqual(try server.replay(1), sample.sent[0])
      XCTAssertEqual(try server.replay(2), sample.sent[1])
      XCTAssertEqual(try server.replay(3), Array(sample.sent[2][..<7500]))
      XCTAssertEqual(try server.list().last?.bytes, 3)
    }
  }

  /// Two batches were in flight, and only the second made it.
  func testATornBatchBeforeAWholeOne() throws {
    let sample = try Sample(temporaryDirectory(), endsCleanly: false)
    let (torn, next) = (sample.batches[8], sample.batches[9])
    let identity = try openSegment(1, of: sample.data).header.identity
    try sample.change(at: torn.offset) { bytes in bytes[100] ^= 0xff }
    try sample.change(at: next.offset) { bytes in
      // As it would be, had it been written before the other was durable; and nothing after it.
      var header = next.header
      header.durable = torn.header.sequence - 1
      bytes.withUnsafeMutableBytes { header.write(to: $0, identity) }
      let end = JournalFormat.headerLength + header.length
      for i in end..<bytes.count { bytes[i] = 0 }
    }
    let verify = try sample.verify()
    XCTAssertEqual(verify.status, 0, verify.output)
    XCTAssertTrue(
      verify.output.contains("torn tail: segment 1 at offset \(torn.offset)"), verify.output)
    let server = try EchoServer(sample.data, ["--segment-size", "1M"])
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1], until: 1))
    XCTAssertEqual(server.stop(), 0)
    XCTAssertEqual(try sample.verify().status, 0)
  }

  // MARK: Damage

  func testDamageIsNamed() throws {
    let directory = try temporaryDirectory()
    let cases: [(String, (inout [UInt8], BatchHeader) -> Void, String)] = [
      (
        "a byte of a payload", { bytes, _ in bytes[headers + 200] ^= 1 },
        "wrong checksum of a record"
      ),
      (
        "a byte of a record's header", { bytes, _ in bytes[JournalFormat.headerLength] ^= 1 },
        "wrong checksum of a record's header"
      ),
      ("a byte of the batch's header", { bytes, _ in bytes[33] ^= 1 }, "no valid batch header"),
      (
        "all of the batch",
        { bytes, batch in
          for i in 0..<JournalFormat.headerLength + batch.length { bytes[i] = 0 }
        }, "no valid batch header"
      ),
    ]
    for (what, harm, words) in cases {
      try? FileManager.default.removeItem(atPath: directory.path.appending("data").string)
      let sample = try Sample(directory, endsCleanly: false)
      // In the middle of the second connection's bytes.
      let target = try XCTUnwrap(
        sample.batches.filter { $0.header.length > 2000 }.dropFirst(5).first)
      try sample.change(at: target.offset) { harm(&$0, target.header) }
      let verify = try sample.verify()
      XCTAssertEqual(verify.status, 1, "\(what): \(verify.output)")
      XCTAssertTrue(
        verify.output.contains("damage: segment 1 at offset \(target.offset): "),
        "\(what): \(verify.output)")
      XCTAssertTrue(verify.output.contains(words), "\(what): \(verify.output)")

      // Of the damaged connection, what is before; of the others, everything.
      let damaged = try sample.replay(2)
      XCTAssertEqual(damaged.status, 1)
      XCTAssertTrue(damaged.errors.contains("from position 2500 on are damaged"), damaged.errors)
      XCTAssertEqual(try sample.replay(1).status, 0)
      XCTAssertEqual(try sample.replay(3).status, 0)
      let list = try EchoServer.command("list", sample.data.string, "--json")
      XCTAssertEqual(list.status, 1)
      let rows = try JSONDecoder().decode([EchoServer.Row].self, from: Data(list.output.utf8))
      XCTAssertEqual(rows.map(\.bytes), [10_000, 7500, 10_000])
    }
  }

  /// After a clean end, the last batches are known to have been durable.
  func testDamageAtACleanEnd() throws {
    let sample = try Sample(temporaryDirectory(), endsCleanly: true)
    let last = try sample.lastData()
    try sample.change(at: last.offset) { $0[headers + 100] ^= 1 }
    let verify = try sample.verify()
    XCTAssertEqual(verify.status, 1, verify.output)
    XCTAssertTrue(
      verify.output.contains("damage: segment 1 at offset \(last.offset)"), verify.output)
    // The record of its closing tells that bytes are missing at the end.
    let damaged = try (1...3).filter { try sample.replay($0).status == 1 }
    XCTAssertEqual(damaged.count, 1)
  }

  /// A restart knows damage from the torn tail behind it, and gives no number again.
  func testARestartOnADamagedJournal() throws {
    let sample = try Sample(temporaryDirectory(), endsCleanly: false)
    let torn = try sample.lastData()
    let end = JournalFormat.headerLength + torn.header.length
    try sample.change(at: torn.offset) { bytes in
      for i in end..<bytes.count { bytes[i] = 0 }
      bytes[end - 8] ^= 1
    }
    // In the middle of the second connection's bytes.
    let target = try XCTUnwrap(sample.batches.filter { $0.header.length > 2000 }.dropFirst(5).first)
    try sample.change(at: target.offset) { $0[headers + 200] ^= 1 }
    func findings() throws -> [Substring] {
      try sample.verify().output.split(separator: "\n").filter {
        $0.hasPrefix("damage: ") || $0.hasPrefix("torn tail: ")
      }
    }
    let before = try findings()
    let (damaged, last) = (try XCTUnwrap(before.first), try XCTUnwrap(before.last))
    XCTAssertTrue(damaged.hasPrefix("damage: segment 1 at offset \(target.offset): "), "\(before)")
    XCTAssertTrue(last.hasPrefix("torn tail: segment 1 at offset \(torn.offset): "), "\(before)")

    let server = try EchoServer(sample.data, ["--segment-size", "1M"])
    XCTAssertTrue(
      server.logged.contains("is damaged: segment 1 at offset \(target.offset): "), server.logged)
    XCTAssertTrue(
      server.logged.contains("ended within a batch, at segment 1 at offset \(torn.offset);"),
      server.logged)
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1, 2, 3], until: 3))
    XCTAssertEqual(server.stop(), 0)
    XCTAssertEqual(try findings(), before)
    // A connection's number given again would have two connections' bytes.
    XCTAssertEqual(try server.replay(4), [1, 2, 3])
    XCTAssertEqual(try server.replay(1), sample.sent[0])
    XCTAssertEqual(try server.replay(3), Array(sample.sent[2][..<7500]))
    let next = try openSegment(2, of: sample.data)
    XCTAssertEqual(next.batchHeader(at: next.header.unit)?.sequence, torn.header.sequence + 1)
  }

  func testAMissingSegment() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(3_000_000)
    XCTAssertTrue(client.exchange(bytes, until: bytes.count))
    XCTAssertEqual(server.stop(), 0)
    XCTAssertEqual(try server.verify().status, 0)
    let second = data.appending(JournalFormat.fileName(of: 2)).string
    try FileManager.default.removeItem(atPath: second)
    let verify = try server.verify()
    XCTAssertEqual(verify.status, 1)
    XCTAssertTrue(verify.output.contains("are missing"), verify.output)
    // A damaged header, too, is damage.
    let third = data.appending(JournalFormat.fileName(of: 3)).string
    var whole = try Data(contentsOf: URL(fileURLWithPath: third))
    whole[17] ^= 1
    try whole.write(to: URL(fileURLWithPath: third))
    let both = try server.verify()
    XCTAssertTrue(
      both.output.contains("segment 3 at offset 0: its header is unreadable"), both.output)
    XCTAssertTrue(both.output.contains(" 2 damages"), both.output)
  }

  // MARK: While a server is writing

  /// What is written between two looks at a segment: the first found nothing there, the second
  /// finds batches behind it that call it durable.
  func testASegmentWrittenWhileItIsRead() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    // Larger than what is read ahead.
    let server = try EchoServer(data, ["--segment-size", "4M"])
    let client = try EchoClient(port: server.port)
    for count in 1...12 {
      XCTAssertTrue(client.exchange([UInt8](repeating: 1, count: 2500), until: 2500 * count))
    }
    // Without a mark of its end, which would say that more was there.
    server.kill()
    let all = try Reading(data)
    XCTAssertEqual(all.damages, [])
    let state = try JournalState(data)
    try state.keep(batches: 6)
    let reading = try Reading(data) { event in
      if case .record(let record, _, _) = event, record.position == 2500 { try state.restore() }
    }
    XCTAssertEqual(reading.damages, [])
    XCTAssertEqual(reading.torn, 0)
    XCTAssertEqual(reading.bytes, all.bytes)
  }

  /// The same with other segments begun, before and after the end of the first has been found.
  func testSegmentsWrittenWhileOneIsRead() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(3_000_000)
    XCTAssertTrue(client.exchange(bytes, until: bytes.count))
    server.kill()
    let state = try JournalState(data)

    try state.keep(batches: 3)
    let before = try Reading(data)
    XCTAssertEqual(before.damages, [])
    let during = try Reading(data) { event in
      if case .record(let record, _, _) = event, record.kind == .data { try state.restore() }
    }
    XCTAssertEqual(during.damages, [])
    XCTAssertEqual(during.bytes, bytes.count)

    try state.keep(batches: 3)
    let after = try Reading(data) { event in
      if case .endOfSegment(1, _) = event { try state.restore() }
    }
    XCTAssertEqual(after.damages, [])
    XCTAssertEqual(after.bytes, before.bytes)
    XCTAssertEqual(try Reading(data).bytes, bytes.count)
  }

  /// All that is in a journal, and how it was with fewer batches.
  private struct JournalState {
    let segments: [(path: FilePath, bytes: Data)]
    let data: FilePath

    init(_ data: FilePath) throws {
      self.data = data
      segments = try JournalInspection(data).segments.map {
        let path = data.appending($0.name)
        return (path, try Data(contentsOf: URL(fileURLWithPath: path.string)))
      }
    }

    /// Of the first segment, and none of the others.
    func keep(batches: Int) throws {
      for (index, segment) in segments.enumerated() {
        let reader = try openSegment(UInt64(index + 1), of: data)
        var end = reader.header.unit
        for _ in 0..<(index == 0 ? batches : 0) {
          end = try XCTUnwrap(reader.batchHeader(at: end)).end
        }
        let rest = Data(count: segment.bytes.count - end)
        try (segment.bytes[..<end] + rest).write(to: URL(fileURLWithPath: segment.path.string))
      }
    }

    func restore() throws {
      for segment in segments {
        try segment.bytes.write(to: URL(fileURLWithPath: segment.path.string))
      }
    }
  }

  /// What reading a journal comes to.
  private struct Reading {
    var damages: [String] = []
    var torn = 0
    var bytes = 0

    /// - Parameter then: called after each event.
    init(_ data: FilePath, then: (JournalReader.Event) throws -> Void = { _ in }) throws {
      try JournalReader(directory: data).read { event in
        switch event {
        case .record(let record, _, _): bytes += record.kind == .data ? record.length : 0
        case .damage(let place, let what): damages.append("\(place): \(what)")
        case .gap(let connection, let range, let place):
          damages.append("\(place): \(connection) \(range)")
        case .tornTail: torn += 1
        case .batch, .endOfSegment: break
        }
        try then(event)
      }
    }
  }

  // MARK: Failed writes

  /// Batches that fail together are lost once: what has gone to the next segment since is not.
  func testBatchesThatFailTogether() throws {
    let directory = try temporaryDirectory()
    do {
      let new = try JournalDirectory(directory.path, syncs: false)
      _ = try Segment(
        making: 1, in: new.directory, directory.path, new.identity, size: 1 << 20, syncs: false)
    }
    let opened = try JournalDirectory(directory.path, syncs: false)
    // A descriptor that cannot be written to takes the place of the segment's.
    let segment = directory.path.appending(JournalFormat.fileName(of: 1))
    let unwritable = open(segment.string, O_RDONLY)
    defer { close(unwritable) }
    dup2(unwritable, try XCTUnwrap(opened.fresh.first).file.fileDescriptor.rawValue)

    let queue = DispatchQueue(label: "test.journal")
    let context = try AIOContext(queueDepth: 8, queue: queue)
    let journal = try Journal(
      opened, context: context, settings: .init(segmentSize: 1 << 20, batchSize: 1 << 16),
      logger: Logger(label: "test"))
    let lost = Locked(0)
    let kept = Promise<Bool>()
    queue.sync {
      func append(for client: Client) {
        let count = journal.append(.data, of: 1, at: 0, most: 1, for: client) { _ in 1 }
        XCTAssertEqual(count, 1)
        journal.seal()
      }
      for _ in 0..<2 { append(for: Client { if !$0 { lost.withLock { $0 += 1 } } }) }
      journal.afterProgress = {
        journal.afterProgress = {}
        append(for: Client { kept.fulfil($0) })
      }
    }
    XCTAssertTrue(try kept.wait(), "what came after the failure was lost, too")
    XCTAssertEqual(lost.withLock { $0 }, 2)
    let closed = Promise<Void>()
    context.close { closed.fulfil(()) }
    try closed.wait()
  }

  private final class Client: JournalClient {
    private let tell: (Bool) -> Void
    init(_ tell: @escaping (_ isDurable: Bool) -> Void) { self.tell = tell }
    func becameDurable(_ bytes: UnsafeRawBufferPointer) { tell(true) }
    func journalFailed(_ error: any Error) { tell(false) }
  }

  // MARK: Spare segments

  /// The spare of a run with smaller segments does not take a full batch of this one.
  func testASpareThatIsTooSmall() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    XCTAssertEqual(try EchoServer(data, ["--segment-size", "1M"]).stop(), 0)
    let server = try EchoServer(data, ["--segment-size", "8M"])
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1, 2, 3], until: 3))
    XCTAssertEqual(server.stop(), 0)
    XCTAssertTrue(
      try openSegment(1, of: data).isFresh(), "the small spare was used")
    XCTAssertEqual(try server.verify().status, 0)
    XCTAssertEqual(try server.replay(1), [1, 2, 3])
  }

  // MARK: A full disk

  /// There is no room for another segment, and a batch does not fit into this one, which the client
  /// had bytes in that fills the next one: of that client nothing is recorded behind what is lost.
  func testNothingIsRecordedBehindALostBatch() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let path = directory.path.appending("socket").string
    let server = try EchoServer(data, ["--segment-size", "1M"], address: ["--unix", path])
    try server.limitFiles(to: "\((1 << 20) - 1)")
    // Fills the segment but for less than a batch, of 256 KiB, and more than a client's share.
    let filler = try EchoClient(unix: path)
    let part = randomBytes(16 << 10)
    var sent = 0
    func end() throws -> Int {
      let reader = try openSegment(1, of: data)
      var offset = reader.header.unit
      while case .valid(let header, _) = reader.batch(at: offset) { offset = header.end }
      return offset
    }
    while try end() < 850 << 10 {
      sent += part.count
      XCTAssertTrue(filler.exchange(part, until: sent), server.logged)
    }
    XCTAssertLessThan(try end(), 900 << 10)
    let clients = try (0..<3).map { _ in try EchoClient(unix: path) }
    for client in clients { XCTAssertTrue(client.exchange([1], until: 1)) }
    // All have more than a share for the server when it looks at them again.
    kill(server.process.processIdentifier, SIGSTOP)
    XCTAssertTrue(eventually { server.isStopped })
    for client in clients {
      let bytes = randomBytes(100 << 10)
      XCTAssertEqual(
        send(client.socket, bytes, bytes.count, Int32(MSG_NOSIGNAL)), bytes.count)
    }
    kill(server.process.processIdentifier, SIGCONT)
    for client in clients {
      XCTAssertFalse(client.exchange([], until: 2 + 100 << 10))
      XCTAssertTrue(client.isClosed)
    }
    XCTAssertTrue(server.logged.contains("the journal failed"), server.logged)
    XCTAssertEqual(server.stop(), 0, server.logged)
    let verify = try server.verify()
    XCTAssertEqual(verify.status, 0, verify.output)
  }

  // MARK: What the disk is asked for

  /// The directory's own name is made durable, also that of one which is there already.
  func testTheNameOfTheDirectory() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data").string
    let log = directory.path.appending("strace").string
    let strace = try ChildProcess.installed("strace", package: "strace")
    for _ in 0..<2 {
      // It cannot make a segment, and ends. (The Thread Sanitizer makes a small file of its own.)
      let run = try ChildProcess.run(
        strace,
        ["-f", "-y", "-o", log, "-e", "trace=fsync"]
          + ["/bin/sh", "-c", "ulimit -f 8000; exec \"$@\"", "sh"]
          + [ChildProcess.built("echo-to-disk"), "serve", "--data", data, "--port", "0"]
          + ["--segment-size", "8M"])
      XCTAssertEqual(run.status, 1, run.errors)
      let calls = try String(contentsOfFile: log, encoding: .utf8)
      XCTAssertTrue(calls.contains("<\(directory.path)>) "), calls)
    }
  }

  /// No echo before the write. `--sync batch`: what is written to is open with O_DSYNC; `--sync
  /// none`: it is not.
  func testSyncing() throws {
    for (sync, syncs) in [("batch", true), ("none", false)] {
      let directory = try temporaryDirectory()
      let data = directory.path.appending("data")
      let log = directory.path.appending("strace").string
      let server = try EchoServer(
        data, ["--segment-size", "1M", "--sync", sync],
        under: [
          ChildProcess.installed("strace", package: "strace"), "-f", "-o", log, "-e",
          "trace=io_submit,pwritev,recvfrom,sendto,openat",
        ])
      let client = try EchoClient(port: server.port)
      for _ in 0..<5 { XCTAssertTrue(client.exchange([7], until: client.received.count + 1)) }
      client.endInput()
      XCTAssertFalse(client.exchange([], until: 100))
      // Ends strace with its program.
      _ = try ChildProcess.run("/usr/bin/pkill", ["-TERM", "-f", data.string])
      server.process.waitForEnd()
      let calls = SystemCallLog.parse(try String(contentsOfFile: log, encoding: .utf8))
      let kinds = calls.compactMap { call -> String? in
        // With kernel AIO, and without.
        if call.contains("IOCB_CMD_PWRITE") || call.hasPrefix("pwritev(") { return "write" }
        if call.hasPrefix("sendto(") { return "echo" }
        return call.hasPrefix("recvfrom(") && call.hasSuffix("= 1") ? "receive" : nil
      }
      let round = ["receive", "write", "echo"]
      // Up to the last echo: what comes first and last are the records of the opening and closing.
      let last = try XCTUnwrap(kinds.lastIndex(of: "echo"))
      XCTAssertEqual(
        Array(kinds[...last].suffix(round.count * 4)), (0..<4).flatMap { _ in round })
      // Looked at by its name, then opened by the descriptor of that look.
      let segments = calls.filter {
        $0.hasPrefix("openat(") && $0.contains("/proc/self/fd/") && $0.contains("O_WRONLY")
      }
      XCTAssertFalse(
        calls.filter { $0.contains("segment-") && $0.contains("O_PATH") }.isEmpty)
      XCTAssertFalse(segments.isEmpty)
      for call in segments {
        XCTAssertTrue(call.contains("O_DIRECT"), call)
        XCTAssertEqual(call.contains("O_DSYNC"), syncs, call)
      }
    }
  }
}
