// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

@testable import DispatchAIO

/// The reads of files opened `.automatic`, on a simulated kernel that refuses, fails and shortens
/// them by every way, with bytes that have to be right.
///
/// `AIO_SEEDS=n` runs more or fewer seeds in proportion, `AIO_SEED=n` replays one.
final class DirectReadSimulationTests: XCTestCase {
  func testRandomSchedules() throws {
    var (requests, direct, filled, bounced) = (0, 0, 0, 0)
    try Seeds.run(default: 1000) { seed in
      do {
        let simulation = try Simulation(seed: seed)
        try simulation.run()
        requests += simulation.asks.count
        direct += simulation.engine.counts.directReads
        filled += simulation.filled
        bounced += simulation.bounced
      } catch {
        XCTFail("\(error) — \(Seeds.replay(seed))")
        throw error
      }
    }
    print("\(requests) reads, \(direct) direct, \(bounced) bytes copied, \(filled) brought in")
    guard requests > 20_000 else { return }
    XCTAssertGreaterThan(direct, requests / 8)
    XCTAssertGreaterThan(filled, 100)
    XCTAssertGreaterThan(bounced, 1 << 20)
  }
}

private let untouched = [UInt8](repeating: 0xee, count: 300_000)

/// Compared by C, because a debug build takes long over 100 million bytes.
private func isEqual(
  _ bytes: Slice<UnsafeRawBufferPointer>, _ expected: [UInt8], from offset: Int
) -> Bool {
  let bytes = UnsafeRawBufferPointer(rebasing: bytes)
  guard let base = bytes.baseAddress, !bytes.isEmpty else { return true }
  return expected.withUnsafeBytes {
    $0.count - offset >= bytes.count && memcmp(base, $0.baseAddress! + offset, bytes.count) == 0
  }
}

