// SPDX-License-Identifier: Apache-2.0
//
// What the fuzzers of the servers have in common: rounds of hostile clients, after each of which
// the server has to be as it was before.
//
//   AIO_SEED=n        the seed of the first round, which each failure names; else another each time
//   FUZZ_SECONDS=n    how long all fuzzers take together; else `Fuzzing.usualSeconds`

import Foundation
import SystemPackage
import XCTest

enum Fuzzing {
  private static let usualSeconds = 12.0
  /// Of NBD, of HTTP, of the echo's connections, of the journal.
  private static let fuzzers = 4.0

  /// How long each fuzzer takes.
  static let duration: Duration = .seconds(
    (ProcessInfo.processInfo.environment["FUZZ_SECONDS"].flatMap(Double.init) ?? usualSeconds)
      / fuzzers)

  /// Runs rounds until the time is over, or too much has failed.
  ///
  /// - Parameters:
  ///   - share: the part of a fuzzer's time that this is.
  ///   - least: how many rounds to run at least.
  ///   - round: gets a generator of its own, and says in its failures how to replay it.
  /// - Returns: how many rounds there were.
  @discardableResult
  static func rounds(
    of name: String, in test: XCTestCase, share: Double = 1, least: Int = 6,
    _ round: (_ generator: inout SeededGenerator, _ what: String) throws -> Void
  ) -> Int {
    let end = ContinuousClock.now + duration * share
    print("\(name) fuzzer: \(Seeds.replay(Seeds.one))")
    var number = 0
    while number < least || ContinuousClock.now < end, test.testRun?.failureCount ?? 0 < 5 {
      let seed = Seeds.one &+ UInt64(number)
      var generator = SeededGenerator(seed: seed)
      let what = "round \(number); \(Seeds.replay(seed))"
      do {
        try round(&generator, what)
      } catch {
        XCTFail("\(error): \(what)")
      }
      number += 1
    }
    print("\(name) fuzzer: \(number) rounds")
    return number
  }

  /// Has the servers that are started from here on keep little of what they have freed, if they are
  /// built with the Address Sanitizer, so that their memory tells what they have in use.
  static func limitQuarantine() {
    let options = ProcessInfo.processInfo.environment["ASAN_OPTIONS"] ?? "detect_leaks=0"
    guard !options.contains("quarantine_size_mb") else { return }
    setenv("ASAN_OPTIONS", "\(options):quarantine_size_mb=8", 1)
  }
}

/// A server that is being fuzzed, and how it was before.
final class FuzzedServer {
  let server: ServerProcess
  private let directory: TemporaryDirectory
  private let healthy: (_ what: String) throws -> Void
  private let memoryBound: Int
  private let keptFiles: Int
  /// As they were when the server was warm.
  private var (descriptors, memory) = (0, 0)
  private var rounds = 0
  private(set) var slowest = Duration.zero

  /// How long a healthy client may wait for all that it asks for, beyond what the disk takes, and
  /// what others take of the processors.
  private static let patience = Duration.seconds(1)
  /// The rounds after which everything is there that is made when it is first needed, and pools are
  /// full.
  private static let warmUp = 3

  /// What the allocator makes of memory that is freed and taken again, in bytes: a leak of some KiB
  /// for each connection is more, within a hundred rounds.
  private static let fragments = 8 << 20

  /// - Parameters:
  ///   - directory: where its files are.
  ///   - pools: the bytes that it may keep for later use.
  ///   - keptFiles: how many files it may keep open.
  ///   - healthy: asks for something, and checks every byte of the answer.
  init(
    _ server: ServerProcess, _ directory: TemporaryDirectory, pools: Int, keptFiles: Int = 0,
    healthy: @escaping (_ what: String) throws -> Void
  ) {
    (self.server, self.directory, self.keptFiles) = (server, directory, keptFiles)
    self.healthy = healthy
    // The sanitizer's allocator gives nothing back, and keeps sizes apart.
    memoryBound = pools + (Sanitizer.isBuiltIn ? 256 << 20 : Self.fragments)
  }

