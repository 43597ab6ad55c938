// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc
import SystemPackage
import XCTest

/// What has happened. Not `Sendable`: that the handlers below may capture it is what the verbs with
/// `isolation:` are for.
private final class Journal {
  var entries: [String] = []
}

/// An actor on the loop, which uses its own state in completion handlers.
private actor Clerk {
  let context: AIOContext
  let file: AIOFile
  private let journal = Journal()
  private var continuation: CheckedContinuation<[String], Never>?
  private var offQueue = 0

  nonisolated var unownedExecutor: UnownedSerialExecutor {
    context.executor.asUnownedSerialExecutor()
  }

  init(_ context: AIOContext, _ file: AIOFile) { (self.context, self.file) = (context, file) }

  /// Makes one request after the other, each in the handler of the one before.
  func run(pipe: Int32) async -> [String] {
    await withCheckedContinuation { continuation in
      self.continuation = continuation
      attempt { try write(pipe) }
    }
  }

  private func write(_ pipe: Int32) throws {
    let buffer = AIOBuffer(count: 8192)
    buffer.fill(7)
    try context.write(file, at: 0, from: buffer, isolation: self) { [journal] result in
      journal.entries.append("write \(self.count(result))")
      self.attempt { try self.writeTwo(pipe) }
    }
  }

  private func writeTwo(_ pipe: Int32) throws {
    let buffers = [AIOBuffer(count: 512), AIOBuffer(count: 512)]
    try context.write(file, at: 8192, from: buffers, isolation: self) { [journal] result in
      journal.entries.append("write two \(self.count(result))")
      self.attempt { try self.sync(pipe) }
    }
  }

  private func sync(_ pipe: Int32) throws {
    try context.fdatasync(file, isolation: self) { [journal] result in
      journal.entries.append("fdatasync \(self.count(result))")
      self.attempt {
        try self.context.fsync(self.file, isolation: self) { result in
          journal.entries.append("fsync \(self.count(result))")
          self.attempt { try self.read(pipe) }
        }
      }
    }
  }

  private func read(_ pipe: Int32) throws {
    let buffer = AIOBuffer(count: 8192)
    let others = [AIOBuffer(count: 512), AIOBuffer(count: 4096)]
    try context.read(file, at: 0, into: buffer, isolation: self) { [journal] result in
      journal.entries.append("read \(self.count(result)), the last is \(buffer.array[8191])")
      self.attempt {
        try self.context.read(self.file, at: 8192, into: others, isolation: self) { result in
          journal.entries.append("read two \(self.count(result))")
          self.attempt { try self.poll(pipe) }
        }
      }
    }
  }

  private func poll(_ pipe: Int32) throws {
    try context.poll(pipe, for: .readable, isolation: self) { [journal] result in
      if self.context.executor.isIsolatingCurrentContext() != true { self.offQueue += 1 }
      journal.entries.append("poll \((try? result.get()) == .readable)")
      self.end()
    }
  }

  private func count(_ result: Result<Int, AIOError>) -> Int {
    if context.executor.isIsolatingCurrentContext() != true { offQueue += 1 }
    return (try? result.get()) ?? -1
  }

  private func attempt(_ body: () throws -> Void) {
    do {
      try body()
    } catch {
      journal.entries.append("\(error)")
      end()
    }
  }

  private func end() {
    journal.entries.append("off the queue \(offQueue)")
    continuation?.resume(returning: journal.entries)
    continuation = nil
  }
}

final class ActorVerbTests: XCTestCase {
  /// Completion handlers of an actor on the loop use its state, and what is not `Sendable`. (What
  /// happens off the loop: `MisuseTests`.)
  func testHandlersBelongToTheActor() async throws {
    let directory = try temporaryDirectory()
    let file = try await AIOFile.open(
      directory.path.appending("data"), .readWrite, options: .create, caching: .buffered)
    let context = try AIOContext(queueDepth: 4)
    let pipe = try FileDescriptor.pipe()
    _ = try pipe.writeEnd.writeAll([1])
    let entries = await Clerk(context, file).run(pipe: pipe.readEnd.rawValue)
    XCTAssertEqual(
      entries,
      [
        "write 8192", "write two 1024", "fdatasync 0", "fsync 0", "read 8192, the last is 7",
        "read two 1024", "poll true", "off the queue 0",
      ])
    await context.close()
    try pipe.readEnd.close()
    try pipe.writeEnd.close()
  }
}
