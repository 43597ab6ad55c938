// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Foundation
import Glibc
import SystemPackage
import XCTest

/// The verbs with `await`.
final class AsyncVerbTests: XCTestCase {
  func testEveryVerb() async throws {
    let directory = try temporaryDirectory()
    let path = directory.path.appending("file")
    let file = try await AIOFile.open(path, .readWrite, options: .create)
    let context = try AIOContext(queueDepth: 4)
    var block = AIOUniqueBuffer(count: 8192)
    block.withUnsafeMutableBytes { $0.copyBytes(from: (0..<8192).map { UInt8($0 / 4096 + 1) }) }
    let written = try await context.write(file, at: 0, from: block)
    XCTAssertEqual(written, 8192)
    let part = try await context.write(file, at: 8192, from: block, range: 4096..<8192)
    XCTAssertEqual(part, 4096)
    try await context.fdatasync(file)
    try await context.fsync(file)
    let size = try await file.size()
    XCTAssertEqual(size, 12288)
    let read = try await context.read(file, at: 4096, into: &block)
    XCTAssertEqual(read, 8192)
    XCTAssertEqual(block.bytes.unsafeLoad(fromByteOffset: 0, as: UInt8.self), 2)
    let short = try await context.read(file, at: 8192, into: &block)
    XCTAssertEqual(short, 4096)
    let buffers = [AIOBuffer(count: 4096), AIOBuffer(count: 4096)]
    let vectored = try await context.read(file, at: 0, into: buffers)
    XCTAssertEqual(vectored, 8192)
    XCTAssertEqual(buffers.map { $0.array[0] }, [1, 2])
    let back = try await context.write(file, at: 4096, from: buffers)
    XCTAssertEqual(back, 8192)
    let full = try await context.read(file, at: 0, into: buffers)
    XCTAssertEqual(full, 8192)
    XCTAssertEqual(buffers.map { $0.array[0] }, [1, 1])
    try await file.truncate(to: 5000)
    let end = try await file.size()
    XCTAssertEqual(end, 5000)
    do {
      _ = try await context.read(file, at: 1, into: &block)
      XCTFail("not refused")
    } catch {
      XCTAssertEqual(error.code, .misaligned)
    }
    await file.close()
    do {
      _ = try await context.read(file, at: 0, into: &block)
      XCTFail("not refused")
    } catch {
      XCTAssertEqual(error.code, .fileClosed)
    }
    await context.close()
    do {
      try await context.fsync(try directory.open())
      XCTFail("not refused")
    } catch let error as AIOError {
      XCTAssertEqual(error.code, .contextClosed)
    }
  }

  func testABufferIsTakenOverOnlyWhenNobodyElseHasIt() {
    let buffer = AIOBuffer([1, 2, 3])
    let slice = buffer[0..<1]
    let taken = AIOUniqueBuffer(slice)
    XCTAssertTrue(taken == nil)
    let unique = AIOUniqueBuffer(count: 3)
    let shared = unique.shared()
    shared.fill(7)
    guard let again = AIOUniqueBuffer(consume shared) else { return XCTFail("it is not shared") }
    XCTAssertEqual(again.withUnsafeBytes { [UInt8]($0) }, [7, 7, 7])
  }

  /// Whose read has returned has the buffers to himself.
  func testNobodyHoldsABufferOnceItIsRead() async throws {
    let directory = try temporaryDirectory()
    let file = try await AIOFile.open(try directory.makeFile(size: 4096), .readOnly)
    let context = try AIOContext(queueDepth: 1)
    for _ in 0..<500 {
      var buffers = [AIOBuffer(count: 4096)]
      _ = try await context.read(file, at: 0, into: buffers)
      let taken = AIOUniqueBuffer(buffers.removeLast())
      guard taken != nil else { return XCTFail("somebody holds it still") }
    }
    await context.close()
  }

  /// Keeps the context's queue busy.
  ///
  /// - Returns: what lets it go on.
  private func holdUp(_ context: AIOContext) throws -> DispatchSemaphore {
    let (entered, leave) = (Promise<Void>(), DispatchSemaphore(value: 0))
    context.queue.async {
      entered.fulfil(())
      leave.wait()
    }
    try entered.wait()
    return leave
  }

