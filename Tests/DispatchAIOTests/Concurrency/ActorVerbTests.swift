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
  let socket: Int32
  private let journal = Journal()
  private var continuation: CheckedContinuation<[String], Never>?
  private var offQueue = 0

  nonisolated var unownedExecutor: UnownedSerialExecutor {
    context.executor.asUnownedSerialExecutor()
  }

  init(_ context: AIOContext, _ file: AIOFile, _ socket: Int32) {
    (self.context, self.file, self.socket) = (context, file, socket)
  }

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
          self.attempt { try self.writeAnyRange(pipe) }
        }
      }
    }
  }

  private func writeAnyRange(_ pipe: Int32) throws {
    let (buffer, buffers) = (AIOBuffer(count: 5), [AIOBuffer(count: 3), AIOBuffer(count: 4)])
    try context.write(file, contentsOf: buffer, at: 1, isolation: self) { [journal] result in
      journal.entries.append("write any \(self.count(result))")
      self.attempt {
        try self.context.write(self.file, contentsOf: buffers, at: 10, isolation: self) { result in
          journal.entries.append("write any two \(self.count(result))")
          self.attempt { try self.append(pipe) }
        }
      }
    }
  }

  private func append(_ pipe: Int32) throws {
    let (buffer, buffers) = (AIOBuffer(count: 10), [AIOBuffer(count: 1), AIOBuffer(count: 1)])
    try context.append(file, from: buffer, isolation: self) { [journal] result in
      journal.entries.append("append at \(self.count(result))")
      self.attempt {
        try self.context.append(self.file, from: buffers, isolation: self) { result in
          journal.entries.append("append two at \(self.count(result))")
          self.attempt { try self.readAnyRange(pipe) }
        }
      }
    }
  }

  private func readAnyRange(_ pipe: Int32) throws {
    try context.read(file, from: 0, count: 7, isolation: self) { [journal] result in
      if self.context.executor.isIsolatingCurrentContext() != true { self.offQueue += 1 }
      journal.entries.append("read any \((try? result.get().array) ?? [])")
      self.attempt {
        try self.context.send(
          self.file, at: 0, count: 100, to: self.socket, header: [1], isolation: self
        ) { result in
          journal.entries.append("send \(self.count(result))")
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
    var ends: [Int32] = [0, 0]
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    XCTAssertEqual(socketpair(AF_UNIX, type, 0, &ends), 0)
    let entries = await Clerk(context, file, ends[0]).run(pipe: pipe.readEnd.rawValue)
    XCTAssertEqual(
      entries,
      [
        "write 8192", "write two 1024", "fdatasync 0", "fsync 0", "read 8192, the last is 7",
        "read two 1024", "write any 5", "write any two 7", "append at 9216", "append two at 9226",
        "read any [7, 0, 0, 0, 0, 0, 7]", "send 100", "poll true", "off the queue 0",
      ])
    await context.close()
    for end in ends { close(end) }
    try pipe.readEnd.close()
    try pipe.writeEnd.close()
  }
}
