// SPDX-License-Identifier: Apache-2.0

import CKernel
import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// `AIOChannel` beside `DispatchIO`: the same operations on two files with the same bytes, and the
/// same calls of the handlers.
final class ChannelTests: XCTestCase {
  private static let size = 3_000_000
  private let queue = DispatchQueue(label: "test.channel")

  /// One call of a handler.
  private struct Call: Equatable, Sendable {
    var isDone: Bool
    var bytes: [UInt8]?
    var error: Int32

    init(_ isDone: Bool, _ data: DispatchData?, _ error: Int32) {
      (self.isDone, self.error) = (isDone, error)
      bytes = data.map { [UInt8]($0) }
    }

    init(_ isDone: Bool, bytes: [UInt8]?, _ error: Int32) {
      (self.isDone, self.bytes, self.error) = (isDone, bytes, error)
    }
  }

  /// The calls of one operation's handler.
  private final class Calls: Sendable {
    let calls = Locked<[Call]>([])
    let done = Promise<[Call]>()

    @Sendable func handle(_ isDone: Bool, _ data: DispatchData?, _ error: Int32) {
      let call = Call(isDone, data, error)
      let all = calls.withLock {
        $0.append(call)
        return $0
      }
      if isDone { done.fulfil(all) }
    }
  }