  /// A task that has been cancelled submits nothing, and one that waits leaves at once.
  func testCancellation() async throws {
    let directory = try temporaryDirectory()
    let file = try await AIOFile.open(try directory.makeFile(size: 4096), .readOnly)
    let context = try AIOContext(queueDepth: 1, pendingLimit: 0)
    let gate = Gate()
    let early = Task {
      await gate.wait()
      var block = AIOUniqueBuffer(count: 4096)
      return try await context.read(file, at: 0, into: &block)
    }
    early.cancel()
    gate.open()
    await assertCancelled(early)
    XCTAssertEqual(context.statistics.accepted, 0)

    // The only slot is in the hand of a handler that does not return: whoever comes waits in line.
    let leave = try holdUp(context)
    try context.fsync(file) { _ in }
    let waiting = (0..<10).map { _ in
      Task {
        var block = AIOUniqueBuffer(count: 4096)
        return try await context.read(file, at: 0, into: &block)
      }
    }
    // They end while the loop does nothing.
    for task in waiting.dropLast() { task.cancel() }
    for task in waiting.dropLast() { await assertCancelled(task) }
    leave.signal()
    let count = try await waiting[9].value
    XCTAssertEqual(count, 4096)
    await context.close()
  }

  private func assertCancelled(_ task: Task<Int, any Error>, line: UInt = #line) async {
    do {
      let count = try await task.value
      XCTFail("not cancelled, but \(count)", line: line)
    } catch {
      XCTAssertEqual((error as? AIOError)?.code, .cancelled, "\(error)", line: line)
    }
  }

  /// Past the pending limit they wait, and go down in the order in which they came.
  /// Tasks on the loop, whose requests the kernel mostly gets at once, without a cancellation
  /// handler: where it refuses one, or has no room, the call makes it again, and has its result.
  func testReadsOnTheLoopThatHaveToWait() async throws {
    try requireKernelAIO("nothing is refused")
    let directory = try temporaryDirectory()
    let path = directory.path.appending("cold")
    let bytes = Data((0...UInt8.max).flatMap { [UInt8](repeating: $0, count: 4096) })
    try bytes.write(to: URL(fileURLWithPath: path.string))
    let context = try AIOContext(queueDepth: 4)
    let descriptor = try FileDescriptor.open(path, .readOnly)
    try evict(descriptor.rawValue, size: bytes.count)
    let file = try AIOFile(adopting: descriptor, path: path)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for block in 0..<256 {
        group.addTask(executorPreference: context.taskExecutor) {
          var buffer = AIOUniqueBuffer(count: 4096)
          let count = try await context.read(file, at: Int64(block) * 4096, into: &buffer)
          XCTAssertEqual(count, 4096)
          let last = buffer.bytes.unsafeLoad(fromByteOffset: 4095, as: UInt8.self)
          XCTAssertEqual(last, UInt8(block))
        }
      }
      try await group.waitForAll()
    }
    await file.close()
    await context.close()
    XCTAssertGreaterThan(context.statistics.nowaitRefusals, 0, "nothing had to wait")
    XCTAssertEqual(context.statistics.accepted, 256)
    XCTAssertEqual(context.statistics.succeeded, 256)
  }

  func testBackpressureKeepsTheOrder() async throws {
    let directory = try temporaryDirectory()
    let file = try await AIOFile.open(try directory.makeFile(size: 4096), .readOnly)
    let context = try AIOContext(queueDepth: 1, pendingLimit: 0)
    let clerk = Clerk(context)
    let order = await clerk.readAll(file, 200)
    XCTAssertEqual(order, Array(0..<200))
    await context.close()
  }

  /// Submitters by callback who always take what is free do not starve those who wait.
  func testWaitingIsNotForever() async throws {
    let directory = try temporaryDirectory()
    let file = try await AIOFile.open(try directory.makeFile(size: 4096), .readOnly)
    let context = try AIOContext(queueDepth: 2, pendingLimit: 2)
    let greed = Greed(context, file)
    context.queue.async { greed.submit() }
    for _ in 0..<50 {
      var block = AIOUniqueBuffer(count: 4096)
      let count = try await context.read(file, at: 0, into: &block)
      XCTAssertEqual(count, 4096)
    }
    context.queue.sync { greed.isOver = true }
    await context.close()
  }

  func testCloseEndsThoseWhoWait() async throws {
    let directory = try temporaryDirectory()
    let file = try await AIOFile.open(try directory.makeFile(size: 4096), .readOnly)
    let context = try AIOContext(queueDepth: 1, pendingLimit: 0)
    let leave = try holdUp(context)
    try context.fsync(file) { _ in }
    let tasks = (0..<10).map { _ in
      Task {
        var block = AIOUniqueBuffer(count: 4096)
        return try await context.read(file, at: 0, into: &block)
      }
    }
    context.close(completion: nil)
    for task in tasks {
      do {
        _ = try await task.value
        XCTFail("not refused")
      } catch {
        XCTAssertEqual((error as? AIOError)?.code, .contextClosed)
      }
    }
    leave.signal()
    await context.close()
  }

  /// A thousand tasks, cancelled at random points: each ends once, as cancelled or with all of its
  /// bytes, and the accounts agree.
  func testAThousandCancellations() async throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 64 * 4096) { UInt8($0 / 4096) }
    let environment = ProcessInfo.processInfo.environment
    let seed = environment["AIO_SEED"].flatMap(UInt64.init) ?? UInt64.random(in: 0...UInt64.max)
    var random = SeededGenerator(seed: seed)
    for caching in [AIOFile.Caching.direct, .buffered] {
      let file = try await AIOFile.open(path, .readOnly, caching: caching)
      let context = try AIOContext(queueDepth: 4, pendingLimit: 8)
      let isOnLoop = Bool.random(using: &random)
      let tasks = (0..<1000).map { number in
        Task(executorPreference: isOnLoop ? context.taskExecutor : nil) {
          var block = AIOUniqueBuffer(count: 4096)
          let count = try await context.read(
            file, at: Int64(number % 64) * 4096, into: &block)
          return (count, block.withUnsafeBytes { $0.allSatisfy { $0 == UInt8(number % 64) } })
        }
      }
      for task in tasks.shuffled(using: &random) where random.oneIn(2) {
        if random.oneIn(3) { await Task.yield() }
        task.cancel()
      }
      var (done, cancelled) = (0, 0)
      for task in tasks {
        do {
          let (count, isRight) = try await task.value
          XCTAssertTrue(count == 4096 && isRight, Seeds.replay(seed))
          done += 1
        } catch {
          XCTAssertEqual((error as? AIOError)?.code, .cancelled, Seeds.replay(seed))
          cancelled += 1
        }
      }
      XCTAssertEqual(done + cancelled, 1000, Seeds.replay(seed))
      await context.close()
      let statistics = context.statistics
      XCTAssertEqual(statistics.succeeded, done, Seeds.replay(seed))
      XCTAssertEqual(
        statistics.accepted, statistics.succeeded + statistics.cancelled, Seeds.replay(seed))
      XCTAssertLessThanOrEqual(statistics.cancelled, cancelled, Seeds.replay(seed))
    }
  }
}

