// SPDX-License-Identifier: Apache-2.0

import CLibAIO
import Foundation
import XCTest

@testable import DispatchAIO

/// The engine's rules, held against random schedules on a simulated kernel with every fault.
final class EngineSimulationTests: XCTestCase {
  func testRandomSchedules() throws {
    var requests = 0
    var injected: [String: Int] = [:]
    let began = Date()
    var seeds = 0
    try Seeds.run(default: 2000) { seed in
      seeds += 1
      do {
        let simulation = try Simulation(seed: seed)
        try simulation.run()
        requests += simulation.acceptedCount
        injected.merge(simulation.kernel.injected, uniquingKeysWith: +)
      } catch {
        XCTFail("\(error) — \(Seeds.replay(seed))")
        throw error
      }
    }
    let seconds = Date().timeIntervalSince(began)
    print(
      """
      simulated kernel: \(requests) requests over \(seeds) seeds \
      in \(String(format: "%.1f", seconds)) s; faults:
      """,
      injected.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    if seeds > 100 {
      XCTAssertEqual(injected.count, 9, "a kind of fault was never injected")
    }
  }

  /// The same seed gives the same run, or a replay would be worth nothing.
  func testSeedsReplay() throws {
    let runs = try (0..<2).map { _ in
      let simulation = try Simulation(seed: 42)
      try simulation.run()
      return simulation.kernel.taken.map(\.tag)
    }
    XCTAssertFalse(runs[0].isEmpty)
    XCTAssertEqual(runs[0], runs[1])
  }
}

/// One random run: a model of what was asked, beside the engine and its kernel.
private final class Simulation {
  struct Violation: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
  }

  /// What the model knows of a request it made.
  struct Ask {
    var key: RequestKey
    var submission: SimulatedKernel.Submission
    var wasCancelled = false
    var outcome: Outcome?
  }

  let kernel: SimulatedKernel
  let table: RequestTable<Int>
  var engine: Engine<SimulatedKernel, Int>
  var generator: SeededGenerator
  var asks: [Ask] = []
  /// Accepted, and not taken in by `collect` yet.
  var inInbox = 0
  var acceptedCount: Int { asks.count }

  let event: Int32 = 77
  let files: [OpenFile]
  let buffers: [AIOBuffer]

  init(seed: UInt64) throws {
    generator = SeededGenerator(seed: seed &* 2 &+ 1)
    let depth = Int.random(in: 1...12, using: &generator)
    let limit = Int.random(in: 0...20, using: &generator)
    kernel = SimulatedKernel(
      capacity: depth, faults: generator.oneIn(5) ? .none : .all, seed: seed)
    kernel.completesAtOnce = generator.oneIn(4)
    table = RequestTable(capacity: depth + limit)
    engine = Engine(kernel: kernel, table: table, queueDepth: depth, event: event)
    files = [3, 4, SimulatedKernel.badDescriptor].map {
      OpenFile(descriptor: $0, path: nil, traits: .init()) { _ in }
    }
    buffers = (1...4).map { AIOBuffer(count: 512 * $0) }
  }

  func run() throws {
    let steps = Int.random(in: 20...300, using: &generator)
    for _ in 0..<steps {
      switch Int.random(in: 0..<10, using: &generator) {
      case 0...2: for _ in 0..<Int.random(in: 1...8, using: &generator) { try accept() }
      case 3: try cancel()
      case 4: kernel.completeOne()
      case 5: kernel.completeAll()
      default: try turn()
      }
      try checkAccounts()
    }
    // Whatever is left completes once the kernel goes on, faults and all.
    var rounds = 0
    while asks.contains(where: { $0.outcome == nil }) {
      kernel.completeAll()
      try turn()
      rounds += 1
      if rounds == 10_000 { throw Violation("requests never complete") }
    }
    guard table.free.count == table.capacity else { throw Violation("slots are lost") }
    try checkOrder()
    for file in files { try checkReleased(file) }
  }

  // MARK: Steps

  private func accept() throws {
    guard let slot = table.free.take() else {
      guard table.free.count == 0 else { throw Violation("no slot, though some are free") }
      return
    }
    let id = asks.count
    let file =
      generator.oneIn(20) ? files[2] : files[Int.random(in: 0...1, using: &generator)]
    guard file.hold() else { throw Violation("an open file cannot be held") }
    let (operation, opcode, memory) = randomOperation()
    let offset = memory.isEmpty ? 0 : Int64.random(in: 0...1000, using: &generator) * 512
    let key = table.accept(
      AcceptedRequest(
        operation: operation, file: file, offset: offset,
        length: memory.reduce(0) { $0 + $1.count }, attachment: id),
      in: slot)
    inInbox += 1
    asks.append(
      Ask(
        key: key,
        submission: .init(
          tag: UInt64(key.slot) | UInt64(key.generation) << 32, opcode: Int32(opcode.rawValue),
          descriptor: file.descriptor, offset: offset, memory: memory, event: event)))
  }

