// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// A caller that holds the queue in a block that does not end, and calls `process()` over and over:
/// that alone has to see to everything, because no other block of the queue runs.
final class ManualLoopTests: XCTestCase {
  /// How long it may take, in seconds: several calls of `process()`, a millisecond apart.
  private let soon = 0.5

  /// The block of the queue.
  private final class Driver: Sendable {
    let context: AIOContext
    private let stopped = DispatchGroup()
    private let (end, stop): (FileDescriptor, FileDescriptor)

    init(_ context: AIOContext) throws {
      self.context = context
      (end, stop) = try FileDescriptor.pipe()
      context.queue.async(group: stopped) { [end] in
        var polled = pollfd(fd: end.rawValue, events: Int16(POLLIN), revents: 0)
        while polled.revents == 0 {
          if context.process() == 0 { poll(&polled, 1, 1) }
        }
      }
    }

    /// Ends the block, and waits until it has.
    func finish() {
      try? stop.close()
      stopped.wait()
      try? end.close()
    }
  }

  /// Makes a request on another thread, and looks at how long it takes.
  private func assertDone(
    line: UInt = #line,
    _ body: (AIOContext, TemporaryDirectory, Promise<Outcome>) throws -> Void
  ) throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 1 << 20)
    let context = try AIOContext(queueDepth: 1, pendingLimit: 2)
    let driver = try Driver(context)
    defer { driver.finish() }
    for round in 0..<3 {
      let promise = Promise<Outcome>()
      let began = Date()
      try body(context, directory, promise)
      let outcome = try promise.wait(seconds: 20)
      let took = Date().timeIntervalSince(began)
      if Measurements.arePrinted { print("round \(round): done after \(took * 1000) ms") }
      XCTAssertNil(outcome.code, "\(outcome)", line: line)
      XCTAssertLessThan(
        took, soon * Sanitizer.slowness,
        "round \(round): seconds until a loop that is driven by hand was done", line: line)
    }
  }

  func testRequestsOfOtherThreads() throws {
    try assertDone { context, directory, promise in
      let file = try directory.open("file", .readOnly)
      try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { promise.fulfil($0) }
    }
  }

  func testBufferedRequestsOfOtherThreads() throws {
    try assertDone { context, directory, promise in
      let file = try directory.open("file", .readOnly, caching: .buffered)
      try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { promise.fulfil($0) }
    }
  }

  func testOffloadedRequests() throws {
    try assertDone { context, directory, promise in
      let file = try directory.open("appended")
      let end = try file.size()
      try context.write(file, at: end, from: AIOBuffer(count: 4096)) { promise.fulfil($0) }
    }
  }

  /// Several at once, of which the kernel has room for one: the rest follow as it ends.
  func testRequestsBehindTheQueueDepth() throws {
    try assertDone { context, directory, promise in
      let file = try directory.open("file", .readOnly)
      let left = Locked(3)
      for index in 0..<3 {
        try context.read(file, at: Int64(index * 4096), into: AIOBuffer(count: 4096)) { outcome in
          let isLast = left.withLock {
            $0 -= 1
            return $0 == 0
          }
          if isLast || outcome.code != nil { promise.fulfil(outcome) }
        }
      }
    }
  }

  /// More tasks than there are slots: the rest wait for room.
  func testTasksThatWaitForRoom() throws {
    try assertDone { context, directory, promise in
      let file = try directory.open("file", .readOnly)
      let left = Locked(8)
      for index in 0..<8 {
        Task.immediate {
          var buffer = AIOUniqueBuffer(count: 4096)
          let outcome: Outcome
          do throws(AIOError) {
            outcome = .success(try await context.read(file, at: Int64(index * 4096), into: &buffer))
          } catch {
            outcome = .failure(error)
          }
          let isLast = left.withLock {
            $0 -= 1
            return $0 == 0
          }
          if isLast || outcome.code != nil { promise.fulfil(outcome) }
        }
      }
    }
  }

  /// Cancelled while it waits behind a hung file.
  func testCancelledRequests() throws {
    let faults = try FaultFileSystem(in: try temporaryDirectory())
    let hung = try AIOFile.open(faults["hangread"], .readOnly, caching: .buffered)
    var options = AIOContext.Options()
    // The one thread hangs, so that what comes after it waits.
    options.offloadThreads = 1
    let context = try AIOContext(queueDepth: 1, pendingLimit: 2, options: options)
    let driver = try Driver(context)
    defer { driver.finish() }
    defer { faults.release() }
    let first = Promise<Outcome>()
    try context.read(hung, at: 0, into: AIOBuffer(count: 4096)) { first.fulfil($0) }
    XCTAssertTrue(eventually { faults.hanging == 1 })
    for round in 0..<3 {
      let promise = Promise<Outcome>()
      let request = try context.read(hung, at: 4096, into: AIOBuffer(count: 4096)) {
        promise.fulfil($0)
      }
      let began = Date()
      XCTAssertEqual(context.cancel(request), .cancelled)
      XCTAssertEqual(try promise.wait(seconds: 20).code, .cancelled)
      XCTAssertLessThan(
        Date().timeIntervalSince(began), soon * Sanitizer.slowness,
        "round \(round): seconds until a cancelled request completed")
    }
  }

  func testClose() throws {
    let context = try AIOContext(queueDepth: 1)
    let driver = try Driver(context)
    // Closing ends when the queue is given back, at the latest.
    let closed = Promise<Void>()
    context.close { closed.fulfil(()) }
    driver.finish()
    try closed.wait()
  }
}