  /// The server is as it was, although clients like these were there.
  func check(_ what: String) throws {
    rounds += 1
    XCTAssertTrue(server.process.isRunning, "the server has ended: \(server.logged) \(what)")
    if rounds <= Self.warmUp {
      descriptors = max(descriptors, Self.settled { server.descriptors.count })
      memory = server.residentMemory
      return
    }
    XCTAssertTrue(
      eventually(within: 10) { server.descriptors.count <= descriptors + keptFiles },
      "\(server.descriptors.sorted()), \(descriptors) before: \(what)")
    XCTAssertLessThan(
      server.residentMemory - memory, memoryBound, "memory of \(memory) has grown: \(what)")
  }

  /// A round: clients say what they have to, and healthy ones are served beside them and
  /// afterwards.
  ///
  /// - Parameter checkReceived: Looks at what each of them has received.
  func round(
    _ what: String, clients makeClients: () throws -> [FuzzClient],
    checkReceived: (FuzzClient) -> Void
  ) throws {
    // Their sockets are closed before what comes afterwards.
    do {
      let clients = try makeClients()
      let staying = FuzzClient.run(clients)
      try serveHealthy("with \(staying.count) that stay, \(what)")
      for client in clients { checkReceived(client) }
    }
    try serveHealthy("afterwards, \(what)")
    try check(what)
  }

  /// A healthy client is served exactly, and soon, whoever else is there.
  func serveHealthy(_ what: String) throws {
    let disk = try timeOfDisk()
    let waits = processorWaits()
    let start = ContinuousClock.now
    do {
      try healthy(what)
    } catch {
      XCTFail("a healthy client is not served: \(error), \(what): \(server.logged.suffix(2000))")
    }
    // What a conversation of a thread here and one there may have waited for processors.
    let waited = zip(processorWaits(), waits).reduce(0) { $0 + $1.0.longest(since: $1.1) }
    let time = ContinuousClock.now - start - .nanoseconds(Int64(waited))
    slowest = max(slowest, time)
    XCTAssertLessThan(time, Self.patience + disk, "the disk takes \(disk), \(what)")
  }

  private func processorWaits() -> [ProcessorWaits] {
    [ProcessorWaits(of: server.process.processIdentifier), ProcessorWaits()]
  }

  /// How long three small durable writes take, of which a healthy client makes no more.
  private func timeOfDisk() throws -> Duration {
    let path = directory.path.appending("time-of-disk")
    let file = try FileDescriptor.open(
      path, .writeOnly, options: .create, permissions: .ownerReadWrite)
    defer { try? file.close() }
    return try ContinuousClock().measure {
      for _ in 0..<3 {
        _ = try file.writeAll([UInt8](repeating: 1, count: 4096))
        fdatasync(file.rawValue)
      }
    }
  }

  /// Stops it, which has to go well.
  func stop() {
    let grown = server.residentMemory - memory
    print("slowest healthy client \(slowest), memory grown by \(grown >> 10) KiB")
    XCTAssertEqual(server.stop(), 0, server.logged)
    for fault in ["Sanitizer", "Fatal error", "*** "] {
      XCTAssertFalse(server.logged.contains(fault), server.logged)
    }
  }

  /// A number once it stays the same.
  private static func settled(_ number: () -> Int) -> Int {
    var last = -1
    _ = eventually(within: 2) {
      usleep(20_000)
      defer { last = number() }
      return number() == last
    }
    return last
  }
}

/// What a hostile client does, in order.
struct FuzzScript {
  enum Step {
    case send([UInt8])
    /// Receives so many bytes, unless they do not come soon.
    case receive(Int)
    /// Sends no more.
    case endInput
  }

  enum End: CaseIterable {
    case close
    case reset
    /// Stays, silent, while a healthy client is served.
    case stay
  }

  private(set) var steps: [Step] = []
  let end: End