private final class Simulation {
  struct Violation: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
  }

  struct Ask {
    var id: RequestID
    var file: OpenFile
    var offset: Int
    var buffer: AIOBuffer
    var wasCancelled = false
    var outcome: Int?
  }

  let kernel: SimulatedKernel
  /// Whether there are other faults than refusals of RWF_NOWAIT.
  let isFaulty: Bool
  let table: RequestTable<Int>
  let offloadQueue: OffloadQueue
  var engine: Engine<SimulatedKernel, Int>
  var generator: SeededGenerator
  var asks: [Ask] = []
  var files: [OpenFile] = []
  /// The descriptors that nothing holds any more.
  let released = Locked<Set<Int32>>([])
  /// By file, its second descriptor.
  var direct: [UInt32: Int32] = [:]
  let alignment: BlockAlignment
  var threads: [Int: OffloadQueue.Work?] = [:]
  var now: UInt64 = 1
  var filled = 0
  var bounced = 0

  init(seed: UInt64) throws {
    generator = SeededGenerator(seed: seed &* 2 &+ 1)
    let depth = Int.random(in: 1...12, using: &generator)
    kernel = SimulatedKernel(
      capacity: FileShares.room(queueDepth: depth),
      faults: generator.oneIn(4) ? .none : .all, seed: seed)
    kernel.completesAtOnce = generator.oneIn(4)
    isFaulty = kernel.faults.full > 0
    kernel.faults.nowaitRefusal = 2
    // Else the first tells that direct reads are not supported.
    if Bool.random(using: &generator) { kernel.faults.failure = 0 }
    let table = RequestTable<Int>(capacity: depth + Int.random(in: 0...20, using: &generator))
    self.table = table
    offloadQueue = OffloadQueue(base: 3, limit: 9) { table.claim($0) }
    engine = Engine(
      kernel: kernel, table: table, offloadQueue: offloadQueue, queueDepth: depth, event: 77)
    let unit = [512, 4096].randomElement(using: &generator)!
    alignment = BlockAlignment(memory: unit, offset: unit)
    for fileSystem in [FileSystemKind.local, .other] {
      let size = Int.random(in: 0...400_000, using: &generator)
      let bytes = Array(blockContents[..<size])
      let traits = OpenFile.Traits(isDirect: false, isAutomatic: true, fileSystem: fileSystem)
      let file = OpenFile(
        descriptor: Int32(100_000 + files.count), path: nil, traits: traits,
        directReads: DirectReads(traits)
      ) { [released] descriptor in released.withLock { _ = $0.insert(descriptor) } }
      // A descriptor of its own, which the file closes.
      let second = open("/dev/null", O_RDONLY | O_CLOEXEC)
      guard second >= 0 else { throw Violation("no descriptor") }
      kernel.files[file.descriptor] = .init(bytes: bytes)
      kernel.files[second] = .init(bytes: bytes, alignment: unit)
      direct[file.number] = second
      if !generator.oneIn(4) { openDirect(file) }
      files.append(file)
    }
  }

  func run() throws {
    for _ in 0..<Int.random(in: 20...200, using: &generator) {
      switch Int.random(in: 0..<9, using: &generator) {
      case 0...1: for _ in 0..<Int.random(in: 1...6, using: &generator) { try accept() }
      case 2: cancel()
      case 3: kernel.completeOne()
      case 4: kernel.completeAll()
      case 5...6: try offloadStep()
      default: try turn()
      }
    }
    var rounds = 0
    while asks.contains(where: { $0.outcome == nil }) {
      for _ in 0..<20 { try offloadStep() }
      kernel.completeAll()
      try turn()
      rounds += 1
      if rounds == 10_000 { throw Violation("requests never complete") }
    }
    guard table.free.count == table.capacity else { throw Violation("slots are lost") }
    guard engine.bounceBuffers.inUse == 0 else { throw Violation("bounce buffers are lost") }
    guard engine.shares.held == 0 else { throw Violation("\(engine.shares.held) hold room") }
    for submission in kernel.taken where kernel.files[submission.descriptor]?.alignment != nil {
      guard submission.isNowait else { throw Violation("a direct read that may sleep") }
    }
    for file in files {
      guard file.directReads!.beginFill() else { throw Violation("a fill never ended") }
      file.close()
      guard released.withLock({ $0.contains(file.descriptor) }) else {
        throw Violation("file \(file.descriptor) is retained for ever")
      }
      file.directReads!.close()
      let second = direct[file.number]!
      if opened.contains(file.number) == (fcntl(second, F_GETFD) >= 0) {
        throw Violation("the second descriptor is open, or was closed by another")
      }
      if !opened.contains(file.number) { close(second) }
    }
  }

  /// The files whose second descriptor was opened.
  private var opened = Set<UInt32>()

  private func openDirect(_ file: OpenFile) {
    guard opened.insert(file.number).inserted else { return }
    file.directReads!.opened(direct[file.number]!, alignment)
  }

  private func accept() throws {
    guard let slot = table.free.take() else { return }
    let file = files.randomElement(using: &generator)!
    guard file.retain() else { throw Violation("an open file cannot be retained") }
    let unit = [1, 512, 4096].randomElement(using: &generator)!
    func random(_ most: Int) -> Int { Int.random(in: 0...most, using: &generator) / unit * unit }
    // Few places, so that some are read again.
    let offset = generator.oneIn(3) ? random(450_000) : random(3) * 4096
    let (length, shift) = (random(generator.oneIn(3) ? 300_000 : 9000), random(5000))
    let buffer = AIOBuffer(count: length + shift)[shift..<length + shift]
    if length > 0 { buffer.fill(0xee) }
    var operation = DispatchAIO.Operation.read(into: .buffer(buffer))
    if generator.oneIn(3) {
      let cuts = ([0, length] + (0..<3).map { _ in random(length) }).sorted()
      operation = .read(into: .buffers(zip(cuts, cuts.dropFirst()).map { buffer[$0..<$1] }))
    } else if generator.oneIn(4) {
      operation = .read(into: .raw(buffer.unsafeBytes))
    }
    let id = table.accept(
      Request(
        operation: operation, file: file, offset: Int64(offset), length: length,
        attachment: asks.count),
      in: slot)
    asks.append(Ask(id: id, file: file, offset: offset, buffer: buffer))
  }

  private func cancel() {
    guard let number = asks.indices.randomElement(using: &generator) else { return }
    if table.cancel(asks[number].id) == .waiting { asks[number].wasCancelled = true }
  }

  private func offloadStep() throws {
    now += UInt64.random(in: 0..<OffloadQueue.stuckAfter / 4, using: &generator)
    while let thread = offloadQueue.threadToStart(now: now) { threads[thread] = .some(nil) }
    guard let thread = threads.keys.sorted().randomElement(using: &generator) else { return }
    let finished = threads[thread]!
    if let finished { try perform(finished.item) }
    var more: [UInt32] = []
    let step = offloadQueue.next(for: thread, finished: finished, now: now, more: &more)
    if let another = step.threadToStart { threads[another] = .some(nil) }
    if let work = step.work {
      threads[thread] = work
    } else if step.threadToStart != thread {
      threads[thread] = nil
    }
  }

  /// As the worker does it, without a real file: opens the second descriptor, and reads.
  private func perform(_ slot: UInt32) throws {
    guard table[request: slot].route == .syscall else { throw Violation("not a system call") }
    let file = table[request: slot].file
    if Bool.random(using: &generator) { openDirect(file) }
    if table[request: slot].fillsPageCache { filled += 1 }
    let length = table[request: slot].chunkLength
    var answer = length
    if isFaulty, generator.oneIn(6) {
      answer = -Int([EIO, EINTR, EAGAIN].randomElement(using: &generator)!)
    } else {
      if generator.oneIn(4), length > 1 { answer = Int.random(in: 1..<length, using: &generator) }
      let bytes = kernel.files[file.descriptor]!.bytes
      let offset = Int(table[request: slot].chunkOffset)
      answer = min(answer, max(0, bytes.count - offset))
      guard case .read(let memory) = table[request: slot].operation else { return }
      var pieces: [UnsafeMutableRawBufferPointer] = []
      var skip = table[request: slot].resumeOffset
      for index in 0..<memory.elements {
        let skipped = min(skip, memory[index].count)
        skip -= skipped
        pieces.append(.init(rebasing: memory[index][skipped...]))
      }
      SimulatedKernel.copy(bytes, offset, answer, to: pieces)
    }
    table[slot].answer = answer
    table.offloadResults.push(slot)
  }

  private func turn() throws {
    if generator.oneIn(3) { engine.retryBlocked() }
    engine.beginTurn()
    while !engine.collect() {}
    _ = engine.submit()
    _ = engine.reap()
    var share = Int.random(in: 0...20, using: &generator)
    while share > 0, let completion = engine.next() {
      share -= 1
      try complete(completion)
      if generator.oneIn(4), asks.count < 400 { try accept() }
    }
    bounced += engine.bouncedBytes
    guard engine.bouncedBytes < Engine<SimulatedKernel, Int>.bounceBudget + BounceBuffers.size
    else { throw Violation("\(engine.bouncedBytes) bytes are copied in a turn") }
  }

  private func complete(
    _ completion: consuming Engine<SimulatedKernel, Int>.Completion
  ) throws {
    table.free.give(completion.slot)
    let number = completion.request.attachment
    let ask = asks[number]
    if ask.outcome != nil { throw Violation("request \(number) completed twice") }
    let result = completion.result
    asks[number].outcome = result
    let length = ask.buffer.count
    let what = "\(number), \(length) at \(ask.offset)"
    guard ask.wasCancelled == (result == -Int(ECANCELED)) else {
      throw Violation("\(what): cancelled: \(ask.wasCancelled), and got \(result)")
    }
    guard result >= 0 else {
      // What the disk and the kernel say; not what becomes of a direct read.
      let errors = [ECANCELED, EIO, EBADF, EPERM, EFAULT, ENOSPC, EFBIG, EINVAL, EAGAIN, EINTR]
      guard errors.contains(Int32(-result)) else { throw Violation("\(what): \(result)") }
      return
    }
    let bytes = kernel.files[ask.file.descriptor]!.bytes
    var (isRight, isUntouched) = (false, false)
    let expected = min(length, max(0, bytes.count - ask.offset))
    guard result == expected else {
      throw Violation("\(what) of \(bytes.count): \(result) bytes, and not \(expected)")
    }
    ask.buffer.withUnsafeBytes { read in
      isRight = isEqual(read[..<result], bytes, from: min(ask.offset, bytes.count))
      isUntouched = isEqual(read[result...], untouched, from: 0)
    }
    guard isRight else { throw Violation("\(what): wrong bytes") }
    guard isUntouched else {
      throw Violation("\(what): bytes behind the end of the file were changed")
    }
  }
}
