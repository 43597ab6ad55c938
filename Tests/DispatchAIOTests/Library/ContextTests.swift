// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What a context promises, on the real kernel.
final class ContextTests: XCTestCase {
  private let loop = DispatchQueue(label: "test.loop")
  private static let onLoop = DispatchSpecificKey<Bool>()

  override func setUp() {
    loop.setSpecific(key: Self.onLoop, value: true)
  }

  private func readable(blocks: Int = 64) throws -> (TemporaryDirectory, AIOFile) {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: blocks * 4096) { UInt8($0 / 4096) }
    return (directory, try directory.open("file", .readOnly))
  }

  // MARK: Queues

  func testCompletionsArriveOnTheContextsQueue() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 4, queue: loop)
    XCTAssertIdentical(context.queue, loop)
    let promise = Promise<Bool?>()
    try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { _ in
      promise.fulfil(DispatchQueue.getSpecific(key: Self.onLoop))
    }
    XCTAssertEqual(try promise.wait(), true)
    try context.closeAndWait()
  }

  func testCompletionsArriveOnTheQueueAskedFor() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 16)
    let key = DispatchSpecificKey<Int>()
    let queues = (0..<3).map { number in
      let queue = DispatchQueue(label: "test.\(number)")
      queue.setSpecific(key: key, value: number)
      return queue
    }
    let arrived = Locked<[Int: [Int?]]>([:])
    let group = DispatchGroup()
    for request in 0..<30 {
      group.enter()
      try context.read(
        file, at: Int64(request * 4096), into: AIOBuffer(count: 4096), queue: queues[request % 3]
      ) { _ in
        arrived.withLock {
          $0[request % 3, default: []].append(DispatchQueue.getSpecific(key: key))
        }
        group.leave()
      }
    }
    XCTAssertEqual(group.wait(timeout: .now() + 30), .success)
    let expected = Dictionary(
      uniqueKeysWithValues: (0..<3).map { ($0, [Int?](repeating: $0, count: 10)) })
    XCTAssertEqual(arrived.withLock { $0 }, expected)
    try context.closeAndWait()
  }

  func testOneHopPerQueueAndTurn() {
    let queues = (0..<3).map { DispatchQueue(label: "test.\($0)") }
    final class Owner: SlotOwner {
      let slots = Locked<[UInt32]>([])
      func giveBack(_ slot: UInt32) { slots.withLock { $0.append(slot) } }
    }
    let owner = Owner()
    var batch = CrossQueueBatch()
    let order = Locked<[[Int]]>([[], [], []])
    for number in 0..<12 {
      batch.add(
        { result in
          // The slot is free before its handler runs, so that it may make the next request.
          XCTAssertTrue(owner.slots.withLock { $0.contains(UInt32(number)) })
          order.withLock { $0[number % 3].append(try! result.get()) }
        },
        .success(number), slot: UInt32(number), to: queues[number % 3])
    }
    XCTAssertFalse(batch.isEmpty)
    let group = DispatchGroup()
    batch.flush(group, for: owner)
    XCTAssertEqual(batch.hops, 3)
    XCTAssertTrue(batch.isEmpty)
    XCTAssertEqual(group.wait(timeout: .now() + 30), .success)
    XCTAssertEqual(order.withLock { $0 }, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
  }

  /// Sockets, timers and disk on one queue: none of them locks the queue.
  func testSharesItsQueue() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 4, queue: loop)
    var ends: [Int32] = [0, 0]
    XCTAssertEqual(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends), 0)
    defer { for end in ends { close(end) } }
    let (socketFired, timerFired, diskDone) = (Promise<Void>(), Promise<Void>(), Promise<Outcome>())

    let socket = DispatchSource.makeReadSource(fileDescriptor: ends[0], queue: loop)
    let received = ends[0]
    socket.setEventHandler { @Sendable in
      var byte: UInt8 = 0
      XCTAssertEqual(read(received, &byte, 1), 1)
      socketFired.fulfil(())
    }
    socket.activate()
    let timer = DispatchSource.makeTimerSource(queue: loop)
    timer.schedule(deadline: .now() + .milliseconds(5))
    timer.setEventHandler { @Sendable in timerFired.fulfil(()) }
    timer.activate()
    try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { diskDone.fulfil($0) }
    XCTAssertEqual(write(ends[1], "x", 1), 1)

    try socketFired.wait()
    try timerFired.wait()
    XCTAssertEqual(try diskDone.wait(), .success(4096))
    socket.cancel()
    timer.cancel()
    try context.closeAndWait()
  }

  // MARK: process()

  func testProcessByHand() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 8, queue: loop)
    let completed = Locked(0)
    // While this block holds the queue, nothing but `process` can run completions.
    try loop.sync {
      XCTAssertEqual(context.process(), 0)
      for block in 0..<5 {
        try context.read(file, at: Int64(block * 4096), into: AIOBuffer(count: 4096)) { _ in
          completed.withLock { $0 += 1 }
        }
      }
      XCTAssertEqual(completed.withLock { $0 }, 0, "a completion ran inside the submitting call")
      var run = 0
      while run < 5 { run += context.process() }
      XCTAssertEqual(run, 5)
      XCTAssertEqual(completed.withLock { $0 }, 5)
      XCTAssertEqual(context.process(), 0)
    }
    try context.closeAndWait()
    XCTAssertEqual(loop.sync { context.process() }, 0)
  }

  // MARK: From everywhere

  func testFromManyThreads() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 8, pendingLimit: 64)
    let done = DispatchGroup()
    let completions = Locked([Int](repeating: 0, count: 4 * 500))
    onThreads(4) { thread in
      for number in 0..<500 {
        let id = thread * 500 + number
        done.enter()
        while true {
          do {
            try context.read(file, at: Int64(id % 64 * 4096), into: AIOBuffer(count: 4096)) {
              XCTAssertEqual($0, .success(4096))
              completions.withLock { $0[id] += 1 }
              done.leave()
            }
            break
          } catch {
            XCTAssertEqual((error as? AIOError)?.code, .full)
            sched_yield()
          }
        }
      }
    }
    XCTAssertEqual(done.wait(timeout: .now() + 60), .success)
    XCTAssertEqual(completions.withLock { $0 }, [Int](repeating: 1, count: 2000))
    try context.closeAndWait()
  }

  func testSubmittingInsideACompletion() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 4)
    let promise = Promise<Int>()
    let chain = Chain(context: context, file: file, length: 1000) { promise.fulfil($0) }
    chain.step()
    XCTAssertEqual(try promise.wait(), 1000)
    try context.closeAndWait()
  }

  private final class Chain: @unchecked Sendable {
    let context: AIOContext
    let file: AIOFile
    let length: Int
    let whenDone: @Sendable (Int) -> Void
    var steps = 0

    init(
      context: AIOContext, file: AIOFile, length: Int, whenDone: @escaping @Sendable (Int) -> Void
    ) {
      (self.context, self.file, self.length, self.whenDone) = (context, file, length, whenDone)
    }

    func step() {
      try! context.read(file, at: Int64(steps % 64 * 4096), into: AIOBuffer(count: 4096)) { _ in
        self.steps += 1
        if self.steps == self.length { self.whenDone(self.steps) } else { self.step() }
      }
    }
  }

  func testCancellingAndClosingInsideACompletion() throws {
    try requireKernelAIO("the queue depth has no bound")
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 1, queue: loop, pendingLimit: 8)
    let closed = Promise<Void>()
    let cancelled = Promise<Outcome>()
    let later = Locked<AIORequest?>(nil)
    try loop.sync {
      try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { _ in
        XCTAssertEqual(context.cancel(later.withLock { $0 }!), .cancelled)
        context.close { closed.fulfil(()) }
        assertRefused(.contextClosed) { try context.fsync(file) { _ in } }
      }
      // The next may be with the kernel when the handler runs, the one after it not.
      try context.read(file, at: 4096, into: AIOBuffer(count: 4096)) { _ in }
      let request = try context.read(file, at: 8192, into: AIOBuffer(count: 4096)) {
        cancelled.fulfil($0)
      }
      later.withLock { $0 = request }
    }
    XCTAssertEqual(try cancelled.wait().code, .cancelled)
    try closed.wait()
  }

  // MARK: Order, room and limits

  func testRequestsBeyondTheDepthWait() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 2, queue: loop, pendingLimit: 500)
    let order = Locked<[Int]>([])
    let done = DispatchGroup()
    try loop.sync {
      for number in 0..<500 {
        done.enter()
        try context.fdatasync(file) { result in
          XCTAssertEqual(result, .success(0))
          order.withLock { $0.append(number) }
          done.leave()
        }
      }
    }
    XCTAssertEqual(done.wait(timeout: .now() + 60), .success)
    let completed = order.withLock { $0 }
    XCTAssertEqual(completed.sorted(), Array(0..<500))
    // Two at a time, in order: when one completes, at most one from before it has not.
    for (place, number) in completed.enumerated() {
      XCTAssertLessThanOrEqual(number - place, 1)
    }
    try context.closeAndWait()
  }

  /// Turn after turn with something to run and nothing in flight.
  func testNothingEverReachesTheKernel() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 1, queue: loop)
    let cancelled = Locked(0)
    for _ in 0..<200 {
      try loop.sync {
        let request = try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { result in
          if result.code == .cancelled { cancelled.withLock { $0 += 1 } }
        }
        XCTAssertEqual(context.cancel(request), .cancelled)
      }
    }
    try context.closeAndWait()
    XCTAssertEqual(cancelled.withLock { $0 }, 200)
    XCTAssertEqual(context.statistics.submitCalls, 0)
  }

  func testPastTheLimit() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 2, queue: loop, pendingLimit: 3)
    let done = DispatchGroup()
    try loop.sync {
      // The loop is held, so that nothing completes meanwhile.
      for _ in 0..<5 {
        done.enter()
        try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { _ in done.leave() }
      }
      let refusal = assertRefused(.full) {
        try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { _ in
          XCTFail("a refused request completed")
        }
      }
      XCTAssertEqual(refusal?.isRetryable, true)
    }
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    // There is room again.
    XCTAssertEqual(
      try context.readAndWait(file, at: 0, into: AIOBuffer(count: 4096)), .success(4096))
    try context.closeAndWait()
  }

  // MARK: Cancel

  func testCancel() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 1, queue: loop, pendingLimit: 8)
    let promises = (0..<4).map { _ in Promise<Outcome>() }
    var requests: [AIORequest] = []
    try loop.sync {
      for promise in promises {
        requests.append(
          try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { promise.fulfil($0) })
      }
      // Nothing has been submitted while the loop is held.
      XCTAssertEqual(context.cancel(requests[2]), .cancelled)
      XCTAssertEqual(context.cancel(requests[2]), .alreadyCompleted)
    }
    for (number, promise) in promises.enumerated() {
      let outcome = try promise.wait()
      if number == 2 {
        XCTAssertEqual(outcome.code, .cancelled)
      } else {
        XCTAssertEqual(outcome, .success(4096))
      }
    }
    // The slots are others' by now.
    let again = Promise<Outcome>()
    let held = Promise<Void>()
    try loop.sync {
      _ = try (0..<4).map { _ in
        try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { _ in }
      }
      try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { again.fulfil($0) }
      for request in requests { XCTAssertEqual(context.cancel(request), .alreadyCompleted) }
      held.fulfil(())
    }
    XCTAssertEqual(try again.wait(), .success(4096))
    try context.closeAndWait()
  }

  func testWhatTheKernelHasCannotBeCancelled() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 1, queue: loop)
    let promise = Promise<Outcome>()
    try loop.sync {
      let request = try context.fsync(file) { promise.fulfil($0) }
      // Submits; the completion may be there at once or not, but nobody takes it while the table
      // is asked.
      while context.loop.table.phase(of: request.id) == .waiting { context.process() }
      let answer = context.cancel(request)
      XCTAssertNotEqual(answer, .cancelled)
    }
    XCTAssertEqual(try promise.wait(), .success(0))
    try context.closeAndWait()
  }

  func testAnotherContextsRequest() throws {
    let (_, file) = try readable()
    let one = try AIOContext(queueDepth: 1, queue: loop)
    let other = try AIOContext(queueDepth: 1, queue: loop)
    let (first, second) = (Promise<Outcome>(), Promise<Outcome>())
    try loop.sync {
      let request = try one.fdatasync(file) { first.fulfil($0) }
      // The same slot, and the same generation.
      try other.fdatasync(file) { second.fulfil($0) }
      XCTAssertEqual(other.cancel(request), .alreadyCompleted)
      XCTAssertEqual(one.cancel(request), .cancelled)
    }
    XCTAssertEqual(try first.wait().code, .cancelled)
    XCTAssertEqual(try second.wait(), .success(0))
    try one.closeAndWait()
    try other.closeAndWait()
  }

  // MARK: Close

  func testCloseFinishesWhatIsActive() throws {
    let (_, file) = try readable()
    let context = try AIOContext(queueDepth: 2, queue: loop, pendingLimit: 100)
    let completed = Locked(0)
    let elsewhere = DispatchQueue(label: "test.elsewhere")
    let closed = Promise<Int>()
    try loop.sync {
      for number in 0..<100 {
        try context.read(
          file, at: 0, into: AIOBuffer(count: 4096), queue: number % 2 == 0 ? nil : elsewhere
        ) {
          XCTAssertEqual($0, .success(4096))
          completed.withLock { $0 += 1 }
        }
      }
      context.close { closed.fulfil(completed.withLock { $0 }) }
      assertRefused(.contextClosed) { try context.fsync(file) { _ in XCTFail("completed") } }
    }
    XCTAssertEqual(try closed.wait(), 100, "close called back before all completions had run")
    // Closing again calls back too.
    try context.closeAndWait()
    assertRefused(.contextClosed) { try context.fsync(file) { _ in } }
  }

  func testCloseCallsBackWhereAsked() throws {
    let context = try AIOContext(queueDepth: 1)
    let promise = Promise<Bool?>()
    context.close(queue: loop) { promise.fulfil(DispatchQueue.getSpecific(key: Self.onLoop)) }
    XCTAssertEqual(try promise.wait(), true)
  }

  /// Threads that submit while another closes: each request is refused, or completes.
  func testCloseUnderFire() throws {
    let (_, file) = try readable()
    for _ in 0..<20 {
      let context = try AIOContext(queueDepth: 4, pendingLimit: 16)
      let (accepted, completed) = (Locked(0), Locked(0))
      let closed = Promise<Void>()
      onThreads(4) { thread in
        if thread == 3 {
          return context.close { closed.fulfil(()) }
        }
        // One that waits for a slot, if there is none.
        while thread == 2 {
          let outcome = try? context.outcome {
            context.acceptLater(.fdatasync, file, 0, [], Waiter(), .callback($0, queue: nil))
          }
          guard let outcome, outcome.code == nil else {
            return XCTAssertEqual(outcome?.code, .contextClosed)
          }
        }
        while true {
          do {
            try context.fdatasync(file) { _ in completed.withLock { $0 += 1 } }
            accepted.withLock { $0 += 1 }
          } catch {
            if (error as? AIOError)?.code == .contextClosed { return }
            XCTAssertEqual((error as? AIOError)?.code, .full)
          }
        }
      }
      try closed.wait()
      XCTAssertEqual(accepted.withLock { $0 }, completed.withLock { $0 })
    }
  }

  // MARK: Dropping

  func testDroppingLosesNothing() throws {
    let (_, file) = try readable()
    let completed = DispatchGroup()
    var context: AIOContext? = try AIOContext(queueDepth: 2, pendingLimit: 50)
    for _ in 0..<50 {
      completed.enter()
      try context?.read(file, at: 0, into: AIOBuffer(count: 4096)) {
        XCTAssertEqual($0, .success(4096))
        completed.leave()
      }
    }
    weak let dropped = context?.loop
    context = nil
    XCTAssertEqual(completed.wait(timeout: .now() + 30), .success)
    XCTAssertTrue(eventually { dropped == nil }, "the loop of a dropped context lives on")
  }

  func testNothingLeaks() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 65536)
    func descriptors() throws -> Int {
      try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
    }
    func kernelRequests() throws -> Int {
      let text = try String(contentsOfFile: "/proc/sys/fs/aio-nr", encoding: .ascii)
      return try XCTUnwrap(Int(text.trimmingCharacters(in: .whitespacesAndNewlines)))
    }
    func useContext(_ round: Int) throws {
      let context = try AIOContext(queueDepth: 8)
      let file = try directory.open("file", .readOnly)
      let read = Promise<Outcome>()
      // A third is closed, a third dropped idle, a third dropped busy.
      try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { read.fulfil($0) }
      if round % 3 == 1 { _ = try read.wait() }
      if round % 3 == 0 { try context.closeAndWait() }
    }
    // What the first of a process opens, Dispatch and the library keep.
    try useContext(0)
    // Some that other tests have dropped may be on their way out: fewer afterwards is no leak.
    let before = try (descriptors(), kernelRequests())
    for round in 0..<12 { try useContext(round) }
    XCTAssertTrue(
      eventually { (try? descriptors()) ?? .max <= before.0 },
      "descriptors leak: \(before.0) before")
    XCTAssertTrue(
      eventually { (try? kernelRequests()) ?? .max <= before.1 },
      "fs.aio-nr leaks: \(before.1) before")
  }

  // MARK: The library's own queues

  /// Goal: a queue that nobody holds is used again, with its mark; one that somebody holds is not.
  /// That a context's parts do not hold its queue, DispatchProbeTests see.
  func testQueuesAreUsedAgain() throws {
    // Those of contexts that are just ending may come between.
    func queues() -> [MarkedQueue] { (0..<64).map { _ in MarkedQueue(nil) } }
    var marked: MarkedQueue? = MarkedQueue(nil)
    let number = try ObjectIdentifier(XCTUnwrap(marked).queue)
    marked = nil
    let again = queues().first { ObjectIdentifier($0.queue) == number }
    marked = try XCTUnwrap(again, "not used again")
    try XCTUnwrap(marked).queue.sync { XCTAssertTrue(again?.isCurrent == true) }
  }

  func testAQueueThatSomebodyHoldsIsNotUsedAgain() throws {
    var marked: MarkedQueue? = MarkedQueue(nil)
    let held = try XCTUnwrap(marked).queue
    marked = nil
    for other in (0..<64).map({ _ in MarkedQueue(nil) }) {
      XCTAssertFalse(other.queue === held)
      held.sync { XCTAssertFalse(other.isCurrent) }
    }
  }
}