  /// All that is sent.
  var bytes: [UInt8] {
    steps.flatMap { step -> [UInt8] in if case .send(let bytes) = step { bytes } else { [] } }
  }

  /// Sends all of it in pieces, sometimes receiving in between, and ends at random.
  init(_ bytes: [UInt8], _ generator: inout SeededGenerator) {
    var rest = bytes[...]
    // A quarter ends somewhere in the middle.
    if generator.oneIn(4) { rest = rest.prefix(.random(in: 0...rest.count, using: &generator)) }
    let largest = [3, 40, 1500, 1 << 20].randomElement(using: &generator) ?? 1
    let reads = generator.oneIn(2)
    // Whoever sends byte by byte does not get to the end of much.
    while !rest.isEmpty && steps.count < 100 {
      let piece = rest.prefix(.random(in: 1...largest, using: &generator))
      steps.append(.send(Array(piece)))
      rest = rest.dropFirst(piece.count)
      if reads, generator.oneIn(3) {
        steps.append(.receive(.random(in: 1...100_000, using: &generator)))
      }
    }
    if !rest.isEmpty { steps.append(.send(Array(rest))) }
    if generator.oneIn(4) { steps.append(.endInput) }
    if reads { steps.append(.receive(.random(in: 1...1 << 20, using: &generator))) }
    end = End.allCases.randomElement(using: &generator) ?? .close
  }
}

/// A hostile client: never waits for the server for long.
final class FuzzClient {
  let socket: Int32
  let script: FuzzScript
  private(set) var received: [UInt8] = []
  private(set) var sentCount = 0
  private var isReset = false

  private static let patience = Duration.milliseconds(5)

  /// - Parameter socket: connected; closed with the client.
  init(_ socket: Int32, _ script: FuzzScript) {
    (self.socket, self.script) = (socket, script)
    _ = fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK)
  }

  deinit {
    if isReset {
      var linger = linger(l_onoff: 1, l_linger: 0)
      setsockopt(
        socket, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout<Glibc.linger>.size))
    }
    close(socket)
  }

  /// The number of the next step, and what of it has been done.
  private var (step, done) = (0, 0)
  private var stepBegan = ContinuousClock.now

  /// Does what can be done at once.
  ///
  /// - Returns: whether there is more to do.
  func proceed() -> Bool {
    guard step < script.steps.count else {
      isReset = script.end == .reset
      return false
    }
    let isDone: Bool
    switch script.steps[step] {
    case .send(let bytes): isDone = send(bytes)
    case .receive(let count): isDone = receive(count)
    case .endInput:
      shutdown(socket, Int32(SHUT_WR))
      isDone = true
    }
    if isDone || ContinuousClock.now - stepBegan > Self.patience {
      step += 1
      done = 0
      stepBegan = .now
    }
    return true
  }

  private func send(_ bytes: [UInt8]) -> Bool {
    let count = bytes.withUnsafeBytes {
      Glibc.send(
        socket, $0.baseAddress.map { $0 + done }, bytes.count - done, Int32(MSG_NOSIGNAL))
    }
    if count > 0 {
      done += count
      sentCount += count
    }
    return count < 0 && errno != EAGAIN || done == bytes.count
  }

  private func receive(_ count: Int) -> Bool {
    let got = withUnsafeTemporaryAllocation(byteCount: 1 << 16, alignment: 8) { buffer in
      let got = recv(socket, buffer.baseAddress, min(buffer.count, count - done), 0)
      if got > 0 { received += UnsafeRawBufferPointer(rebasing: buffer[..<got]) }
      return got
    }
    if got > 0 { done += got }
    return got == 0 || got < 0 && errno != EAGAIN || done == count
  }

  /// Has clients do what their scripts say, all at once, and returns those that stay.
  static func run(_ clients: [FuzzClient]) -> [FuzzClient] {
    var active = clients
    while !active.isEmpty { active = active.filter { $0.proceed() } }
    return clients.filter { $0.script.end == .stay }
  }
}
