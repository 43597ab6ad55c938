// SPDX-License-Identifier: Apache-2.0

import CLibAIO
import Foundation
import XCTest

@testable import DispatchAIO

/// The engine's rules, held against random schedules on a simulated kernel with every fault.
///
/// `AIO_SEEDS=n` runs that many seeds, `AIO_SEED=n` replays one.
final class EngineSimulationTests: XCTestCase {
  func testRandomSchedules() throws {
    var requests = 0
    var injected: [String: Int] = [:]
    let began = Date()
    var seeds = 0
    try Seeds.run(default: Seeds.usual) { seed in
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
      simulated kernel: \(requests) requests over \(seeds) seeds in \
      \(String(format: "%.1f", seconds)) s; faults:
      """,
      injected.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))
    if seeds > 100 {
      XCTAssertEqual(injected.count, 15, "a kind of fault was never injected")
    }
    if seeds == 10_000 { XCTAssertGreaterThanOrEqual(requests, 1_000_000) }
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

/// One random run: a model of what was asked, beside the engine, its kernel and the sleeping side.
private final class Simulation {
  struct Violation: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
  }

  /// What the model knows of a request it made.
  struct Ask {
    var key: RequestKey
    var operation: DispatchAIO.Operation
    var file: OpenFile
    var submission: SimulatedKernel.Submission
    var isToFinish: Bool
    var wasCancelled = false
    var outcome: Outcome?
    /// What the sleeping side's system call answered, if it came to that.
    var performed: Int?
    /// How many of the kernel's results have been followed.
    var followed = 0
    /// Where it goes on, and how far it got.
    var resume = 0
    var moved = 0
  }

  let kernel: SimulatedKernel
  let policy: SubmissionPolicy
  let table: RequestTable<Int>
  var engine: Engine<SimulatedKernel, Int>
  var submitter: SleepingSubmitter<SimulatedKernel, Int>
  var generator: SeededGenerator
  var asks: [Ask] = []
  /// By tag, which ask; a tag is never used twice.
  var numbers: [UInt64: Int] = [:]
  /// Accepted, or given back by the sleeping side, and not taken in by `collect` yet.
  var inInbox = 0
  /// Handed to the sleeping side, and not done there yet.
  var sleeping: [(slot: UInt32, route: Route)] = []
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
    policy = generator.oneIn(8) ? .plain : generator.oneIn(12) ? .performEverything : .neverSleep
    table = RequestTable(capacity: depth + limit)
    engine = Engine(
      kernel: kernel, table: table, queueDepth: depth, event: event, policy: policy)
    submitter = SleepingSubmitter(kernel: kernel, table: table, event: event)
    func file(
      _ descriptor: Int32, size: Int64 = .max, _ change: (inout OpenFile.Traits) -> Void = { _ in }
    )
      -> OpenFile
    {
      var traits = OpenFile.Traits(alignment: AIOAlignment(memory: 512, offset: 512))
      change(&traits)
      return OpenFile(descriptor: descriptor, path: nil, traits: traits, size: size) { _ in }
    }
    files = [
      file(3), file(4, size: 100_000),
      file(5) {
        $0.isDirect = false
        $0.alignment = .none
      },
      file(6) { $0.isMemory = true },
      file(7) { $0.appends = true },
      file(SimulatedKernel.noNowaitDescriptor), file(SimulatedKernel.lateNoNowaitDescriptor),
      file(SimulatedKernel.badDescriptor),
    ]
    buffers = (1...4).map { AIOBuffer(count: 512 * $0) } + [AIOBuffer(count: 300 << 10)]
  }

  func run() throws {
    let steps = Int.random(in: 20...580, using: &generator)
    for _ in 0..<steps {
      switch Int.random(in: 0..<11, using: &generator) {
      case 0...2: for _ in 0..<Int.random(in: 1...8, using: &generator) { try accept() }
      case 3: try cancel()
      case 4: kernel.completeOne()
      case 5: kernel.completeAll()
      case 6: try sleepOn()
      default: try turn()
      }
      try checkAccounts()
    }
    // Whatever is left completes once the kernel goes on, faults and all.
    var rounds = 0
    while asks.contains(where: { $0.outcome == nil }) {
      while !sleeping.isEmpty { try sleepOn() }
      kernel.completeAll()
      try turn()
      rounds += 1
      if rounds == 10_000 { throw Violation("requests never complete") }
    }
    guard table.freeCount == table.capacity else { throw Violation("slots are lost") }
    guard engine.silent == 0 else { throw Violation("\(engine.silent) silent for ever") }
    guard engine.asleep == 0 else { throw Violation("\(engine.asleep) asleep for ever") }
    try checkOrder()
    try checkCounts()
    for file in files { try checkReleased(file) }
  }

  // MARK: Steps

  private func accept() throws {
    guard let slot = generator.oneIn(2) ? table.takeOnLoop() : table.free.take() else {
      guard table.free.count == 0 else { throw Violation("no slot, though some are free") }
      return
    }
    let id = asks.count
    let file = files.randomElement(using: &generator)!
    guard file.hold() else { throw Violation("an open file cannot be held") }
    let (operation, opcode, memory) = randomOperation()
    let offset = memory.isEmpty ? 0 : Int64.random(in: 0...1000, using: &generator) * 512
    let isToFinish = !memory.isEmpty && generator.oneIn(3)
    let key = table.accept(
      AcceptedRequest(
        operation: operation, file: file, offset: offset,
        length: memory.reduce(0) { $0 + $1.count }, isToFinish: isToFinish, attachment: id),
      in: slot)
    inInbox += 1
    let tag = table.tag(of: slot)
    numbers[tag] = id
    asks.append(
      Ask(
        key: key, operation: operation, file: file,
        submission: .init(
          tag: tag, opcode: Int32(opcode.rawValue), descriptor: file.descriptor, offset: offset,
          memory: memory, event: event),
        isToFinish: isToFinish))
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

  /// A thread of the sleeping side does something of what it has, in any order.
  private func sleepOn() throws {
    guard !sleeping.isEmpty else { return }
    let (slot, route) = sleeping.remove(
      at: Int.random(in: 0..<sleeping.count, using: &generator))
    guard let id = numbers[table.tag(of: slot)] else { throw Violation("an unknown slot sleeps") }
    if route == .performed {
      // Without a real file: whatever a system call may answer.
      let length = asks[id].submission.length - asks[id].resume
      let answer =
        generator.oneIn(6)
        ? -Int([EIO, ENOSPC, EINTR, EAGAIN].randomElement(using: &generator)!)
        : generator.oneIn(4) && length > 0 ? Int.random(in: 0..<length, using: &generator) : length
      table[slot].answer = answer
      asks[id].performed = answer
      if answer >= 0 { follow(&asks[id], answer) }
      table.returns.push(slot)
    } else {
      // In the kernel, or coming back.
      _ = submitter.submit(slot, route)
    }
  }

  /// What the loop does in a turn, left off at any point.
  private func turn() throws {
    if generator.oneIn(3) { engine.tryAgain() }
    engine.collect()
    inInbox = 0
    try checkAccounts()
    if engine.submit() == .stalled {
      guard engine.inKernel == 0 else { throw Violation("stalled with requests in flight") }
    }
    while let (slot, route, _, _) = engine.nextAsleep() {
      guard policy != .plain else { throw Violation("the plain policy sends to sleep") }
      sleeping.append((slot, route))
    }
    try checkAccounts()
    _ = engine.reap()
    if kernel.wakesForNothing() { _ = engine.reap() }
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

  /// Follows a transfer the way the engine has to.
  private func follow(_ ask: inout Ask, _ count: Int) {
    let moved = ask.resume + count
    if ask.isToFinish {
      ask.moved = max(ask.moved, moved)
      ask.resume = ask.file.traits.alignment.roundDown(moved)
    } else {
      ask.moved = moved
    }
  }

  private func complete(
    _ completion: borrowing Engine<SimulatedKernel, Int>.Completion
  ) throws {
    let id = completion.attachment
    let ask = asks[id]
    if ask.outcome != nil { throw Violation("request \(id) completed twice") }
    asks[id].outcome = completion.result
    if table.phase(of: ask.key) != nil { throw Violation("\(id): completed before it was free") }
    let results = kernel.results[ask.submission.tag] ?? []
    let told = ask.performed ?? results.last
    switch completion.result {
    case .success(let count):
      if ask.isToFinish {
        try checkFinished(id, count)
      } else if told != count {
        throw Violation("\(id): \(count), the kernel said \(told as Any)")
      }
      // What the page cache had is no answer to a read: the file does not end there.
      if case .read = ask.operation, ask.submission.descriptor == 5, count < ask.submission.length,
        kernel.lastWasNowait[ask.submission.tag] == true, ask.performed == nil
      {
        throw Violation("\(id): a short read with RWF_NOWAIT was passed on")
      }
    case .failure(let error) where ask.wasCancelled:
      // Never submitted, or sent back undone or with a part done.
      guard error.code == .cancelled,
        told == nil || told == -Int(EAGAIN) || told == -Int(EINTR) || told == -Int(EOPNOTSUPP)
          || told == -Int(EINVAL) && ask.submission.length == 0
          || ask.isToFinish && (told == -Int(ENOSPC) || told == -Int(EFBIG))
          || told! >= 0 && told! < max(1, ask.submission.length)
      else { throw Violation("\(id): cancelled, but \(error), the kernel said \(told as Any)") }
    case .failure(let error):
      guard let errno = error.errno?.rawValue else { throw Violation("\(id): \(error)") }
      // Failed, or refused at submission.
      guard told == -Int(errno) || [EINVAL, EBADF, EPERM].contains(errno) else {
        throw Violation("\(id): \(error), the kernel said \(told as Any)")
      }
      // That RWF_NOWAIT is refused, or not there, is no answer to the request.
      guard errno != EOPNOTSUPP else { throw Violation("\(id): \(error)") }
      if error.code == .cancelled { throw Violation("\(id): cancelled by nobody") }
    }
    if ask.wasCancelled && completion.result.code != .cancelled {
      throw Violation("\(id): was told it is cancelled, and got \(completion.result)")
    }
  }

  /// A request that is to finish succeeds complete, at the end of a file, or when there is no
  /// progress any more.
  private func checkFinished(_ id: Int, _ count: Int) throws {
    let ask = asks[id]
    let length = ask.submission.length
    guard count <= length else { throw Violation("\(id): \(count) of \(length) bytes") }
    if count == length { return }
    let results = kernel.results[ask.submission.tag] ?? []
    let last = ask.performed ?? results.last ?? -1
    switch ask.operation {
    case .read:
      let unit = ask.file.traits.alignment.offset
      guard last == 0 || count % unit != 0 || last < unit else {
        throw Violation("\(id): gave up reading after \(count) of \(length), last \(last)")
      }
    default:
      // Sixteen attempts that brought nothing.
      guard last < ask.file.traits.alignment.offset else {
        throw Violation("\(id): gave up writing after \(count) of \(length), last \(last)")
      }
    }
  }

  // MARK: Rules

  private func checkAccounts() throws {
    let accounts = engine.accounts
    // What the sleeping side gave back is still counted as in the kernel, until it is collected.
    let sum =
      table.freeCount + inInbox + accounts.pending + accounts.inKernel + accounts.arrived
    guard sum == table.capacity else {
      throw Violation("\(sum) slots of \(table.capacity): free \(table.free.count), \(accounts)")
    }
    guard accounts.inKernel >= kernel.inFlightCount + kernel.ringCount else {
      throw Violation("\(accounts.inKernel) in the kernel, which has \(kernel.inFlightCount)")
    }
    guard
      engine.queueDepth == 1 || policy == .performEverything
        || engine.asleep <= engine.queueDepth / 2 + accounts.arrived
    else { throw Violation("\(engine.asleep) of \(engine.queueDepth) asleep") }
  }

  /// Requests reach the kernel from the loop in the order in which they were accepted, and as they
  /// were asked for. (A request that was sent back comes again, later, and from elsewhere.)
  private func checkOrder() throws {
    var last = -1
    var seen = Set<UInt64>()
    for submission in kernel.taken {
      guard let id = numbers[submission.tag] else {
        throw Violation("an unknown tag was submitted")
      }
      let ask = asks[id]
      // Only what tmpfs does within `submit` may go without the eventfd.
      guard submission.event == event || submission.event == nil && ask.file.traits.isMemory
      else { throw Violation("\(id): nothing tells of its completion") }
      if !ask.isToFinish || !seen.contains(submission.tag) {
        guard submission == ask.submission else {
          throw Violation("\(id): asked for \(ask.submission), submitted \(submission)")
        }
      } else {
        // The rest of a transfer: it ends where the request does.
        let done = Int(submission.offset - ask.submission.offset)
        guard done >= 0, done % ask.file.traits.alignment.offset == 0,
          submission.length <= ask.submission.length - done
        else { throw Violation("\(id): resumed at \(done) with \(submission.length) bytes") }
      }
      guard seen.insert(submission.tag).inserted, submission.isNowait else { continue }
      guard id > last else { throw Violation("\(id) was submitted after \(last)") }
      last = id
    }
  }

  private func checkCounts() throws {
    let counts = engine.counts
    let succeeded = asks.count { if case .success = $0.outcome { true } else { false } }
    let cancelled = asks.count { $0.wasCancelled }
    guard counts.submitted == asks.count, counts.succeeded == succeeded,
      counts.cancelled == cancelled, counts.failed == asks.count - succeeded - cancelled
    else { throw Violation("counted \(counts), \(asks.count) asked, \(succeeded) succeeded") }
  }

  private func checkReleased(_ file: OpenFile) throws {
    file.letGo()
    guard !file.hold() else { throw Violation("a file is held for ever") }
  }
}
