// SPDX-License-Identifier: Apache-2.0

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
      XCTAssertEqual(injected.count, 20, "a kind of fault was never injected")
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

/// One random run: a model of what was asked, beside the engine, its kernel and the offload
/// threads.
private final class Simulation {
  struct Violation: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
  }

  /// What the model knows of a request it made.
  struct Ask {
    var id: RequestID
    var operation: DispatchAIO.Operation
    var file: OpenFile
    var submission: SimulatedKernel.Submission
    var mayWait: Bool
    var wasCancelled = false
    var outcome: Int?

    /// Whether it ended because it would have had to wait.
    var wasTurnedAway: Bool { outcome == Request<Int>.wouldWait }
  }

  let kernel: SimulatedKernel
  let policy: SubmissionPolicy
  let depth: Int
  let table: RequestTable<Int>
  let offloadQueue: OffloadQueue
  var engine: Engine<SimulatedKernel, Int>
  var worker: OffloadWorker<SimulatedKernel, Int>
  var generator: SeededGenerator
  var asks: [Ask] = []
  /// By tag, which ask; a tag is never used twice.
  var numbers: [UInt64: Int] = [:]
  /// Accepted, and not taken in by `collect` yet.
  var inInbox = 0
  /// Whether the loop polls, how often something became ready since it looked, and how often it
  /// looked.
  let polls: Bool
  var isEnding = false
  var unseen = 0
  var seen = 0
  /// How often the poll was cancelled since the loop looked.
  var cancelledPolls = 0
  /// What each offload thread that runs is doing.
  var threads: [Int: OffloadQueue.Work?] = [:]
  /// … and the writes that go down with that.
  var following: [Int: [UInt32]] = [:]
  /// The tags of requests that offload threads have made system calls for.
  var offloaded = Set<UInt64>()
  /// The offload threads' clock, in nanoseconds.
  var now: UInt64 = 1
  var acceptedCount: Int { asks.count }
  /// How many writes were made together with others.
  var joined = 0

  let event: Int32 = 77
  let files: [OpenFile]
  /// The descriptors that nothing holds any more.
  let released = Locked<Set<Int32>>([])
  let buffers: [AIOBuffer]

  init(seed: UInt64) throws {
    generator = SeededGenerator(seed: seed &* 2 &+ 1)
    depth = Int.random(in: 1...12, using: &generator)
    let limit = Int.random(in: 0...20, using: &generator)
    kernel = SimulatedKernel(
      capacity: FileShares.room(queueDepth: depth),
      faults: generator.oneIn(5) ? .none : .all, seed: seed)
    kernel.completesAtOnce = generator.oneIn(4)
    policy = generator.oneIn(8) ? .inline : generator.oneIn(12) ? .threadsOnly : .nonblocking
    kernel.takesRequests = policy != .threadsOnly
    let table = RequestTable<Int>(capacity: depth + limit)
    self.table = table
    offloadQueue = OffloadQueue(
      base: 3, limit: 9, sharesFiles: policy == .threadsOnly,
      continues: { table.continues($0, $1) }, claim: { table.claim($0) })
    engine = Engine(
      kernel: kernel, table: table, offloadQueue: offloadQueue, queueDepth: depth, event: event,
      policy: policy)
    let isThreadsOnly = policy == .threadsOnly
    polls = generator.oneIn(2) && !isThreadsOnly
    kernel.hasPoll = !generator.oneIn(4)
    if polls { engine.pollDescriptor = 50 }
    worker = OffloadWorker(kernel: kernel, table: table, event: event)
    let released = released
    func file(
      _ descriptor: Int32, size: Int64 = .max, _ change: (inout OpenFile.Traits) -> Void = { _ in }
    )
      -> OpenFile
    {
      var traits = OpenFile.Traits(alignment: BlockAlignment(memory: 512, offset: 512))
      change(&traits)
      return OpenFile(descriptor: descriptor, path: nil, traits: traits, size: size) { descriptor in
        released.withLock { _ = $0.insert(descriptor) }
      }
    }
    files = [
      file(3), file(4, size: 100_000),
      file(5) {
        $0.isDirect = false
        $0.alignment = .none
      },
      file(6) { $0.isMemory = true },
      file(7) { $0.appends = true },
      file(11) { $0.fileSystem = .network },
      file(12) {
        $0.fileSystem = .fuse
        $0.alignment = .none
      },
      file(SimulatedKernel.noNowaitDescriptor), file(SimulatedKernel.lateNoNowaitDescriptor),
      file(SimulatedKernel.badDescriptor),
    ]
    buffers = (1...4).map { AIOBuffer(count: 512 * $0) } + [AIOBuffer(count: 300 << 10)]
  }

  func run() throws {
    let steps = Int.random(in: 20...800, using: &generator)
    for _ in 0..<steps {
      switch Int.random(in: 0..<14, using: &generator) {
      case 0...2: for _ in 0..<Int.random(in: 1...8, using: &generator) { try accept() }
      case 3: try cancel()
      case 4: kernel.completeOne()
      case 5: kernel.completeAll()
      case 6: try offloadStep()
      case 7:
        if polls {
          unseen += 1
          kernel.becomeReady()
        }
      case 8: kernel.wake()
      case 9: try cancelPoll()
      default: try turn()
      }
      try checkAccounts()
    }
    // Whatever is left completes once the kernel goes on, faults and all.
    var rounds = 0
    while asks.contains(where: { $0.outcome == nil }) {
      for _ in 0..<20 { try offloadStep() }
      kernel.completeAll()
      try turn()
      rounds += 1
      if rounds == 10_000 { throw Violation("requests never complete") }
    }
    // Handlers of what ends meanwhile ask for no more.
    isEnding = true
    try checkPolling()
    guard table.free.count == table.capacity else { throw Violation("slots are lost") }
    guard engine.unsignalled == 0 else { throw Violation("\(engine.unsignalled) unsignalled") }
    guard engine.shares.held == 0 else { throw Violation("\(engine.shares.held) hold room") }
    // A file whose requests were cancelled may still be thought to have some, until a thread looks.
    for _ in 0..<100 where offloadQueue.isBacklogged { try offloadStep() }
    guard !offloadQueue.isBacklogged else { throw Violation("something waits for a thread") }
    try checkOrder()
    try checkCounts()
    for file in files { try checkReleased(file) }
    try close()
  }

  /// The end as the loop makes it: the kernel's context is freed, which ends the poll, and then the
  /// set is closed. An event may win the race against that, and a wake-up may be late.
  private func close() throws {
    if generator.oneIn(3) { kernel.becomeReady() }
    if generator.oneIn(3) { kernel.wake() }
    if generator.oneIn(3) { try cancelPoll() }
    kernel.destroy()
    kernel.closeSet()
    // What becomes ready now, nobody hears of.
    kernel.becomeReady()
    guard !kernel.isPollArmed else { throw Violation("the poll has outlived its context") }
  }

  /// Cancels the poll as the kernel does at the end, and others might: the loop looks, finds
  /// nothing, and polls again; or the event has won the race.
  private func cancelPoll() throws {
    let isArmed = kernel.isPollArmed
    let answer = kernel.cancelPoll()
    guard answer == (isArmed ? -Int(EINPROGRESS) : -Int(EINVAL)), !kernel.isPollArmed else {
      throw Violation("cancelling the poll answered \(answer)")
    }
    if isArmed { cancelledPolls += 1 }
  }

  // MARK: Steps

  private func accept() throws {
    guard let slot = table.free.take() else {
      guard table.free.count == 0 else { throw Violation("no slot, though some are free") }
      return
    }
    let number = asks.count
    let file = files.randomElement(using: &generator)!
    guard file.retain() else { throw Violation("an open file cannot be retained") }
    let (operation, command, memory) = randomOperation()
    let offset = memory.isEmpty ? 0 : Int64.random(in: 0...1000, using: &generator) * 512
    let mayWait = !generator.oneIn(4)
    let options = randomOptions(operation.verb)
    let id = table.accept(
      Request(
        operation: operation, file: file, offset: offset,
        length: memory.reduce(0) { $0 + $1.count }, options: options, mayWait: mayWait,
        attachment: number),
      in: slot)
    inInbox += 1
    let tag = table.tag(of: slot)
    numbers[tag] = number
    asks.append(
      Ask(
        id: id, operation: operation, file: file,
        submission: .init(
          tag: tag, command: command, descriptor: file.descriptor, offset: offset,
          memory: memory, event: event, options: options.subtracting(.uncached),
          isUncached: options.contains(.uncached)), mayWait: mayWait))
  }

  /// The inline policy has no threads, which what waits for the disk needs.
  private func randomOptions(_ verb: Verb) -> RequestOptions {
    guard !verb.isSync, policy != .inline, generator.oneIn(3) else { return [] }
    let choices: [RequestOptions] =
      verb == .read ? [.uncached] : [.dataSync, .sync, .uncached, [.dataSync, .uncached]]
    return choices.randomElement(using: &generator)!
  }

  private func randomOperation() -> (
    DispatchAIO.Operation, Command, [UnsafeMutableRawBufferPointer]
  ) {
    let buffer = buffers.randomElement(using: &generator)!
    let several = (0..<Int.random(in: 0...5, using: &generator)).map { _ in
      buffers.randomElement(using: &generator)!
    }
    let raws = several.map(\.unsafeBytes)
    switch Int.random(in: 0..<10, using: &generator) {
    case 0, 1: return (.read(into: .buffer(buffer)), .read, [buffer.unsafeBytes])
    case 2, 3: return (.write(from: .buffer(buffer)), .write, [buffer.unsafeBytes])
    case 4: return (.read(into: .raw(buffer.unsafeBytes)), .read, [buffer.unsafeBytes])
    case 5: return (.read(into: .buffers(several)), .readVector, raws)
    case 6: return (.write(from: .buffers(several)), .writeVector, raws)
    case 7: return (.write(from: .raws(raws)), .writeVector, raws)
    case 8: return (.fsync, .fsync, [])
    default: return (.fdatasync, .fdatasync, [])
    }
  }

  private func cancel() throws {
    guard let number = asks.indices.randomElement(using: &generator) else { return }
    // Nobody has the ID of one that may not wait.
    guard asks[number].mayWait else { return }
    let phase = table.phase(of: asks[number].id)
    let found = table.cancel(asks[number].id)
    guard found == phase else {
      throw Violation("request \(number) in phase \(phase as Any): cancel finds \(found as Any)")
    }
    if found == .waiting { asks[number].wasCancelled = true }
    if asks[number].outcome != nil && phase != nil { throw Violation("\(number): a stale ID hits") }
  }

  /// An offload thread begins, or finishes what it does, in any order.
  private func offloadStep() throws {
    now += UInt64.random(in: 0..<OffloadQueue.stuckAfter / 4, using: &generator)
    while let thread = offloadQueue.threadToStart(now: now) {
      guard threads[thread] == nil else { throw Violation("thread \(thread) runs already") }
      threads[thread] = .some(nil)
    }
    guard let thread = threads.keys.sorted().randomElement(using: &generator) else { return }
    let finished = threads[thread]!
    if let finished { try perform([finished.item] + (following[thread] ?? [])) }
    var more: [UInt32] = []
    let step = offloadQueue.next(for: thread, finished: finished, now: now, more: &more)
    following[thread] = more
    let another = step.threadToStart
    if let another {
      guard threads[another] == nil || another == thread else { throw Violation("it runs already") }
      threads[another] = .some(nil)
    }
    if let work = step.work {
      threads[thread] = work
    } else if another != thread {
      threads[thread] = nil
    }
  }

  private func perform(_ slots: [UInt32]) throws {
    guard slots.count > 1 else { return try perform(slots[0]) }
    // As the worker does it, without a real file.
    joined += slots.count
    for (slot, next) in zip(slots, slots.dropFirst()) {
      guard table.continues(slot, next) else { throw Violation("writes with a gap are joined") }
      guard table[request: slot].options == table[request: next].options else {
        throw Violation("writes with different options are joined")
      }
    }
    for slot in slots { try perform(slot) }
  }

  private func perform(_ slot: UInt32) throws {
    guard let number = numbers[table.tag(of: slot)] else { throw Violation("an unknown slot") }
    guard table.phase(of: asks[number].id) == .submitted else {
      throw Violation("\(number) was not claimed")
    }
    guard table[request: slot].route == .syscall else {
      // In the kernel, or returned.
      _ = worker.perform(slot)
      return
    }
    // Without a real file: whatever a system call may answer.
    let length = table[request: slot].chunkLength
    let answer =
      generator.oneIn(6)
      ? -Int([EIO, ENOSPC, EINTR, EAGAIN].randomElement(using: &generator)!)
      : generator.oneIn(4) && length > 0 ? Int.random(in: 0..<length, using: &generator) : length
    table[slot].answer = answer
    kernel.record(answer, for: table.tag(of: slot))
    offloaded.insert(table.tag(of: slot))
    table.offloadResults.push(slot)
  }

  /// What the loop does in a turn, left off at any point.
  private func turn() throws {
    if generator.oneIn(3) { engine.retryBlocked() }
    engine.beginTurn()
    while !engine.collect() {}
    inInbox = 0
    try checkAccounts()
    let submission = engine.submit()
    if submission != .overBudget { try checkWaiting() }
    if policy == .inline, engine.hasOffloaded { throw Violation("the inline policy offloads") }
    try checkAccounts()
    _ = engine.reap()
    if kernel.wakesForNothing() { _ = engine.reap() }
    try checkAccounts()
    if engine.isPollReady {
      guard unseen + cancelledPolls > 0 else { throw Violation("ready, though nothing is") }
      // The loop looks at all that is ready.
      (engine.isPollReady, kernel.isPollReady, unseen, cancelledPolls) = (false, false, 0, 0)
      seen += 1
    }
    var share = Int.random(in: 0...20, using: &generator)
    while share > 0, let completion = engine.next() {
      share -= 1
      try complete(completion)
      // A completion handler may ask for more.
      if generator.oneIn(3), !isEnding { try accept() }
      try checkAccounts()
    }
  }

  private func complete(
    _ completion: consuming Engine<SimulatedKernel, Int>.Completion
  ) throws {
    table.free.give(completion.slot)
    let number = completion.request.attachment
    let ask = asks[number]
    let result = completion.result
    if ask.outcome != nil { throw Violation("request \(number) completed twice") }
    asks[number].outcome = result
    if table.phase(of: ask.id) != nil {
      throw Violation("\(number): completed, its ID is not stale")
    }
    let told = kernel.results[ask.submission.tag]?.last
    if asks[number].wasTurnedAway {
      guard !ask.mayWait else { throw Violation("\(number): might have waited") }
    } else if ask.wasCancelled {
      guard result == -Int(ECANCELED) else {
        throw Violation("\(number): was told it is cancelled, and got \(result)")
      }
    } else if result >= 0 {
      try checkSucceeded(number, result, told)
    } else {
      // Failed, refused at submission, or a write that gets no further.
      guard
        told == result || [EINVAL, EBADF, EPERM].contains(Int32(-result)) || result == -Int(EIO)
      else { throw Violation("\(number): \(result), the kernel said \(told as Any)") }
      // That RWF_NOWAIT is refused, or not there, is no answer to the request.
      guard result != -Int(EOPNOTSUPP) else { throw Violation("\(number): EOPNOTSUPP") }
    }
  }

  /// A request succeeds complete, or, a read, at the end of its file.
  private func checkSucceeded(_ number: Int, _ count: Int, _ told: Int?) throws {
    let ask = asks[number]
    let length = ask.submission.length
    guard count <= length else { throw Violation("\(number): \(count) of \(length) bytes") }
    if count == length { return }
    guard case .read = ask.operation else {
      throw Violation("\(number): a write of \(length) succeeded with \(count)")
    }
    let traits = ask.file.traits
    let isBlockCut = traits.isDirect && count % traits.alignment.offset != 0
    // Another answer than 0: a direct file ends within a block, or gives no more when asked again.
    guard told == 0 || isBlockCut else {
      throw Violation("\(number): gave up reading after \(count) of \(length), last \(told as Any)")
    }
  }

  // MARK: Rules

  /// What became ready is heard of, as long as the kernel has polls; where it has none, the driver
  /// is told so.
  private func checkPolling() throws {
    guard polls else { return }
    for _ in 0..<1000
    where unseen + cancelledPolls > 0 || !engine.isPollArmed && !engine.isPollUnsupported {
      try turn()
      kernel.completeAll()
    }
    guard engine.isPollUnsupported == !kernel.hasPoll else {
      throw Violation("unsupported: \(engine.isPollUnsupported)")
    }
    guard !kernel.hasPoll || unseen == 0 && engine.isPollArmed && kernel.isPollArmed else {
      throw Violation("\(unseen) became ready, and nobody heard of it after \(seen) times")
    }
  }

  /// After a submission, nothing waits that may not.
  private func checkWaiting() throws {
    for ask in asks where !ask.mayWait && ask.outcome == nil {
      let place = table[ask.id.slot].place
      guard place == .inKernel || place == .ended else {
        throw Violation("\(ask.id): may not wait, and is \(place)")
      }
    }
  }

  private func checkAccounts() throws {
    let accounts = engine.accounts
    let sum =
      table.free.count + inInbox + accounts.pending + accounts.offloaded + accounts.inKernel
      + accounts.arrived
    guard sum == table.capacity else {
      throw Violation("\(sum) slots of \(table.capacity): free \(table.free.count), \(accounts)")
    }
    guard engine.shares.held >= kernel.inFlightCount + kernel.ringCount else {
      throw Violation("\(engine.shares.held) hold room, the kernel has \(kernel.inFlightCount)")
    }
    let running = threads.count
    guard running <= 9 else { throw Violation("\(running) threads") }
  }

  /// Requests of a file reach the kernel from the loop in the order in which they were accepted,
  /// and as they were asked for. (A request that was sent back comes once more, later, and from
  /// elsewhere.)
  private func checkOrder() throws {
    var last: [Int32: Int] = [:]
    var seen = Set<UInt64>()
    for submission in kernel.taken {
      guard let number = numbers[submission.tag] else {
        throw Violation("an unknown tag was submitted")
      }
      let ask = asks[number]
      // Only what a memory file does within `submit` may go without the eventfd.
      guard submission.event == event || submission.event == nil && ask.file.traits.isMemory
      else { throw Violation("\(number): nothing tells of its completion") }
      guard policy == .inline || !ask.file.traits.needsSystemCalls else {
        throw Violation("\(number): kernel AIO got a request that needs a system call")
      }
      // The rest of a transfer: it ends where the request does, or before.
      guard submission.options == ask.submission.options else {
        throw Violation("\(number): \(ask.submission) was submitted with \(submission.options)")
      }
      let done = Int(submission.offset - ask.submission.offset)
      guard done >= 0, done % ask.file.traits.alignment.offset == 0,
        submission.length <= ask.submission.length - done
      else { throw Violation("\(number): resumed at \(done) with \(submission.length) bytes") }
      // One that was refused for RWF_DONTCACHE has lost its turn.
      if !seen.contains(submission.tag), submission.isNowait, !offloaded.contains(submission.tag),
        !ask.submission.isUncached
      {
        guard submission == ask.submission else {
          throw Violation("\(number): asked for \(ask.submission), submitted \(submission)")
        }
        guard number > last[submission.descriptor] ?? -1 else {
          throw Violation("\(number) was submitted after \(last[submission.descriptor]!)")
        }
        last[submission.descriptor] = number
      }
      seen.insert(submission.tag)
    }
  }

  private func checkCounts() throws {
    let counts = engine.counts
    let asks = asks.filter { !$0.wasTurnedAway }
    let succeeded = asks.count { $0.outcome! >= 0 }
    let cancelled = asks.count { $0.wasCancelled }
    guard counts.accepted == asks.count, counts.succeeded == succeeded,
      counts.cancelled == cancelled, counts.failed == asks.count - succeeded - cancelled
    else { throw Violation("counted \(counts), \(asks.count) asked, \(succeeded) succeeded") }
  }

  private func checkReleased(_ file: OpenFile) throws {
    file.close()
    guard !file.retain() else { throw Violation("a closed file can be retained") }
    guard released.withLock({ $0.contains(file.descriptor) }) else {
      throw Violation("file \(file.descriptor) is retained for ever")
    }
  }
}
