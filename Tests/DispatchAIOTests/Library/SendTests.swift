// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Files, and parts of them, to sockets.
final class SendTests: XCTestCase {
  private static let size = 1_300_000

  /// A stream: the end that is sent to, non-blocking, and the other, which blocks.
  private func pair(room: Int32 = 64 << 10) throws -> (near: Int32, far: Int32) {
    var ends: [Int32] = [0, 0]
    XCTAssertEqual(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends), 0)
    XCTAssertEqual(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0)
    var room = room
    for end in ends {
      setsockopt(end, SOL_SOCKET, SO_SNDBUF, &room, socklen_t(MemoryLayout<Int32>.size))
    }
    addTeardownBlock { [ends] in for end in ends { close(end) } }
    return (ends[0], ends[1])
  }

  /// Receives so many bytes, on a thread of its own.
  private func receive(_ count: Int, from fd: Int32) -> Promise<[UInt8]> {
    let promise = Promise<[UInt8]>()
    Thread.detachNewThread {
      var bytes = [UInt8](repeating: 0, count: count)
      var received = 0
      while received < count {
        let answer = bytes.withUnsafeMutableBytes {
          recv(fd, $0.baseAddress! + received, count - received, 0)
        }
        guard answer > 0 else { break }
        received += answer
      }
      promise.fulfil(Array(bytes[..<received]))
    }
    return promise
  }

  private func makeFile(_ directory: TemporaryDirectory, _ caching: AIOFile.Caching) throws
    -> AIOFile
  {
    let path = directory.path.appending("file")
    let file = try FileDescriptor.open(
      path, .readWrite, options: [.create, .truncate], permissions: .ownerReadWrite)
    try file.closeAfter {
      _ = try file.writeAll(blockContents[..<Self.size])
      XCTAssertEqual(fsync(file.rawValue), 0)
    }
    return try AIOFile.open(path, .readOnly, caching: caching)
  }

  private func evict(_ file: AIOFile) throws {
    // So that the page cache gets what is read, and no more.
    XCTAssertEqual(posix_fadvise(file.fileDescriptor.rawValue, 0, 0, POSIX_FADV_RANDOM), 0)
    try DispatchAIOTests.evict(file)
  }

  private func send(
    _ context: AIOContext, _ file: AIOFile, at offset: Int64, count: Int, to socket: Int32,
    header: [UInt8] = []
  ) throws -> Outcome {
    let done = Promise<Outcome>()
    try context.send(file, at: offset, count: count, to: socket, header: header) {
      dispatchPrecondition(condition: .onQueue(context.queue))
      done.fulfil($0)
    }
    return try done.wait()
  }

  private let header = Array("a head\r\n\r\n".utf8)

  /// Goal: every byte arrives once and in order, whichever way the file is read, cached or not, at
  /// any alignment, to a peer that takes 64 KiB at a time.
  func testAllIsSentByEveryWay() throws {
    let context = try AIOContext(queueDepth: 4)
    for caching in [AIOFile.Caching.direct, .buffered, .automatic] {
      for isOnDisk in [true, false] {
        let directory = try isOnDisk ? temporaryDirectory() : TemporaryDirectory(in: "/dev/shm")
        let file = try makeFile(directory, caching)
        // A memory file is never cold.
        for isCold in isOnDisk ? [true, false] : [false] {
          for (offset, count) in [
            (0, Self.size), (0, 0), (0, 1), (4096, 4096), (777, 20_000), (777, 100_000),
            (Self.size - 1, 1), (Self.size - 700_000, 700_000),
          ] {
            if isCold {
              try evict(file)
            } else {
              _ = try Data(contentsOf: URL(fileURLWithPath: file.path!.string))
            }
            for header in [header, []] {
              let (near, far) = try pair()
              let received = receive(header.count + count, from: far)
              let result = try send(
                context, file, at: Int64(offset), count: count, to: near, header: header)
              XCTAssertEqual(result, .success(count))
              let expected = header + blockContents[offset..<offset + count]
              XCTAssertTrue(
                try received.wait() == expected, "\(caching) \(isCold) \(count) at \(offset)")
            }
          }
        }
      }
    }
    XCTAssertTrue(context.loop.sends.sockets.isEmpty)
    try context.closeAndWait()
  }

  /// Goal: what is in the page cache is sent without reading it, and what is not is never waited
  /// for: not by a byte.
  func testWhatIsNotCachedIsNotSentInPlace() throws {
    let (directory, context) = (try temporaryDirectory(), try AIOContext(queueDepth: 4))
    let file = try makeFile(directory, .automatic)
    let (near, far) = try pair(room: 1 << 20)
    try evict(file)
    XCTAssertEqual(try context.sendIfCached(file, at: 0, count: 100_000, to: near), .notCached)
    // The first 64 KiB are brought in, and no more.
    var bytes = [UInt8](repeating: 0, count: 65536)
    XCTAssertEqual(pread(file.fileDescriptor.rawValue, &bytes, bytes.count, 0), bytes.count)
    XCTAssertEqual(try context.sendIfCached(file, at: 0, count: 262_144, to: near), .notCached)
    XCTAssertEqual(recv(far, &bytes, 1, Int32(MSG_DONTWAIT)), -1, "something was sent")
    XCTAssertEqual(try context.sendIfCached(file, at: 100, count: 60_000, to: near), .sent(60_000))
    XCTAssertTrue(try receive(60_000, from: far).wait() == Array(blockContents[100..<60_100]))
    let before = context.statistics.accepted
    XCTAssertEqual(try send(context, file, at: 100, count: 60_000, to: near), .success(60_000))
    XCTAssertEqual(context.statistics.accepted, before, "what is cached was read")
    XCTAssertTrue(try receive(60_000, from: far).wait() == Array(blockContents[100..<60_100]))
    let head = header
    let (cached, uncached) = (
      try context.sendIfCached(file, at: 100, count: 60_000, to: near, header: head.span.bytes),
      try context.sendIfCached(file, at: 262_144, count: 65_536, to: near, header: head.span.bytes)
    )
    XCTAssertEqual(cached, .sent(header.count + 60_000))
    XCTAssertTrue(
      try receive(header.count + 60_000, from: far).wait() == header + blockContents[100..<60_100])
    XCTAssertEqual(uncached, .notCached)
    XCTAssertEqual(recv(far, &bytes, 1, Int32(MSG_DONTWAIT)), -1, "a head was sent")
    // Past the end nothing is cached; a direct file has nothing there.
    XCTAssertEqual(
      try context.sendIfCached(file, at: Int64(Self.size), count: 1, to: near), .notCached)
    let direct = try AIOFile.open(file.path!, .readOnly, caching: .direct)
    XCTAssertEqual(try context.sendIfCached(direct, at: 0, count: 4096, to: near), .notCached)
    // A socket that has room for less takes less, and then nothing.
    _ = try Data(contentsOf: URL(fileURLWithPath: file.path!.string))
    let (full, _) = try pair()
    guard case .sent(let count) = try context.sendIfCached(file, at: 0, count: Self.size, to: full)
    else { return XCTFail("nothing was sent") }
    XCTAssertTrue((1..<AIOContext.maximumCachedSend).contains(count), "\(count)")
    XCTAssertEqual(try context.sendIfCached(file, at: 0, count: Self.size, to: full), .socketFull)
    try context.closeAndWait()
  }

  /// Goal: of a range that begins and ends within pages, one page more than its length has, no page
  /// is overlooked.
  func testNoPageIsOverlooked() throws {
    let (directory, context) = (try temporaryDirectory(), try AIOContext(queueDepth: 4))
    let file = try makeFile(directory, .automatic)
    let (near, far) = try pair(room: 1 << 20)
    let (count, pages) = (AIOContext.maximumCachedSend, AIOContext.maximumCachedSend / 4096 + 1)
    var bytes = [UInt8](repeating: 0, count: pages * 4096)
    for missing in [0, 1, pages / 2, pages - 1] {
      try evict(file)
      for page in 0..<pages where page != missing {
        XCTAssertEqual(
          pread(file.fileDescriptor.rawValue, &bytes, 4096, off_t(page * 4096)), 4096)
      }
      XCTAssertEqual(
        try context.sendIfCached(file, at: 100, count: count, to: near), .notCached,
        "without page \(missing)")
    }
    XCTAssertEqual(recv(far, &bytes, 1, Int32(MSG_DONTWAIT)), -1, "something was sent")
    try context.closeAndWait()
  }

  /// Goal: a file that ends before is a short result, and not a message without its end; nothing is
  /// sent where there is nothing.
  func testTheEndOfTheFile() throws {
    let context = try AIOContext(queueDepth: 4)
    for caching in [AIOFile.Caching.direct, .buffered, .automatic] {
      let directory = try temporaryDirectory()
      let file = try makeFile(directory, caching)
      XCTAssertEqual(truncate(directory.path.appending("file").string, 300_001), 0)
      for (offset, left, count) in [
        (0, 300_001, 500_000), (290_000, 10_001, 500_000), (300_000, 1, 500_000),
        (0, 300_001, .max), (300_000, 1, .max - 300_000),
      ] {
        let (near, far) = try pair()
        let received = receive(header.count + left, from: far)
        let result = try send(
          context, file, at: Int64(offset), count: count, to: near, header: header)
        XCTAssertEqual(result, .success(left), "\(caching) at \(offset)")
        XCTAssertTrue(try received.wait() == header + blockContents[offset..<offset + left])
      }
      let (near, far) = try pair()
      for offset in [300_001, Int64.max - 10] {
        XCTAssertEqual(
          try send(context, file, at: offset, count: 10, to: near, header: header), .success(0))
      }
      var byte: UInt8 = 0
      XCTAssertEqual(recv(far, &byte, 1, Int32(MSG_DONTWAIT)), -1, "a head was sent")
    }
    try context.closeAndWait()
  }

  /// Goal: a send that waits for its peer ends at once when it is cancelled, or its context closes,
  /// and says how much was sent; a second one to the socket is refused, and a file that is closed
  /// stays open.
  func testASendThatWaitsForItsPeer() throws {
    for closes in [false, true] {
      let context = try AIOContext(queueDepth: 4)
      let file = try makeFile(try temporaryDirectory(), .automatic)
      let (near, far) = try pair()
      let done = Promise<Outcome>()
      let sent = try context.send(file, at: 0, count: Self.size, to: near, header: header) {
        done.fulfil($0)
      }
      file.close()
      XCTAssertTrue(
        eventually { sent.bytesSent > 0 && context.queue.sync { context.process() } == 0 })
      let other = try makeFile(try temporaryDirectory(), .buffered)
      let second = try send(context, other, at: 0, count: 1, to: near)
      guard case .failure(let refusal) = second else { return XCTFail("two at once") }
      XCTAssertEqual(refusal.code, .exists)
      XCTAssertFalse(file.isDescriptorClosed)
      if closes { context.close() } else { sent.cancel() }
      guard case .failure(let error) = try done.wait() else { return XCTFail("not ended") }
      XCTAssertEqual(error.code, closes ? .contextClosed : .cancelled)
      XCTAssertEqual(error.transferred, sent.bytesSent - header.count)
      XCTAssertTrue(eventually { file.isDescriptorClosed })
      let received = try receive(sent.bytesSent, from: far).wait()
      XCTAssertTrue(received == Array((header + blockContents)[..<received.count]))
      sent.cancel()
      // The socket may be sent to anew.
      if !closes {
        XCTAssertEqual(try send(context, other, at: 5, count: 9, to: near), .success(9))
        try context.closeAndWait()
      }
    }
  }

  /// Goal: a send that waits for a slot ends on the queue, whichever thread closes the context.
  func testASendThatWaitsForASlot() throws {
    let context = try AIOContext(queueDepth: 1, pendingLimit: 0)
    let file = try makeFile(try temporaryDirectory(), .direct)
    let (near, _) = try pair()
    let (begun, done) = (Promise<Void>(), Promise<Outcome>())
    let closing = DispatchSemaphore(value: 0)
    // In a turn, which does not end before the context is closed.
    context.async {
      do {
        try context.fsync(file) { _ in }
        try context.send(file, at: 7, count: 9000, to: near) {
          dispatchPrecondition(condition: .onQueue(context.queue))
          done.fulfil($0)
        }
      } catch {
        XCTFail("\(error)")
      }
      begun.fulfil(())
      closing.wait()
    }
    try begun.wait()
    context.close(completion: nil)
    closing.signal()
    guard case .failure(let error) = try done.wait() else { return XCTFail("sent") }
    XCTAssertEqual(error.code, .contextClosed)
    XCTAssertEqual(error.operation, .send)
    XCTAssertEqual(error.offset, 7)
    try context.closeAndWait()
    XCTAssertTrue(context.loop.sends.sockets.isEmpty)
  }

  /// The same with await, whose task is cancelled.
  func testTasks() async throws {
    let context = try AIOContext(queueDepth: 4)
    let file = try makeFile(try temporaryDirectory(), .automatic)
    let (near, far) = try pair()
    let received = receive(10_000, from: far)
    let count = try await context.send(file, at: 3, count: 10_000, to: near)
    XCTAssertEqual(count, 10_000)
    XCTAssertTrue(try received.wait() == Array(blockContents[3..<10_003]))
    let size = Self.size
    let task = Task<Int, any Error> {
      try await context.send(file, at: 0, count: size, to: near, isolation: nil)
    }
    XCTAssertTrue(eventually { context.queue.sync { !context.loop.sends.sockets.isEmpty } })
    task.cancel()
    do {
      _ = try await task.value
      XCTFail("not cancelled")
    } catch let error as AIOError {
      XCTAssertEqual(error.code, .cancelled)
    }
    await context.close()
  }

  /// Goal: bad input is refused with what was wrong, and nothing is sent.
  func testBadInput() throws {
    let (directory, context) = (try temporaryDirectory(), try AIOContext(queueDepth: 4))
    let file = try makeFile(directory, .buffered)
    let (near, far) = try pair()
    let written = try AIOFile.open(file.path!, .writeOnly, caching: .buffered)
    let closed = try AIOFile.open(file.path!, .readOnly, caching: .buffered)
    closed.close()
    var ends: [Int32] = [0, 0]
    XCTAssertEqual(pipe(&ends), 0)
    defer { for end in ends { close(end) } }
    let fd = file.fileDescriptor.rawValue
    for (file, offset, count, socket, code) in [
      (file, -1, 1, near, AIOError.Code.invalidOffset), (file, 0, -1, near, .invalidOffset),
      (file, .max - 10, 1000, near, .invalidOffset), (file, 0, 1, far, .wrongAccessMode),
      (file, 0, 1, ends[1], .unsupportedFile), (file, 0, 1, fd, .unsupportedFile),
      (file, 0, 1, 99_999, .system), (file, 0, 1, -1, .system),
      (written, 0, 1, near, .wrongAccessMode), (closed, 0, 1, near, .fileClosed),
    ] as [(AIOFile, Int64, Int, Int32, AIOError.Code)] {
      let what = "\(count) at \(offset) to \(socket)"
      XCTAssertThrowsError(
        try context.sendIfCached(file, at: offset, count: count, to: socket), what
      ) {
        XCTAssertEqual(($0 as? AIOError)?.code, code, what)
      }
      XCTAssertThrowsError(
        try context.send(file, at: offset, count: count, to: socket) { _ in XCTFail("called") },
        what
      ) {
        XCTAssertEqual(($0 as? AIOError)?.code, code, what)
        XCTAssertEqual(($0 as? AIOError)?.operation, .send, what)
      }
    }
    try context.closeAndWait()
    XCTAssertThrowsError(try context.send(file, at: 0, count: 1, to: near) { _ in }) {
      XCTAssertEqual(($0 as? AIOError)?.code, .contextClosed)
    }
    var byte: UInt8 = 0
    XCTAssertEqual(recv(far, &byte, 1, Int32(MSG_DONTWAIT)), -1)
  }

  /// Goal: a peer that is gone is an error, and not the end of the program.
  func testAPeerThatIsGone() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["send-to-closed", directory.path.string])
    XCTAssertFalse(run.wasSignalled, "signal \(run.status) after: \(run.output)")
    XCTAssertEqual(
      run.output, String(repeating: "in place 32\nsend 32\n", count: 4), run.errors)
  }

  /// Many sockets at once, slots fewer than sends: each gets its bytes.
  func testManyAtOnce() throws {
    let context = try AIOContext(queueDepth: 1, pendingLimit: 1)
    let file = try makeFile(try temporaryDirectory(), .automatic)
    var all: [(Promise<[UInt8]>, Promise<Outcome>, Int, Int)] = []
    for number in 0..<40 {
      try evict(file)
      let (near, far) = try pair()
      let (offset, count) = (number * 30_011, 9_000 + number * 2_777)
      let done = Promise<Outcome>()
      let received = receive(count, from: far)
      try context.send(file, at: Int64(offset), count: count, to: near) { done.fulfil($0) }
      all.append((received, done, offset, min(count, Self.size - offset)))
    }
    for (received, done, offset, count) in all {
      XCTAssertEqual(try done.wait(), .success(count))
      let bytes = try received.wait()
      XCTAssertTrue(bytes == Array(blockContents[offset..<offset + count]), "\(count) at \(offset)")
    }
    try context.closeAndWait()
  }
}
