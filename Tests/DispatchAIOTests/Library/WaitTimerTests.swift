// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import DispatchAIO

/// What bounds a wait in the ring.
final class WaitTimerTests: XCTestCase {
  private func kernel() throws -> LinuxKernel {
    do {
      return try LinuxKernel(room: 1)
    } catch {
      throw XCTSkip("no AIO context: \(error)")
    }
  }

  /// Waits with nothing in flight.
  ///
  /// - Returns: the tags of what completed.
  private func wait(_ kernel: LinuxKernel, milliseconds: UInt64) -> [UInt64] {
    withUnsafeTemporaryAllocation(of: CompletionEvent.self, capacity: 8) { events in
      let count = kernel.reap(
        into: events.baseAddress!, capacity: 8, waiting: milliseconds * 1_000_000)  // Not empty.
      XCTAssertGreaterThanOrEqual(count, 0)
      let tags = (0..<max(0, count)).map { events[$0].data }
      if tags.contains(ReservedTag.timer) { kernel.waitTimerFired() }
      return tags
    }
  }

  func testEveryWaitEndsInTime() throws {
    let kernel = try kernel()
    defer { kernel.destroy() }
    for round in 0..<20 {
      let began = DispatchTime.now()
      let tags = wait(kernel, milliseconds: 5)
      let took = DispatchTime.now().uptimeNanoseconds - began.uptimeNanoseconds
      XCTAssertTrue(tags.isEmpty || tags == [ReservedTag.timer], "round \(round): \(tags)")
      XCTAssertGreaterThanOrEqual(took, 4_000_000, "round \(round) ended before")
      XCTAssertLessThan(took, 2_000_000_000, "round \(round) was not bounded")
    }
  }

  /// The trial of kernel AIO: a read that has not completed when the wait ends is lost, and has not
  /// completed with what the timer's completion says.
  func testAReadThatDoesNotComplete() throws {
    let directory = try temporaryDirectory()
    let file = try AIOFile.open(
      directory.makeFile(size: 4 << 20) { _ in 7 }, .readOnly, caching: .direct)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4 << 20, alignment: 4096)
    defer { memory.deallocate() }
    for _ in 0..<20 {
      let kernel = try kernel()
      // Waits for the read, if it is under way.
      defer { kernel.destroy() }
      let answer = kernel.read(file.fileDescriptor.rawValue, into: memory, waiting: 1)
      XCTAssertTrue(
        answer == .lost(ENOSYS) || answer == .completed(memory.count), "\(answer)")
    }
  }

  /// A wait that something else ends leaves the timer set: the next one ends with it or before its
  /// own bound, and a shorter one by its own.
  func testATimerServesSeveralWaits() throws {
    let kernel = try kernel()
    defer { kernel.destroy() }
    for _ in 0..<3 {
      kernel.wake()
      XCTAssertEqual(wait(kernel, milliseconds: 900), [ReservedTag.wake])
    }
    let began = DispatchTime.now()
    _ = wait(kernel, milliseconds: 5)
    XCTAssertLessThan(
      DispatchTime.now().uptimeNanoseconds - began.uptimeNanoseconds, 800_000_000,
      "a timer that was set for later bounded a short wait")
  }
}
