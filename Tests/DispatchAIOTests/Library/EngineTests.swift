// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Single scenes of the engine's, where the random schedules would not say what went wrong.
final class EngineTests: XCTestCase {
  private let file = OpenFile(descriptor: 3, path: nil, traits: .init()) { _ in }
  private let bad = OpenFile(
    descriptor: SimulatedKernel.badDescriptor, path: nil, traits: .init()
  ) { _ in }

  private var more: [UInt32] = []

  private struct Scene: ~Copyable {
    let kernel: SimulatedKernel
    let table: RequestTable<Int>
    let offloadQueue: OffloadQueue
    var engine: Engine<SimulatedKernel, Int>

    init(depth: Int, limit: Int = 0, faults: SimulatedKernel.Faults = .none) {
      kernel = SimulatedKernel(capacity: FileShares.room(queueDepth: depth), faults: faults)
      let table = RequestTable<Int>(capacity: depth + limit)
      self.table = table
      offloadQueue = OffloadQueue(
        base: 2, limit: 4, continues: { table.continues($0, $1) }, claim: { table.claim($0) })
      engine = Engine(
        kernel: kernel, table: table, offloadQueue: offloadQueue, queueDepth: depth, event: 7)
    }

    @discardableResult
    func accept(
      _ number: Int, _ file: OpenFile, _ operation: DispatchAIO.Operation = .fdatasync,
      at offset: Int64 = 0, length: Int = 0, options: RequestOptions = [], mayWait: Bool = true
    ) throws -> RequestID {
      let slot = try XCTUnwrap(table.free.take())
      XCTAssertTrue(file.retain())
      return table.accept(
        Request(
          operation: operation, file: file, offset: offset, length: length, options: options,
          mayWait: mayWait, attachment: number),
        in: slot)
    }

    /// Takes in what was accepted, and submits it.
    mutating func submit() -> Engine<SimulatedKernel, Int>.Submission {
      engine.beginTurn()
      engine.collect()
      return engine.submit()
    }

    /// The number and the result of the next request that is over.
    mutating func next() -> (number: Int, result: Int)? {
      guard let completion = engine.next() else { return nil }
      table.free.give(completion.slot)
      return (completion.request.attachment, completion.result)
    }

