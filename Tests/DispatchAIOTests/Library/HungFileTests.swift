// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// Requests on files that hang in the kernel hold up nobody else, can be cancelled until a thread
/// makes their system call, and complete once when the file goes on.
final class HungFileTests: XCTestCase {
  /// The outcomes of many requests, and how often each came.
  private final class Outcomes: Sendable {
    private let all: Locked<[[Outcome]]>
    init(_ count: Int) { all = Locked(Array(repeating: [], count: count)) }

    func completion(_ index: Int) -> AIOCompletion {
      { outcome in self.all.withLock { $0[index].append(outcome) } }
    }

    var completed: Int { all.withLock { $0.count { !$0.isEmpty } } }
    subscript(index: Int) -> [Outcome] { all.withLock { $0[index] } }

    /// Waits until all have completed, and checks that each did once, with what is expected.
    func assertAll(
      _ expected: (Int) -> Outcome, file: StaticString = #filePath, line: UInt = #line
    ) {
      let outcomes = all.withLock { $0.indices }
      XCTAssertTrue(
        eventually { completed == outcomes.count }, "\(completed) of \(outcomes.count) completed",
        file: file, line: line)
      for index in outcomes {
        XCTAssertEqual(self[index], [expected(index)], "request \(index)", file: file, line: line)
      }
    }
  }

  // MARK: Others are served

  /// Makes hung requests, then healthy ones: appends, cached reads, syncs of a file on a disk. The
  /// healthy ones complete meanwhile; then the gate is opened, and the hung ones do.
  private func assertHealthy(
    beside files: [String], _ requestsPerFile: Int, caching: AIOFile.Caching = .buffered,
    waiting: Int = 1, line: UInt = #line,
    _ request: (AIOContext, AIOFile, Int64, AIOBuffer, @escaping AIOCompletion) throws -> Void
  ) throws {
    let directory = try temporaryDirectory()
    let faults = try FaultFileSystem(in: directory)
    let path = try directory.makeFile(size: 1 << 20)
    let context = try AIOContext(queueDepth: 128)
    let outcomes = Outcomes(files.count * requestsPerFile)
    for (number, name) in files.enumerated() {
      let file = try AIOFile.open(faults[name], .readWrite, caching: caching)
      for index in 0..<requestsPerFile {
        try request(
          context, file, Int64(index * 4096), AIOBuffer(count: 4096),
          outcomes.completion(number * requestsPerFile + index))
      }
    }
    XCTAssertTrue(eventually { faults.hanging >= waiting }, "nothing hangs", line: line)
    let began = Date()
    let healthy = Outcomes(3 * 32)
    let cached = try AIOFile.open(path, .readOnly, caching: .buffered)
    let appended = try directory.open("appended")
    for index in 0..<32 {
      let offset = Int64(index * 4096)
      try context.read(
        cached, at: offset, into: AIOBuffer(count: 4096), completion: healthy.completion(3 * index))
      try context.write(
        appended, at: offset, from: AIOBuffer(count: 4096),
        completion: healthy.completion(3 * index + 1))
      try context.fdatasync(appended, completion: healthy.completion(3 * index + 2))
    }
    let areServed = eventually { healthy.completed == 3 * 32 }
    XCTAssertTrue(
      areServed,
      """
      beside \(files.count) hung files, \(healthy.completed) of 96 requests of healthy files had \
      completed after \(Date().timeIntervalSince(began)) s
      """, line: line)
    XCTAssertEqual(outcomes.completed, 0, "the hung files did not hang", line: line)
    faults.release()
    outcomes.assertAll({ _ in .success(files[0].contains("sync") ? 0 : 4096) }, line: line)
    healthy.assertAll({ .success($0 % 3 == 2 ? 0 : 4096) }, line: line)
    try context.closeAndWait()
  }

  private func names(_ count: Int, _ words: String) -> [String] {
    (0..<count).map { "\(words)-\($0)" }
  }