  private func makeFile(_ directory: TemporaryDirectory, _ name: String) throws -> String {
    let path = directory.path.appending(name)
    let file = try FileDescriptor.open(
      path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
    try file.closeAfter { _ = try file.writeAll(blockContents[..<Self.size]) }
    return path.string
  }

  private func channel(
    _ path: String, _ flags: Int32 = O_RDWR, _ context: AIOContext? = nil
  ) -> (AIOChannel, closed: Promise<Int32>) {
    let closed = Promise<Int32>()
    let channel = AIOChannel(
      type: .random, path: path, oflag: flags, mode: 0o644, queue: queue, on: context
    ) { closed.fulfil($0) }
    return (channel, closed)
  }

  private func read(_ channel: AIOChannel, _ offset: Int, _ length: Int) throws -> [Call] {
    let calls = Calls()
    channel.read(offset: off_t(offset), length: length, queue: queue, ioHandler: calls.handle)
    return try calls.done.wait()
  }

  private func write(_ channel: AIOChannel, _ offset: Int, _ data: DispatchData) throws -> [Call] {
    let calls = Calls()
    channel.write(offset: off_t(offset), data: data, queue: queue, ioHandler: calls.handle)
    return try calls.done.wait()
  }

  private func data(_ bytes: some Sequence<UInt8>) -> DispatchData {
    Array(bytes).withUnsafeBytes { DispatchData(bytes: $0) }
  }

  // MARK: Side by side

  /// Goal: every read leads to the same calls with the same bytes as `DispatchIO`'s, and every
  /// write to the same end and the same file. Method: random operations, one by one on both.
  func testAgainstDispatchIO() throws {
    let directory = try temporaryDirectory()
    for flags in [O_RDWR, O_RDWR | ckernel_o_direct] {
      try compare(directory, flags)
    }
  }

  /// A channel of each kind, on the files "ours" and "theirs", from the position 1000 on.
  private func both(
    _ directory: TemporaryDirectory, _ flags: Int32
  ) throws -> (AIOChannel, DispatchIO, closed: [Promise<Int32>]) {
    let paths = try [makeFile(directory, "ours"), makeFile(directory, "theirs")]
    // DispatchIO cannot read a direct file at any offset.
    let descriptors = [open(paths[0], flags), open(paths[1], O_RDWR)]
    addTeardownBlock { for descriptor in descriptors { close(descriptor) } }
    for descriptor in descriptors { lseek(descriptor, 1000, SEEK_SET) }
    let closed = [Promise<Int32>(), Promise<Int32>()]
    return (
      AIOChannel(type: .random, fileDescriptor: descriptors[0], queue: queue) {
        closed[0].fulfil($0)
      },
      DispatchIO(type: .random, fileDescriptor: descriptors[1], queue: queue) {
        closed[1].fulfil($0)
      }, closed
    )
  }

  private func compare(_ directory: TemporaryDirectory, _ flags: Int32) throws {
    let (ours, theirs, closed) = try both(directory, flags)
    var generator = SeededGenerator(seed: Seeds.one)
    for step in 0..<150 {
      if step % 10 == 0 {
        let water = Int.random(in: 0..<300_000, using: &generator)
        if Bool.random(using: &generator) {
          ours.setLimit(highWater: water)
          theirs.setLimit(highWater: water)
        } else {
          ours.setLimit(lowWater: water)
          theirs.setLimit(lowWater: water)
        }
      }
      let offset = Int.random(in: -2000..<Self.size + 10_000, using: &generator)
      var length = Int.random(in: 0..<900_000, using: &generator)
      if generator.oneIn(10) { length = generator.oneIn(2) ? 0 : .max }
      let (a, b) = (Calls(), Calls())
      let isWrite = generator.oneIn(3)
      if isWrite {
        let start = Int.random(in: 0..<1 << 20, using: &generator)
        let data = data(blockContents[start..<start + min(length, 900_000)])
        ours.write(offset: off_t(offset), data: data, queue: queue, ioHandler: a.handle)
        theirs.write(offset: off_t(offset), data: data, queue: queue, ioHandler: b.handle)
      } else {
        ours.read(offset: off_t(offset), length: length, queue: queue, ioHandler: a.handle)
        theirs.read(offset: off_t(offset), length: length, queue: queue, ioHandler: b.handle)
      }
      let (x, y) = try (a.done.wait(), b.done.wait())
      let isEqual = isWrite ? x.last == y.last : x == y
      XCTAssertTrue(
        isEqual,
        """
        step \(step), \(length) at \(offset): \(x.map { "\($0.isDone) \($0.bytes?.count ?? -1) \($0.error)" }) \
        and \(y.map { "\($0.isDone) \($0.bytes?.count ?? -1) \($0.error)" }), \
        \(Seeds.replay(Seeds.one))
        """)
      if !isEqual { break }
    }
    ours.close()
    theirs.close()
    XCTAssertEqual(try closed[0].wait(), try closed[1].wait())
    XCTAssertEqual(try directory.contents("ours"), try directory.contents("theirs"))
  }

  /// Goal: offsets that no file has, and the ends of what an offset can be, lead to the same end,
  /// and nothing is wrong with an operation of no bytes wherever it is.
  func testEdgesAgainstDispatchIO() throws {
    let directory = try temporaryDirectory()
    let (ours, theirs, closed) = try both(directory, O_RDWR)
    let offsets: [off_t] = [
      .min, -1001, -1000, 0, off_t(Self.size) - 1000, .max / 2, .max - 1010, .max - 1001,
      .max - 1000,
    ]
    for offset in offsets {
      for length in [0, 1, 10, 100_000, .max] {
        let (a, b) = (Calls(), Calls())
        theirs.read(offset: offset, length: length, queue: queue, ioHandler: b.handle)
        ours.read(offset: offset, length: length, queue: queue, ioHandler: a.handle)
        XCTAssertEqual(try a.done.wait(), try b.done.wait(), "read of \(length) at \(offset)")
      }
      for length in [0, 1, 10, 100_000] {
        let (a, b) = (Calls(), Calls())
        let data = data(blockContents[..<length])
        theirs.write(offset: offset, data: data, queue: queue, ioHandler: b.handle)
        ours.write(offset: offset, data: data, queue: queue, ioHandler: a.handle)
        XCTAssertEqual(
          try a.done.wait().last, try b.done.wait().last, "write of \(length) at \(offset)")
      }
    }
    ours.close()
    theirs.close()
    XCTAssertEqual(try closed[0].wait(), try closed[1].wait())
    XCTAssertEqual(try directory.contents("ours"), try directory.contents("theirs"))
  }

  /// Goal: what cannot be is told by the same numbers.
  func testErrorsAgainstDispatchIO() throws {
    let directory = try temporaryDirectory()
    let path = try makeFile(directory, "file")
    let ours = channel(path, O_RDONLY)
    let closed = Promise<Int32>()
    let theirs = try XCTUnwrap(
      DispatchIO(type: .random, path: path, oflag: O_RDONLY, mode: 0, queue: queue) {
        closed.fulfil($0)
      })
    let calls = Calls()
    theirs.write(offset: 5, data: data([1, 2, 3]), queue: queue, ioHandler: calls.handle)
    XCTAssertEqual(try write(ours.0, 5, data([1, 2, 3])), try calls.done.wait())
    ours.0.close()
    theirs.close()
    let (late, lateWrite) = (Calls(), Calls())
    theirs.read(offset: 5, length: 10, queue: queue, ioHandler: late.handle)
    theirs.write(offset: 5, data: data([1, 2, 3]), queue: queue, ioHandler: lateWrite.handle)
    XCTAssertEqual(try read(ours.0, 5, 10), try late.done.wait())
    XCTAssertEqual(try write(ours.0, 5, data([1, 2, 3])), try lateWrite.done.wait())
    XCTAssertEqual(try ours.closed.wait(), try closed.wait())

    let missing = directory.path.appending("none/none").string
    let (none, noneClosed) = channel(missing)
    let otherClosed = Promise<Int32>()
    let otherNone = try XCTUnwrap(
      DispatchIO(type: .random, path: missing, oflag: O_RDWR, mode: 0, queue: queue) {
        otherClosed.fulfil($0)
      })
    let failed = Calls()
    otherNone.read(offset: 0, length: 10, queue: queue, ioHandler: failed.handle)
    XCTAssertEqual(try read(none, 0, 10), try failed.done.wait())
    none.close()
    otherNone.close()
    XCTAssertEqual(try noneClosed.wait(), try otherClosed.wait())
  }

  // MARK: Many at once

  /// Goal: operations under way together, more than a context has slots for, all end once, and
  /// right.
  func testManyAtOnce() throws {
    let directory = try temporaryDirectory()
    let path = try makeFile(directory, "file")
    let context = try AIOContext(queueDepth: 4, pendingLimit: 4)
    for flags in [O_RDWR, O_RDWR | ckernel_o_direct] {
      let (channel, closed) = channel(path, flags, context)
      var generator = SeededGenerator(seed: Seeds.one)
      let group = DispatchGroup()
      for _ in 0..<300 {
        let offset = Int.random(in: 0..<Self.size, using: &generator)
        let length = Int.random(in: 1..<20_000, using: &generator)
        let calls = Calls()
        group.enter()
        channel.read(offset: off_t(offset), length: length, queue: queue) { done, data, error in
          calls.handle(done, data, error)
          guard done else { return }
          let all = calls.calls.withLock { $0.compactMap(\.bytes).flatMap { $0 } }
          XCTAssertEqual(error, 0)
          XCTAssertEqual(all, Array(blockContents[offset..<min(offset + length, Self.size)]))
          group.leave()
        }
      }
      XCTAssertEqual(group.wait(timeout: .now() + 120), .success)
      channel.close()
      XCTAssertEqual(try closed.wait(), 0)
    }
  }

  /// Goal: a barrier runs after everything before it has ended, and before what is made after it
  /// begins. Method: each write sets the same byte, and each barrier reads it.
  func testBarriers() throws {
    let directory = try temporaryDirectory()
    let path = try makeFile(directory, "file")
    let (channel, closed) = channel(path, O_RDWR, try AIOContext(queueDepth: 4))
    let seen = Locked<[UInt8]>([])
    let ended = Locked(0)
    for number in 0..<20 {
      for place in 0..<3 {
        channel.write(
          offset: off_t(place * 5000), data: data([UInt8(number)]), queue: .global()
        ) { done, _, error in
          if done { ended.withLock { $0 += 1 } }
          XCTAssertEqual(error, 0)
        }
      }
      channel.barrier {
        let file = open(path, O_RDONLY)
        var bytes: [UInt8] = [0, 0, 0]
        for place in 0..<3 { pread(file, &bytes[place], 1, place * 5000) }
        close(file)
        seen.withLock { $0 += bytes }
        XCTAssertEqual(ended.withLock { $0 }, (number + 1) * 3)
      }
    }
    channel.close()
    XCTAssertEqual(try closed.wait(), 0)
    let expected = (0..<20).flatMap { number in [UInt8](repeating: UInt8(number), count: 3) }
    XCTAssertEqual(seen.withLock { $0 }, expected)
  }

  // MARK: The end

  /// Goal: what hangs ends when it can, what waits behind it at once, both with ECANCELED.
  func testStop() throws {
    let directory = try temporaryDirectory()
    let path = try makeFile(directory, "file")
    let (channel, closed) = channel(path, O_RDONLY, try AIOContext(queueDepth: 4))
    let reached = DispatchSemaphore(value: 0)
    let go = DispatchSemaphore(value: 0)
    channel.barrier {
      reached.signal()
      go.wait()
    }
    XCTAssertEqual(reached.wait(timeout: .now() + 30), .success)
    let calls = (0..<10).map { _ in Calls() }
    for call in calls { channel.read(offset: 0, length: 10, queue: queue, ioHandler: call.handle) }
    channel.close(flags: .stop)
    go.signal()
    for call in calls { XCTAssertEqual(try call.done.wait(), [Call(true, bytes: nil, ECANCELED)]) }
    XCTAssertEqual(try closed.wait(), 0)
  }

  /// A channel that is dropped completes what it was asked for, and cleans up.
  func testADroppedChannel() throws {
    let directory = try temporaryDirectory()
    let path = try makeFile(directory, "file")
    let calls = Calls()
    let closed = Promise<Int32>()
    do {
      let channel = AIOChannel(type: .random, path: path, oflag: O_RDONLY, mode: 0, queue: queue) {
        XCTAssertEqual(calls.calls.withLock { $0.count }, 4)
        closed.fulfil($0)
      }
      channel.read(offset: 0, length: .max, queue: queue, ioHandler: calls.handle)
    }
    XCTAssertEqual(
      try calls.done.wait().compactMap(\.bytes).flatMap { $0 }, Array(blockContents[..<Self.size]))
    XCTAssertEqual(try closed.wait(), 0)
  }

  func testWhatIsNoFile() throws {
    var ends: [Int32] = [0, 0]
    XCTAssertEqual(pipe(&ends), 0)
    defer { for end in ends { close(end) } }
    for (descriptor, error) in [(ends[0], ESPIPE), (-1, EBADF)] {
      let closed = Promise<Int32>()
      let channel = AIOChannel(type: .random, fileDescriptor: descriptor, queue: queue) {
        closed.fulfil($0)
      }
      XCTAssertEqual(try read(channel, 0, 10), [Call(true, bytes: nil, error)])
      channel.close()
      XCTAssertEqual(try closed.wait(), error)
    }
  }

  /// Goal: a signal that interrupts the opening does not end the channel.
  func testAnInterruptedOpening() throws {
    let directory = try temporaryDirectory()
    let path = try makeFile(directory, "file")
    let log = try SystemCallLog(
      tracing: "openat", options: ["-P", path, "-e", "inject=openat:error=EINTR:when=1"],
      ChildProcess.built("dispatch-aio-probe"), ["channel", directory.path.string], in: directory)
    XCTAssertEqual(log.calls(with: "INJECTED").count, 1, "\(log.calls)")
    XCTAssertEqual(log.run.output, "error 0\n", log.run.errors)
  }

  /// Goal: at a strict interval the handler is called although nothing has been read.
  func testAStrictInterval() throws {
    let directory = try temporaryDirectory()
    let fault = try FaultFileSystem(in: directory)
    let (channel, closed) = channel(fault["hangread"].string, O_RDONLY)
    channel.setInterval(interval: .milliseconds(5), flags: .strictInterval)
    let calls = Calls()
    channel.read(offset: 0, length: 1000, queue: queue, ioHandler: calls.handle)
    XCTAssertTrue(eventually { calls.calls.withLock { $0.count } >= 3 })
    XCTAssertTrue(calls.calls.withLock { $0.allSatisfy { !$0.isDone && $0.bytes == [] } })
    fault.release()
    let all = try calls.done.wait()
    XCTAssertEqual(all.compactMap(\.bytes).flatMap { $0 }, FaultFileSystem.contents(0..<1000))
    channel.close()
    XCTAssertEqual(try closed.wait(), 0)
  }

  // MARK: Data

  /// Goal: data of a buffer is where the buffer is, and keeps it.
  func testDataOfABuffer() throws {
    var buffer: AIOBuffer? = AIOBuffer([1, 2, 3, 4, 5])
    let address = buffer?.withUnsafeBytes { UInt(bitPattern: $0.baseAddress) }
    let data = DispatchData(buffer![1..<4])
    buffer = nil
    XCTAssertEqual([UInt8](data), [2, 3, 4])
    data.withUnsafeBytes { (bytes: UnsafePointer<UInt8>) in
      XCTAssertEqual(UInt(bitPattern: bytes), address! + 1)
    }
    XCTAssertEqual(DispatchData(AIOBuffer(count: 0)).count, 0)
  }

  /// Goal: data of any number of regions is written, by one request, in order.
  func testRegions() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    for caching in [AIOFile.Caching.direct, .buffered] {
      for regions in [1, 3, 1024, 1500] {
        let file = try directory.open(options: [.create, .truncate], caching: caching)
        var data = DispatchData.empty
        for region in 0..<regions {
          data.append(self.data(blockContents[region * 7..<region * 7 + 7]))
        }
        let result = try context.outcome {
          try context.write(file, contentsOf: data, at: 3, completion: $0)
        }
        XCTAssertEqual(result, .success(regions * 7))
        XCTAssertEqual(try directory.contents(), [0, 0, 0] + blockContents[..<(regions * 7)])
      }
    }
  }
}
