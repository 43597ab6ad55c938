// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

@testable import DispatchAIO

/// Single scenes of the engine's, where the random schedules would not say what went wrong.
final class EngineTests: XCTestCase {
  private let file = OpenFile(descriptor: 3, path: nil, traits: .init()) { _ in }
  private let bad = OpenFile(
    descriptor: SimulatedKernel.badDescriptor, path: nil, traits: .init()
  ) { _ in }

  private struct Scene: ~Copyable {
    let kernel: SimulatedKernel
    let table: RequestTable<Int>
    var engine: Engine<SimulatedKernel, Int>

    init(depth: Int, limit: Int = 0, faults: SimulatedKernel.Faults = .none) {
      kernel = SimulatedKernel(capacity: depth, faults: faults)
      table = RequestTable(capacity: depth + limit)
      engine = Engine(kernel: kernel, table: table, queueDepth: depth, event: 7)
    }

    @discardableResult
    func accept(_ number: Int, _ file: OpenFile) throws -> RequestKey {
      let slot = try XCTUnwrap(table.free.take())
      XCTAssertTrue(file.hold())
      return table.accept(
        AcceptedRequest(
          operation: .fdatasync, file: file, offset: 0, length: 0, attachment: number),
        in: slot)
    }

    /// The numbers of the requests that are over, in order.
    mutating func drain() -> [Int] {
      var numbers: [Int] = []
      _ = engine.reap()
      while let completion = engine.next() { numbers.append(completion.attachment) }
      return numbers
    }
  }

  func testOneCallForWhatIsThere() throws {
    var scene = Scene(depth: 8)
    for number in 0..<5 { try scene.accept(number, file) }
    scene.engine.collect()
    XCTAssertEqual(scene.engine.submit(), .settled)
    XCTAssertEqual(scene.kernel.submitCalls, 1)
    XCTAssertEqual(scene.kernel.taken.count, 5)
    XCTAssertEqual(scene.engine.inKernel, 5)
  }

  func testAFailingHeadFailsAlone() throws {
    var scene = Scene(depth: 8)
    for (number, file) in [bad, file, bad, bad, file].enumerated() {
      try scene.accept(number, file)
    }
    scene.engine.collect()
    XCTAssertEqual(scene.engine.submit(), .settled)
    XCTAssertEqual(scene.kernel.taken.count, 2)
    XCTAssertEqual(scene.drain(), [0, 2, 3])
    scene.kernel.completeAll()
    XCTAssertEqual(scene.drain().sorted(), [1, 4])
    XCTAssertEqual(scene.table.freeCount, 8)
  }

  func testTheRestWaitsForRoomInItsOrder() throws {
    var scene = Scene(depth: 2, limit: 4)
    for number in 0..<6 { try scene.accept(number, file) }
    var order: [Int] = []
    while order.count < 6 {
      scene.engine.collect()
      XCTAssertEqual(scene.engine.submit(), .settled)
      XCTAssertEqual(scene.engine.inKernel, min(2, 6 - order.count))
      scene.kernel.completeOne()
      order += scene.drain()
    }
    XCTAssertEqual(
      scene.kernel.taken.map { UInt32(truncatingIfNeeded: $0.tag) }.count, 6)
    for (place, number) in order.enumerated() { XCTAssertLessThanOrEqual(abs(place - number), 1) }
  }

  func testARefusingKernelStallsOnlyWhenNothingIsInFlight() throws {
    var scene = Scene(depth: 4, faults: .init(full: 1))
    try scene.accept(0, file)
    scene.engine.collect()
    XCTAssertEqual(scene.engine.submit(), .stalled)
    XCTAssertEqual(scene.engine.accounts.pending, 1)
    scene.kernel.faults = .none
    XCTAssertEqual(scene.engine.submit(), .settled)
    XCTAssertEqual(scene.engine.inKernel, 1)
    try scene.accept(1, file)
    scene.engine.collect()
    scene.kernel.faults = .init(full: 1)
    // What is in flight will be the moment to try again.
    XCTAssertEqual(scene.engine.submit(), .settled)
    XCTAssertEqual(scene.engine.accounts.pending, 1)
  }

  func testAnUnaskedRetryIsBounded() throws {
    var scene = Scene(depth: 1, faults: .init(unaskedRetry: 1))
    try scene.accept(0, file)
    var rounds = 0
    var numbers: [Int] = []
    while numbers.isEmpty && rounds < 100 {
      rounds += 1
      scene.engine.collect()
      _ = scene.engine.submit()
      scene.kernel.completeAll()
      numbers = scene.drain()
    }
    XCTAssertEqual(rounds, 17, "16 retries, then the error is the result")
    XCTAssertEqual(scene.table.freeCount, 1)
  }

  /// A disk that takes less than a block, time after time, and says nothing of an error.
  func testAWriteThatDoesNotGetOnFails() throws {
    var scene = Scene(depth: 1, faults: .init(shortTransfer: 1))
    let aligned = OpenFile(
      descriptor: 3, path: nil, traits: .init(alignment: AIOAlignment(memory: 4096, offset: 4096))
    ) { _ in }
    let buffer = AIOBuffer(count: 4096)
    XCTAssertTrue(aligned.hold())
    _ = scene.table.accept(
      AcceptedRequest(
        operation: .write(from: .buffer(buffer)), file: aligned, offset: 0, length: 4096,
        isToFinish: true, attachment: 0),
      in: try XCTUnwrap(scene.table.free.take()))
    var result: Result<Int, AIOError>?
    for _ in 0..<100 where result == nil {
      scene.engine.collect()
      _ = scene.engine.submit()
      scene.kernel.completeAll()
      _ = scene.engine.reap()
      result = scene.engine.next()?.result
    }
    guard case .failure(let error) = result else { return XCTFail("\(String(describing: result))") }
    XCTAssertEqual(error.errno, .ioError)
    XCTAssertLessThan(error.transferred, 4096)
    XCTAssertEqual(scene.table.freeCount, 1)
  }

  func testCancelledOnesLeaveTheMiddle() throws {
    var scene = Scene(depth: 1, limit: 4)
    let keys = try (0..<5).map { try scene.accept($0, file) }
    scene.engine.collect()
    XCTAssertTrue(scene.table.cancel(keys[2]))
    XCTAssertTrue(scene.table.cancel(keys[4]))
    // Cancelled before `collect` heard of it: must not go down.
    XCTAssertEqual(scene.engine.submit(), .settled)
    scene.engine.collect()
    XCTAssertEqual(scene.drain(), [2, 4])
    XCTAssertFalse(scene.table.cancel(keys[2]), "a stale key")
    var rest: [Int] = []
    for _ in 0..<3 {
      scene.kernel.completeAll()
      rest += scene.drain()
      _ = scene.engine.submit()
    }
    XCTAssertEqual(rest, [0, 1, 3])
    XCTAssertEqual(scene.table.freeCount, 5)
  }
}