  func testReadsOfOneHungFile() throws {
    try assertHealthy(beside: names(1, "hangread"), 64) {
      try $0.read($1, at: $2, into: $3, completion: $4)
    }
  }

  func testDirectReadsOfOneHungFile() throws {
    try assertHealthy(beside: names(1, "hangread"), 64, caching: .direct) {
      try $0.read($1, at: $2, into: $3, completion: $4)
    }
  }

  func testWritesOfOneHungFile() throws {
    try assertHealthy(beside: names(1, "hangwrite"), 64) {
      try $0.write($1, at: $2, from: $3, completion: $4)
    }
  }

  func testSyncsOfOneHungFile() throws {
    // More than the queue depth, since the kernel takes an fsync without a thread of ours.
    try assertHealthy(beside: names(1, "hangfsync"), 200) { try $0.fsync($1, completion: $4) }
  }

  func testReadsOfEightHungFiles() throws {
    try assertHealthy(beside: names(8, "hangread"), 8) {
      try $0.read($1, at: $2, into: $3, completion: $4)
    }
  }

  func testWritesOfEightHungFiles() throws {
    try assertHealthy(beside: names(8, "hangwrite"), 8) {
      try $0.write($1, at: $2, from: $3, completion: $4)
    }
  }

  // MARK: Cancellation

  /// Of 64 requests on a hung file, those that no thread has begun are cancelled, and complete at
  /// once; the rest says so, and completes when the file goes on.
  private func assertCancellable(
    _ name: String, line: UInt = #line,
    _ request: (AIOContext, AIOFile, Int64, AIOBuffer, @escaping AIOCompletion) throws ->
      AIORequest
  ) throws {
    let directory = try temporaryDirectory()
    let faults = try FaultFileSystem(in: directory)
    let file = try AIOFile.open(faults[name], .readWrite, caching: .buffered)
    let context = try AIOContext(queueDepth: 128)
    let outcomes = Outcomes(64)
    // Not contiguous, so that no system call can do two of them.
    let requests = try (0..<64).map {
      try request(
        context, file, Int64($0 * 8192), AIOBuffer(count: 4096), outcomes.completion($0))
    }
    XCTAssertTrue(eventually { faults.hanging >= 1 }, "nothing hangs", line: line)
    let answers = requests.map(context.cancel)
    let cancelled = answers.indices.filter { answers[$0] == .cancelled }
    XCTAssertEqual(answers[0], .notCancellable, "the first is in its system call", line: line)
    XCTAssertGreaterThanOrEqual(
      cancelled.count, 48, "of 64 requests on a hung file; the others: not cancellable", line: line)
    XCTAssertTrue(
      eventually { outcomes.completed >= cancelled.count },
      "\(cancelled.count) cancelled, \(outcomes.completed) completed meanwhile", line: line)
    for index in cancelled {
      XCTAssertEqual(outcomes[index].map(\.code), [.cancelled], "request \(index)", line: line)
    }
    faults.release()
    for index in answers.indices where answers[index] == .notCancellable {
      XCTAssertTrue(
        eventually { outcomes[index] == [.success(4096)] }, "\(index): \(outcomes[index])",
        line: line)
    }
    try context.closeAndWait()
    XCTAssertTrue((0..<64).allSatisfy { outcomes[$0].count == 1 }, "completed once", line: line)
  }

  func testCancelsReadsThatWaitForAThread() throws {
    try assertCancellable("hangread") { try $0.read($1, at: $2, into: $3, completion: $4) }
  }

  func testCancelsWritesThatWaitForAThread() throws {
    try assertCancellable("hangwrite") { try $0.write($1, at: $2, from: $3, completion: $4) }
  }