  private func randomOperation() -> (
    DispatchAIO.Operation, io_iocb_cmd, [UnsafeMutableRawBufferPointer]
  ) {
    let buffer = buffers.randomElement(using: &generator)!
    let several = (0..<Int.random(in: 0...5, using: &generator)).map { _ in
      buffers.randomElement(using: &generator)!
    }
    let raws = several.map(\.unsafeBytes)
    switch Int.random(in: 0..<10, using: &generator) {
    case 0, 1: return (.read(into: .buffer(buffer)), IO_CMD_PREAD, [buffer.unsafeBytes])
    case 2, 3: return (.write(from: .buffer(buffer)), IO_CMD_PWRITE, [buffer.unsafeBytes])
    case 4: return (.read(into: .raw(buffer.unsafeBytes)), IO_CMD_PREAD, [buffer.unsafeBytes])
    case 5: return (.read(into: .buffers(several)), IO_CMD_PREADV, raws)
    case 6: return (.write(from: .buffers(several)), IO_CMD_PWRITEV, raws)
    case 7: return (.write(from: .raws(raws)), IO_CMD_PWRITEV, raws)
    case 8: return (.fsync, IO_CMD_FSYNC, [])
    default: return (.fdatasync, IO_CMD_FDSYNC, [])
    }
  }

  private func cancel() throws {
    guard let id = asks.indices.randomElement(using: &generator) else { return }
    let phase = table.phase(of: asks[id].key)
    let cancelled = table.cancel(asks[id].key)
    guard cancelled == (phase == .waiting) else {
      throw Violation("request \(id) in phase \(phase as Any): cancel answers \(cancelled)")
    }
    if cancelled { asks[id].wasCancelled = true }
    if asks[id].outcome != nil && phase != nil { throw Violation("\(id): a stale key hits") }
  }

  /// What the loop does in a turn, left off at any point.
  private func turn() throws {
    engine.collect()
    inInbox = 0
    try checkAccounts()
    if engine.submit() == .stalled {
      guard engine.inKernel == 0 else { throw Violation("stalled with requests in flight") }
    }
    try checkAccounts()
    engine.reap()
    try checkAccounts()
    var share = Int.random(in: 0...20, using: &generator)
    while share > 0, let completion = engine.next() {
      share -= 1
      try complete(completion)
      // A completion handler may ask for more.
      if generator.oneIn(3) { try accept() }
      try checkAccounts()
    }
  }

  private func complete(_ completion: Engine<SimulatedKernel, Int>.Completion) throws {
    let id = completion.attachment
    let ask = asks[id]
    if ask.outcome != nil { throw Violation("request \(id) completed twice") }
    asks[id].outcome = completion.result
    if table.phase(of: ask.key) != nil { throw Violation("\(id): completed before it was free") }
    let told = kernel.results[ask.submission.tag]?.last
    switch completion.result {
    case .success(let count):
      guard told == count else {
        throw Violation("\(id): \(count), the kernel said \(told as Any)")
      }
    case .failure(let error) where ask.wasCancelled:
      // Never submitted, or sent back undone.
      guard error.code == .cancelled, told == nil || Self.isUndone(told) else {
        throw Violation("\(id): cancelled, but \(error)")
      }
    case .failure(let error):
      guard let errno = error.errno?.rawValue else { throw Violation("\(id): \(error)") }
      // Failed, or refused at submission, the first or after it had been sent back undone.
      let isRefusal = [EINVAL, EBADF, EOPNOTSUPP].contains(errno)
      guard told == -Int(errno) || isRefusal && (told == nil || Self.isUndone(told)) else {
        throw Violation("\(id): \(error), the kernel said \(told as Any)")
      }
    }
    if ask.wasCancelled && completion.result.code != .cancelled {
      throw Violation("\(id): was told it is cancelled, and got \(completion.result)")
    }
  }

  private static func isUndone(_ result: Int?) -> Bool {
    result == -Int(EAGAIN) || result == -Int(EINTR)
  }

  // MARK: Rules

  private func checkAccounts() throws {
    let accounts = engine.accounts
    let sum =
      table.free.count + inInbox + accounts.pending + accounts.inKernel + accounts.arrived
    guard sum == table.capacity else {
      throw Violation("\(sum) slots of \(table.capacity): free \(table.free.count), \(accounts)")
    }
    guard accounts.inKernel == kernel.inFlightCount + kernel.ringCount else {
      throw Violation("\(accounts.inKernel) in the kernel, which has \(kernel.inFlightCount)")
    }
  }

  /// Requests reach the kernel in the order in which they were accepted, and as they were asked
  /// for. (A request that the kernel sent back comes again, later.)
  private func checkOrder() throws {
    let ids = Dictionary(uniqueKeysWithValues: asks.enumerated().map { ($1.submission.tag, $0) })
    var last = -1
    var seen = Set<UInt64>()
    for submission in kernel.taken {
      guard let id = ids[submission.tag] else { throw Violation("an unknown tag was submitted") }
      guard submission == asks[id].submission else {
        throw Violation("\(id): asked for \(asks[id].submission), submitted \(submission)")
      }
      guard seen.insert(submission.tag).inserted else { continue }
      guard id > last else { throw Violation("\(id) was submitted after \(last)") }
      last = id
    }
  }

  private func checkReleased(_ file: OpenFile) throws {
    file.letGo()
    guard !file.hold() else { throw Violation("a file is held for ever") }
  }
}
