// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// The end of a context with everything under way.
final class ClosingTests: XCTestCase {
  /// What has begun, and has to end exactly once.
  private final class Tally: Sendable {
    private let open = Locked<[String: Int]>([:])

    /// - Returns: What is called at the end.
    func begin(_ kind: String) -> @Sendable () -> Void {
      open.withLock { $0[kind, default: 0] += 1 }
      let hasEnded = Locked(false)
      return { [self] in
        let isSecond = hasEnded.withLock { hasEnded in
          defer { hasEnded = true }
          return hasEnded
        }
        XCTAssertFalse(isSecond, "a \(kind) ended twice")
        refused(kind)
      }
    }

    func refused(_ kind: String) { open.withLock { $0[kind, default: 0] -= 1 } }

    var left: [String: Int] { open.withLock { $0.filter { $0.value != 0 } } }
  }

  /// What one thread asks of a context, by chance.
  private struct Client {
    let context: AIOContext
    let files: [AIOFile]
    let other: DispatchQueue
    let tally: Tally
    let ends: (near: Int32, far: Int32)
    var generator: SeededGenerator
    private var requests: [AIORequest] = []
    private var polls: [AIOPoll] = []
    private var sends: [AIOSend] = []

    init(
      _ context: AIOContext, _ files: [AIOFile], _ tally: Tally, _ ends: (Int32, Int32),
      seed: UInt64
    ) {
      (self.context, self.files, self.tally, self.ends) = (context, files, tally, ends)
      other = DispatchQueue(label: "test.other")
      generator = SeededGenerator(seed: seed)
    }

    mutating func run() {
      for _ in 0..<Int.random(in: 1...60, using: &generator) {
        let step = steps[Int.random(in: 0..<steps.count, using: &generator)]
        let end = tally.begin(step.kind)
        do {
          try step.body(&self, end)
        } catch {
          tally.refused(step.kind)
        }
      }
    }

    private typealias Step = (inout Client, @escaping @Sendable () -> Void) throws -> Void

    private let steps: [(kind: String, body: Step)] = [
      ("read", { client, end in try client.read { end() } }),
      ("read for another queue", { client, end in try client.read(client.other) { end() } }),
      ("write", { client, end in try client.write { end() } }),
      ("sync", { client, end in try client.sync { end() } }),
      ("poll", { client, end in try client.poll { end() } }),
      ("send", { client, end in try client.send { end() } }),
      ("block", { client, end in client.context.async(end) }),
      ("task", { client, end in client.task(end) }),
      (
        "timer",
        { client, end in
          try client.timer()
          end()
        }
      ),
      (
        "cancelling",
        { client, end in
          client.cancel()
          end()
        }
      ),
      (
        "peer",
        { client, end in
          client.feed()
          end()
        }
      ),
    ]

    private mutating func read(
      _ queue: DispatchQueue? = nil, _ end: @escaping @Sendable () -> Void
    ) throws {
      let file = files[Int.random(in: 0..<files.count, using: &generator)]
      let (offset, count) = (
        Int64.random(in: 0...1 << 20, using: &generator),
        Int.random(in: 0...200_000, using: &generator)
      )
      requests.append(
        try context.read(file, from: offset, count: count, queue: queue) { _ in end() })
    }

    private mutating func write(_ end: @escaping @Sendable () -> Void) throws {
      let file = files[Int.random(in: 0..<files.count, using: &generator)]
      let buffer = AIOBuffer(count: Int.random(in: 1...10_000, using: &generator))
      let offset = Int64.random(in: 0...500_000, using: &generator)
      requests.append(
        try context.write(file, contentsOf: buffer, at: offset, queue: other) { _ in end() })
    }

    private mutating func sync(_ end: @escaping @Sendable () -> Void) throws {
      requests.append(try context.fdatasync(files[0]) { _ in end() })
    }

    private mutating func poll(_ end: @escaping @Sendable () -> Void) throws {
      let events: AIOPollEvents = generator.oneIn(2) ? .readable : .writable
      polls.append(try context.poll(ends.near, for: events) { _ in end() })
    }

    private mutating func send(_ end: @escaping @Sendable () -> Void) throws {
      let count = Int.random(in: 0...300_000, using: &generator)
      sends.append(
        try context.send(files[1], at: 100, count: count, to: ends.near, header: [1, 2]) { _ in
          end()
        })
    }

    private func task(_ end: @escaping @Sendable () -> Void) {
      Task { [context, files] in
        _ = try? await context.read(files[0], from: 0, count: 5000)
        end()
      }
    }

    /// It cancels itself, or is cancelled with the context.
    private mutating func timer() throws {
      let timer = try context.makeTimerSource()
      timer.setEventHandler { [timer] in timer.cancel() }
      timer.schedule(
        deadline: .now() + .microseconds(Int.random(in: 0...2000, using: &generator)))
      timer.activate()
    }

    private mutating func cancel() {
      if let request = requests.randomElement(using: &generator) { context.cancel(request) }
      polls.randomElement(using: &generator)?.cancel()
      sends.randomElement(using: &generator)?.cancel()
    }

    /// The other end of the socket takes something, and gives something.
    private func feed() {
      var bytes = [UInt8](repeating: 0, count: 100_000)
      _ = recv(ends.far, &bytes, bytes.count, 0)
      _ = Glibc.send(ends.far, "x", 1, Int32(MSG_NOSIGNAL))
    }
  }

  /// Goal: whatever is under way when a context is closed ends exactly once, and then the context
  /// closes. Method: threads ask for everything that a context does, and cancel some of it, while
  /// another closes the context; at another moment, and of another size, each time.
  func testEverythingEndsOnce() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 1 << 20)
    var generator = SeededGenerator(seed: Seeds.one)
    for round in 0..<150 {
      let context = try AIOContext(
        queueDepth: Int.random(in: 1...8, using: &generator),
        pendingLimit: Int.random(in: 0...8, using: &generator))
      let files = try [AIOFile.Caching.direct, .buffered, .automatic].map {
        try directory.open("file", .readWrite, options: [], caching: $0)
      }
      let tally = Tally()
      let sockets = try (0..<4).map { _ in try socketPair() }
      defer { for pair in sockets { for end in [pair.0, pair.1] { close(end) } } }
      let threads = DispatchGroup()
      for ends in sockets {
        let seed = generator.next()
        let thread = DispatchQueue(label: "test.thread")
        thread.async(group: threads) {
          var client = Client(context, files, tally, ends, seed: seed)
          client.run()
        }
      }
      // Closed after some of the requests, as chance has it.
      for _ in 0..<Int.random(in: 0...3000, using: &generator) { sched_yield() }
      let closed = Promise<Void>()
      context.close(queue: DispatchQueue(label: "test.closing")) { closed.fulfil(()) }
      XCTAssertEqual(threads.wait(timeout: .now() + 30), .success)
      let what = "round \(round), \(Seeds.replay(Seeds.one))"
      XCTAssertNoThrow(try closed.wait(), "\(what): \(context.statistics)")
      XCTAssertTrue(eventually { tally.left.isEmpty }, "\(what): \(tally.left)")
    }
  }

  private func socketPair() throws -> (Int32, Int32) {
    var ends: [Int32] = [0, 0]
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    guard socketpair(AF_UNIX, type, 0, &ends) == 0 else { throw Errno(rawValue: errno) }
    return (ends[0], ends[1])
  }
}