  /// Tasks that await requests on a hung file resume when they are cancelled.
  private func assertTasksCancellable(
    _ name: String, line: UInt = #line,
    _ request:
      @escaping @Sendable (AIOContext, AIOFile, Int64, inout AIOUniqueBuffer) async throws(AIOError)
      -> Int
  ) throws {
    let directory = try temporaryDirectory()
    let faults = try FaultFileSystem(in: directory)
    let file = try AIOFile.open(faults[name], .readWrite, caching: .buffered)
    let context = try AIOContext(queueDepth: 128)
    let outcomes = Outcomes(64)
    let tasks = (0..<64).map { index in
      Task {
        var buffer = AIOUniqueBuffer(count: 4096)
        let completion = outcomes.completion(index)
        do throws(AIOError) {
          completion(.success(try await request(context, file, Int64(index * 8192), &buffer)))
        } catch {
          completion(.failure(error))
        }
      }
    }
    XCTAssertTrue(eventually { faults.hanging >= 1 }, "nothing hangs", line: line)
    for task in tasks { task.cancel() }
    XCTAssertTrue(
      eventually { outcomes.completed >= 48 },
      "of 64 cancelled tasks, \(outcomes.completed) resumed meanwhile", line: line)
    for index in 0..<64 where !outcomes[index].isEmpty {
      XCTAssertEqual(outcomes[index].map(\.code), [.cancelled], line: line)
    }
    faults.release()
    XCTAssertTrue(eventually { outcomes.completed == 64 }, line: line)
    try context.closeAndWait()
  }

  func testCancelsTasksThatAwaitReads() throws {
    try assertTasksCancellable("hangread") { context, file, offset, buffer throws(AIOError) in
      try await context.read(file, at: offset, into: &buffer)
    }
  }

  func testCancelsTasksThatAwaitWrites() throws {
    try assertTasksCancellable("hangwrite") { context, file, offset, buffer throws(AIOError) in
      try await context.write(file, at: offset, from: buffer)
    }
  }

  /// A stream of chunks whose task is cancelled while it waits for one makes no more requests, also
  /// if nobody asks it for the next.
  private func assertStopsReading(_ size: Int, readAhead: Int, line: UInt = #line) throws {
    let faults = try FaultFileSystem(in: try temporaryDirectory())
    let file = try AIOFile.open(faults["hangread-direct"], .readOnly, caching: .buffered)
    let sound = try AIOFile.open(faults["sound"], .readOnly, caching: .buffered)
    let context = try AIOContext(queueDepth: 16)
    let requests = Promise<Int>()
    let task = Task {
      var chunks = context.chunks(of: file, size: size, readAhead: readAhead).makeAsyncIterator()
      _ = try? await chunks.next()
      // A request that comes after all that the stream has made.
      _ = await Task.detached {
        var buffer = AIOUniqueBuffer(count: 512)
        _ = try? await context.read(sound, at: 0, into: &buffer)
      }.value
      requests.fulfil(context.statistics.accepted - 1)
      withExtendedLifetime(chunks) {}
    }
    XCTAssertTrue(eventually { faults.hanging >= 1 }, line: line)
    task.cancel()
    faults.release()
    XCTAssertLessThanOrEqual(
      try requests.wait(), readAhead,
      "requests of a stream that was cancelled in its first chunk, and reads \(readAhead) ahead",
      line: line)
    try context.closeAndWait()
  }

  func testACancelledStreamOfChunksReadsNoMore() throws {
    try assertStopsReading(4096, readAhead: 1)
  }

  func testACancelledStreamWithReadAheadReadsNoMore() throws {
    try assertStopsReading(65536, readAhead: 2)
  }

  // MARK: Closing and opening