/// Lets tasks go on when it is opened.
private final class Gate: Sendable {
  private let state = Locked<(isOpen: Bool, waiters: [CheckedContinuation<Void, Never>])>(
    (false, []))

  func wait() async {
    await withCheckedContinuation { continuation in
      let isOpen = state.withLock { state in
        if !state.isOpen { state.waiters.append(continuation) }
        return state.isOpen
      }
      if isOpen { continuation.resume() }
    }
  }

  func open() {
    let waiters = state.withLock { state in
      defer { state = (true, []) }
      return state.waiters
    }
    for waiter in waiters { waiter.resume() }
  }
}

/// Makes requests in a known order, from the loop.
private actor Clerk {
  let context: AIOContext
  nonisolated var unownedExecutor: UnownedSerialExecutor {
    context.executor.asUnownedSerialExecutor()
  }
  private var order: [Int] = []
  private var made = 0

  init(_ context: AIOContext) { self.context = context }

  /// - Returns: the numbers of the requests in the order in which they completed, which, one at a
  ///   time, is that in which they went down, counted in the order in which they were made.
  func readAll(_ file: AIOFile, _ count: Int) async -> [Int] {
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<count { group.addTask { await self.read(file) } }
    }
    return order
  }

  private func read(_ file: AIOFile) async {
    let number = made
    made += 1
    var block = AIOUniqueBuffer(count: 4096)
    do {
      _ = try await context.read(file, at: 0, into: &block)
    } catch {
      XCTFail("\(error)")
    }
    order.append(number)
  }
}

/// Takes every slot that is free.
///
/// - Safety: `@unchecked Sendable` because it is confined to the context's queue.
private final class Greed: @unchecked Sendable {
  let context: AIOContext
  let file: AIOFile
  var isOver = false
  private var inFlight = 0

  init(_ context: AIOContext, _ file: AIOFile) { (self.context, self.file) = (context, file) }

  func submit() {
    while !isOver {
      do {
        try context.read(file, at: 0, into: AIOBuffer(count: 4096)) { [self] _ in
          inFlight -= 1
          submit()
        }
        inFlight += 1
      } catch {
        XCTAssertEqual(error.code, .full)
        // Somebody's completion tries again; if none is ours, ask later.
        if inFlight == 0 { context.queue.async { self.submit() } }
        return
      }
    }
  }
}