    /// The numbers of the requests that are over, in order.
    mutating func drain() -> [Int] {
      var numbers: [Int] = []
      _ = engine.reap()
      while let (number, _) = next() { numbers.append(number) }
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

  /// A request that may not wait goes to the kernel at once, or ends: where its file's share of the
  /// room is used up, where the kernel has no room, and where it would have to be offloaded.
  func testWhatMayNotWaitEnds() throws {
    let short = OpenFile(
      descriptor: 3, path: nil, traits: .init(), size: 0, onLastRelease: { _ in })
    let buffer = AIOBuffer(count: 512)
    var scene = Scene(depth: 1, limit: 3)
    let write = DispatchAIO.Operation.write(from: .buffer(buffer))
    func submitsNext(_ verb: Verb, _ file: OpenFile) -> Bool {
      scene.engine.submitsNext(verb, file, offset: 0, length: 512)
    }
    XCTAssertTrue(submitsNext(.read, short))
    XCTAssertFalse(submitsNext(.write, short), "an append is offloaded")
    try scene.accept(0, short, write, length: 512, mayWait: false)
    XCTAssertEqual(scene.submit(), .settled)
    XCTAssertEqual(scene.next()?.result, Request<Int>.wouldWait)
    XCTAssertEqual(scene.engine.offloaded, 0)

    try scene.accept(1, file, mayWait: false)
    XCTAssertEqual(scene.submit(), .settled)
    XCTAssertEqual(scene.engine.inKernel, 1)
    XCTAssertFalse(submitsNext(.fsync, file), "the file has its share")
    try scene.accept(2, file, mayWait: false)
    XCTAssertEqual(scene.submit(), .settled)
    XCTAssertEqual(scene.next()?.result, Request<Int>.wouldWait)
    scene.kernel.completeAll()
    XCTAssertEqual(scene.drain(), [1])
    XCTAssertEqual(scene.engine.counts.accepted, 1)
    XCTAssertEqual(scene.table.free.count, scene.table.capacity)
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
    XCTAssertEqual(scene.table.free.count, 8)
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

  /// A kernel that refuses is tried once more after a while, whatever is in flight: of nothing
  /// there is it sure that it completes.
  func testARefusingKernelStalls() throws {
    var scene = Scene(depth: 4, faults: .init(full: 1))
    try scene.accept(0, file)
    XCTAssertEqual(scene.submit(), .stalled)
    XCTAssertEqual(scene.engine.accounts.pending, 1)
    scene.kernel.faults = .none
    XCTAssertEqual(scene.submit(), .settled)
    XCTAssertEqual(scene.engine.inKernel, 1)
    try scene.accept(1, file)
    scene.kernel.faults = .init(full: 1)
    XCTAssertEqual(scene.submit(), .stalled, "with one in flight")
    XCTAssertEqual(scene.engine.accounts.pending, 1)
  }

  /// … nor of what hangs on an offload thread.
  func testARefusingKernelStallsWhileAThreadHangs() throws {
    var scene = Scene(depth: 4, limit: 4, faults: .init(full: 1))
    let hung = OpenFile(descriptor: 4, path: nil, traits: .init(fileSystem: .fuse)) { _ in }
    try scene.accept(0, hung)
    try scene.accept(1, file)
    XCTAssertEqual(scene.submit(), .stalled)
    XCTAssertNotNil(scene.offloadQueue.threadToStart(now: 1))
    XCTAssertNotNil(scene.offloadQueue.next(for: 0, finished: nil, now: 1, more: &more).work)
    XCTAssertEqual(scene.submit(), .stalled)
    scene.kernel.faults = .none
    XCTAssertEqual(scene.submit(), .settled)
    XCTAssertEqual(scene.engine.inKernel, 1)
  }

  /// Under a full ring, what ends without an event has its turn all the same.
  func testWhatEndsWithoutAnEventIsNotStarved() throws {
    for way in ["cancelled", "refused"] {
      var scene = Scene(depth: 8, limit: 16)
      scene.kernel.completesAtOnce = true
      for number in 0..<8 { try scene.accept(number, file) }
      XCTAssertEqual(scene.submit(), .settled)
      var missing = Set(100..<108)
      for number in missing {
        let id = try scene.accept(number, way == "refused" ? bad : file)
        if way == "cancelled" { XCTAssertEqual(scene.table.cancel(id), .waiting) }
      }
      var others = 0
      // Each completion brings the next request, which is complete at once.
      while !missing.isEmpty && others < 1000 {
        _ = scene.submit()
        _ = scene.engine.reap()
        guard let (number, _) = scene.next() else { return XCTFail("\(way): nothing is left") }
        if missing.remove(number) == nil {
          others += 1
          try scene.accept(number, file)
        }
      }
      XCTAssertEqual(missing, [], "\(way): not delivered after \(others) other completions")
      XCTAssertLessThan(others, 40, way)
    }
  }

  /// A file whose requests do not complete leaves room for the others, however many of both.
  func testAHungFileLeavesRoom() throws {
    for hungFiles in [1, 8] {
      var scene = Scene(depth: 16, limit: 500)
      let hung = (0..<hungFiles).map { number in
        OpenFile(descriptor: Int32(100 + number), path: nil, traits: .init()) { _ in }
      }
      for round in 0..<40 {
        for (number, file) in hung.enumerated() { try scene.accept(1000 * number + round, file) }
      }
      XCTAssertEqual(scene.submit(), .settled)
      let taken = scene.kernel.taken.count
      XCTAssertLessThan(taken, FileShares.room(queueDepth: 16), "\(hungFiles): nothing is left")
      if hungFiles == 1 { XCTAssertEqual(taken, 16, "a file that is alone has all of the depth") }
      try scene.accept(-1, file)
      XCTAssertEqual(scene.submit(), .settled)
      XCTAssertEqual(scene.kernel.taken.last?.descriptor, 3, "\(hungFiles): it waits")
      // When they complete after all, so does everything.
      var completed = 0
      while scene.table.free.count < scene.table.capacity, completed < 1000 {
        scene.kernel.completeAll()
        completed += scene.drain().count
        _ = scene.submit()
      }
      XCTAssertEqual(completed, 40 * hungFiles + 1)
    }
  }

  /// What `io_submit` copies in one turn has a bound, and the rest goes down in the next.
  func testATurnCopiesWithinABudget() throws {
    var scene = Scene(depth: 64)
    let buffered = OpenFile(descriptor: 5, path: nil, traits: .init(isDirect: false)) { _ in }
    let buffer = AIOBuffer(count: 256 << 10)
    for number in 0..<20 {
      try scene.accept(number, buffered, .read(into: .buffer(buffer)), length: buffer.count)
    }
    var turns = 0
    var last = 0
    while scene.kernel.taken.count < 20, turns < 100 {
      let answer = scene.submit()
      XCTAssertLessThanOrEqual(scene.kernel.taken.count - last, 2, "512 KiB")
      last = scene.kernel.taken.count
      XCTAssertEqual(answer, last < 20 ? .overBudget : .settled)
      turns += 1
    }
    XCTAssertEqual(turns, 10)
  }

  /// A request that waits for an offload thread has not reached the kernel, and can be cancelled;
  /// one that a thread has taken cannot.
  func testWhatWaitsForAThreadCanBeCancelled() throws {
    var scene = Scene(depth: 4, limit: 20)
    let slow = OpenFile(descriptor: 4, path: nil, traits: .init(fileSystem: .fuse)) { _ in }
    let ids = try (0..<10).map { try scene.accept($0, slow) }
    XCTAssertEqual(scene.submit(), .settled)
    let thread = try XCTUnwrap(scene.offloadQueue.threadToStart(now: 1))
    let work = try XCTUnwrap(
      scene.offloadQueue.next(for: thread, finished: nil, now: 1, more: &more).work)
    XCTAssertEqual(scene.table.cancel(ids[0]), .submitted, "the system call has begun")
    for id in ids.dropFirst() { XCTAssertEqual(scene.table.cancel(id), .waiting) }
    _ = scene.submit()
    XCTAssertEqual(scene.drain(), Array(1..<10))
    scene.table[work.item].answer = 0
    scene.table.offloadResults.push(work.item)
    XCTAssertNil(scene.offloadQueue.next(for: thread, finished: work, now: 2, more: &more).work)
    _ = scene.submit()
    XCTAssertEqual(scene.drain(), [0])
    XCTAssertEqual(scene.table.free.count, 24)
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
    XCTAssertEqual(scene.table.free.count, 1)
  }

  /// A disk that takes less than a block, time after time, and says nothing of an error.
  func testAWriteThatDoesNotGetOnFails() throws {
    var scene = Scene(depth: 1, faults: .init(shortTransfer: 1))
    let aligned = OpenFile(
      descriptor: 3, path: nil, traits: .init(alignment: BlockAlignment(memory: 4096, offset: 4096))
    ) { _ in }
    let buffer = AIOBuffer(count: 4096)
    try scene.accept(0, aligned, .write(from: .buffer(buffer)), length: 4096)
    var result: Int?
    for _ in 0..<100 where result == nil {
      _ = scene.submit()
      // The first attempt is cut short with RWF_NOWAIT, and so the others are an offload thread's.
      if let thread = scene.offloadQueue.threadToStart(now: 1),
        let work = scene.offloadQueue.next(for: thread, finished: nil, now: 1, more: &more).work
      {
        var worker = OffloadWorker(kernel: scene.kernel, table: scene.table, event: 7)
        XCTAssertFalse(worker.perform(work.item))
        XCTAssertNil(scene.offloadQueue.next(for: thread, finished: work, now: 1, more: &more).work)
      }
      scene.kernel.completeAll()
      _ = scene.engine.reap()
      if let completion = scene.engine.next() {
        result = completion.result
        XCTAssertLessThan(completion.request.transferred, 4096)
        scene.table.free.give(completion.slot)
      }
    }
    XCTAssertEqual(result, -Int(EIO))
    XCTAssertEqual(scene.table.free.count, 1)
  }

  /// Durable appends made by one call all get its error: that of a sync says nothing of which of
  /// them the file has, and a second call would append them twice. Others go on behind the one at
  /// fault.
  func testDurableAppendsFailTogether() throws {
    let directory = try TemporaryDirectory()
    let fd = try FileDescriptor.open(
      directory.makeFile(size: 0), .readWrite, options: .append)
    defer { try? fd.close() }
    let size = 4096
    let page = UnsafeMutableRawBufferPointer(
      start: mmap(nil, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), count: size)
    defer { munmap(page.baseAddress, size) }
    let buffer = AIOBuffer(count: size)
    for (syncs, appends, options, written) in [
      (false, true, [], 2), (false, true, .dataSync, 0), (true, true, [], 0),
      (false, false, .append, 2), (false, false, [.append, .dataSync], 0),
      (true, false, .append, 0),
    ] as [(Bool, Bool, RequestOptions, Int)] {
      XCTAssertEqual(ftruncate(fd.rawValue, 0), 0)
      let traits = OpenFile.Traits(isDirect: false, appends: appends, syncsWrites: syncs)
      let file = OpenFile(descriptor: fd.rawValue, path: nil, traits: traits, size: 0) { _ in }
      var scene = Scene(depth: 4)
      // The kernel cannot read the first one's memory.
      for (number, memory) in [Memory.raw(page), .buffer(buffer), .buffer(buffer)].enumerated() {
        try scene.accept(number, file, .write(from: memory), length: size, options: options)
      }
      XCTAssertEqual(scene.submit(), .settled)
      let thread = try XCTUnwrap(scene.offloadQueue.threadToStart(now: 1))
      let work = scene.offloadQueue.next(for: thread, finished: nil, now: 1, more: &more).work
      var worker = OffloadWorker(kernel: scene.kernel, table: scene.table, event: 7)
      XCTAssertTrue(worker.perform(try XCTUnwrap(work).item, more))
      _ = scene.submit()
      var failed = 0
      while let (_, result) = scene.next() {
        if result < 0 {
          XCTAssertEqual(result, -Int(EFAULT))
          failed += 1
        }
      }
      XCTAssertEqual(failed, 3 - written, "\(traits) \(options)")
      XCTAssertEqual(try fd.seek(offset: 0, from: .end), Int64(written * size))
    }
  }

  func testCancelledOnesLeaveTheMiddle() throws {
    var scene = Scene(depth: 1, limit: 4)
    let keys = try (0..<5).map { try scene.accept($0, file) }
    scene.engine.collect()
    XCTAssertEqual(scene.table.cancel(keys[2]), .waiting)
    XCTAssertEqual(scene.table.cancel(keys[4]), .waiting)
    // Cancelled before `collect` heard of it: must not go down.
    XCTAssertEqual(scene.engine.submit(), .settled)
    scene.engine.collect()
    XCTAssertEqual(scene.drain(), [2, 4])
    XCTAssertNil(scene.table.cancel(keys[2]), "a stale key")
    var rest: [Int] = []
    for _ in 0..<3 {
      scene.kernel.completeAll()
      rest += scene.drain()
      _ = scene.engine.submit()
    }
    XCTAssertEqual(rest, [0, 1, 3])
    XCTAssertEqual(scene.table.free.count, 5)
  }
}