  /// One close(2) hangs; a hundred other files are closed meanwhile.
  private func assertClosesOthers(
    line: UInt = #line, _ close: (inout [AIOFile], DispatchGroup) -> Void
  ) throws {
    let directory = try temporaryDirectory()
    let faults = try FaultFileSystem(in: directory)
    var hung = [try AIOFile.open(faults["hangflush"], .readWrite, caching: .buffered)]
    var healthy = try (0..<100).map { try directory.open("healthy-\($0)") }
    let descriptors = healthy.map(\.fileDescriptor.rawValue)
    let (hungGroup, group) = (DispatchGroup(), DispatchGroup())
    close(&hung, hungGroup)
    XCTAssertTrue(eventually { faults.hanging == 1 }, "the close does not hang", line: line)
    close(&healthy, group)
    let areClosed = eventually {
      descriptors.allSatisfy { fcntl($0, F_GETFD) == -1 } && group.wait(timeout: .now()) == .success
    }
    let left = descriptors.count { fcntl($0, F_GETFD) != -1 }
    XCTAssertTrue(
      areClosed, "beside a hung close, \(left) of 100 files stayed open",
      line: line)
    XCTAssertEqual(faults.hanging, 1, line: line)
    faults.release()
    XCTAssertEqual(group.wait(timeout: .now() + 30), .success, line: line)
    XCTAssertEqual(hungGroup.wait(timeout: .now() + 30), .success, line: line)
    XCTAssertTrue(
      eventually { descriptors.allSatisfy { fcntl($0, F_GETFD) == -1 } }, line: line)
  }

  func testAHungCloseDoesNotHoldBackOthers() throws {
    try assertClosesOthers { files, group in
      for file in files {
        group.enter()
        file.close { group.leave() }
      }
    }
  }

  func testTheHungCloseOfADroppedFileDoesNotHoldBackOthers() throws {
    try assertClosesOthers { files, _ in files = [] }
  }

  /// Seventy files that hang while they are opened; others are opened and closed meanwhile.
  func testHungOpensDoNotHoldBackOthers() throws {
    let directory = try temporaryDirectory()
    let faults = try FaultFileSystem(in: directory)
    let path = try directory.makeFile(size: 4096)
    let opened = Locked(0)
    let hung = (0..<70).map { index in
      let path = faults["hangopen-\(index)"]
      return Task {
        let file = try await AIOFile.open(path, .readOnly, caching: .buffered)
        opened.withLock { $0 += 1 }
        await file.close()
      }
    }
    // As many as the library begins at once; it need not begin all.
    XCTAssertTrue(eventually { faults.hanging >= 1 }, "nothing hangs")
    let healthy = Promise<Outcome>()
    Task {
      do throws(AIOError) {
        for _ in 0..<10 {
          let file = try await AIOFile.open(path, .readOnly)
          _ = try await file.size()
          await file.close()
        }
        healthy.fulfil(.success(0))
      } catch {
        healthy.fulfil(.failure(error))
      }
    }
    defer {
      faults.release()
      XCTAssertTrue(eventually { opened.withLock { $0 } == hung.count }, "opened after the release")
    }
    XCTAssertEqual(try healthy.wait(), .success(0))
    XCTAssertEqual(opened.withLock { $0 }, 0, "the hung files did not hang")
  }

  /// The other calls of a file that may sleep, beside opens that truncate and hang.
  func testHungOpensDoNotHoldBackSizesAndTruncation() throws {
    let directory = try temporaryDirectory()
    let faults = try FaultFileSystem(in: directory)
    let file = try directory.open("healthy")
    let opened = Locked(0)
    for index in 0..<70 {
      let path = faults["hangopen-\(index)"]
      Task {
        _ = try await AIOFile.open(path, .readWrite, options: .truncate, caching: .buffered)
        opened.withLock { $0 += 1 }
      }
    }
    XCTAssertTrue(eventually { faults.hanging >= 1 }, "nothing hangs")
    let healthy = Promise<Outcome>()
    Task {
      do throws(AIOError) {
        try await file.preallocate(0..<8192)
        try await file.truncate(to: 4096)
        healthy.fulfil(.success(Int(try await file.size())))
      } catch {
        healthy.fulfil(.failure(error))
      }
    }
    defer {
      faults.release()
      XCTAssertTrue(eventually { opened.withLock { $0 } == 70 }, "opened after the release")
    }
    XCTAssertEqual(try healthy.wait(), .success(4096))
  }
}
