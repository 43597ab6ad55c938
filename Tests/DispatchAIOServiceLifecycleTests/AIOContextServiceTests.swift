// SPDX-License-Identifier: Apache-2.0

#if ServiceLifecycle
import DispatchAIOServiceLifecycle
import Foundation
import Logging
import ServiceLifecycle
import SystemPackage
import XCTest

final class AIOContextServiceTests: XCTestCase {
  private struct Work: Service {
    let body: @Sendable () async throws -> Void
    func run() async throws { try await body() }
  }

  private func temporaryFile() throws -> AIOFile {
    let parent = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/var/tmp"
    let path = FilePath("\(parent)/dispatch-aio-\(UUID().uuidString)")
    addTeardownBlock { try? FileManager.default.removeItem(atPath: path.string) }
    return try AIOFile.open(path, .readWrite, options: .create, caching: .buffered)
  }

  private func group(_ services: [any Service]) -> ServiceGroup {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return ServiceGroup(services: services, logger: logger)
  }

  private func isClosed(_ context: AIOContext, _ file: AIOFile) -> Bool {
    do throws(AIOError) {
      try context.fsync(file) { _ in }
      return false
    } catch {
      return error.code == .contextClosed
    }
  }

  /// Requests that are under way at the shutdown complete; new ones are refused; then the group
  /// ends.
  func testAGracefulShutdownCompletesWhatWasAccepted() async throws {
    let context = try AIOContext(queueDepth: 4)
    let file = try temporaryFile()
    let group = group([AIOContextService(context)])
    let running = Task { try await group.run() }
    let count = 200
    let completed = Lock(0)
    for number in 0..<count {
      try context.write(file, at: Int64(number) * 4096, from: AIOBuffer(count: 4096)) { result in
        if case .success(4096) = result { completed.withLock { $0 += 1 } }
      }
    }
    await group.triggerGracefulShutdown()
    try await running.value
    XCTAssertEqual(completed.withLock { $0 }, count)
    XCTAssert(isClosed(context, file))
  }

  func testACancelledGroupClosesTheContext() async throws {
    let context = try AIOContext(queueDepth: 4)
    let file = try temporaryFile()
    let group = group([AIOContextService(context)])
    let running = Task { try await group.run() }
    running.cancel()
    _ = await running.result
    XCTAssert(isClosed(context, file))
  }

  /// What is listed after the context may use it until its own end.
  func testAServiceListedLaterUsesTheContextUntilItsEnd() async throws {
    let context = try AIOContext(queueDepth: 4)
    let file = try temporaryFile()
    let last = Lock<Result<Int, any Error>?>(nil)
    let writer = Work {
      try? await gracefulShutdown()
      do {
        let count = try await context.write(file, at: 0, from: AIOUniqueBuffer(count: 4096))
        last.withLock { $0 = .success(count) }
      } catch {
        last.withLock { $0 = .failure(error) }
      }
    }
    let group = group([AIOContextService(context), writer])
    let running = Task { try await group.run() }
    await group.triggerGracefulShutdown()
    try await running.value
    XCTAssertEqual(try last.withLock { $0 }?.get(), 4096)
    XCTAssert(isClosed(context, file))
  }

  func testAContextThatWasClosedBeforeEndsInOrder() async throws {
    let context = try AIOContext(queueDepth: 4)
    await context.close()
    let group = group([AIOContextService(context)])
    let running = Task { try await group.run() }
    await group.triggerGracefulShutdown()
    try await running.value
  }
}
#endif
