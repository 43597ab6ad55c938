// SPDX-License-Identifier: Apache-2.0

import CKernel
import Glibc

@testable import DispatchAIO

/// A kernel that does what the real one may do, decided by a seed: it takes part of a batch, has no
/// room, refuses the first, completes at once or later and in any order, short, failed, or asking
/// to try again; it refuses RWF_NOWAIT when a request would have to wait, at once or for good, and
/// gives what its page cache has; it lets reaping be interrupted, and counts events on its eventfd.
///
/// It is stricter than the real one where a program could rely on too much: it has room for exactly
/// the events it promised, and forgets the control blocks and vectors when `submit` returns.
///
/// - Safety: `@unchecked Sendable`: used from one thread.
final class SimulatedKernel: Kernel, @unchecked Sendable {
  /// What a control block asked for, decoded before `submit` returned.
  struct Submission: Equatable {
    var tag: UInt64
    var command: Command
    var descriptor: Int32
    var offset: Int64
    /// The memory, by element.
    var memory: [UnsafeMutableRawBufferPointer]
    var event: Int32?
    var isNowait = false
    /// What of the options must be in every attempt.
    var options: RequestOptions = []

    /// The same request, whether it may wait or not, and counts on the eventfd or not.
    static func == (a: Submission, b: Submission) -> Bool {
      a.tag == b.tag && a.command == b.command && a.descriptor == b.descriptor
        && a.offset == b.offset
        && a.memory.map(\.baseAddress) == b.memory.map(\.baseAddress)
        && a.memory.map(\.count) == b.memory.map(\.count) && a.options == b.options
    }

    /// Whether it has RWF_DONTCACHE, which may be left out.
    var isUncached = false

    var length: Int { memory.reduce(0) { $0 + $1.count } }
  }

  /// Each fault happens once in so many chances; 0 is never.
  struct Faults {
    var full = 0
    var shortCount = 0
    var interrupted = 0
    var refused = 0
    var interruptedReap = 0
    var partialReap = 0
    var unaskedRetry = 0
    var failure = 0
    var shortTransfer = 0
    var nowaitRefusal = 0
    var nowaitShort = 0
    var noSync = 0
    var noUncached = 0
    var spuriousWakeUp = 0

    static let none = Faults()
    static let all = Faults(
      full: 10, shortCount: 4, interrupted: 20, refused: 30, interruptedReap: 10, partialReap: 4,
      unaskedRetry: 12, failure: 15, shortTransfer: 10, nowaitRefusal: 4, nowaitShort: 8,
      noSync: 20, noUncached: 20, spuriousWakeUp: 10)
  }

  /// Requests on this descriptor are refused with EBADF.
  static let badDescriptor: Int32 = -1
  /// RWF_NOWAIT on this descriptor is refused by `submit` (EOPNOTSUPP), as on FUSE.
  static let noNowaitDescriptor: Int32 = 9
  /// RWF_NOWAIT on this descriptor completes with EOPNOTSUPP, as ext4's buffered writes do.
  static let lateNoNowaitDescriptor: Int32 = 10

  /// A file with contents, for reads that have to be right.
  struct File {
    var bytes: [UInt8]
    /// A descriptor with O_DIRECT: what is not aligned to that is refused, and a read is short
    /// within a block at the end of the file only.
    var alignment: Int?
  }

  let capacity: Int
  var faults: Faults
  /// By descriptor, the files that have contents.
  var files: [Int32: File] = [:]
  /// As of a kernel with AIO; set before there is an engine.
  var takesRequests = true
  /// Whether it has IOCB_CMD_POLL.
  var hasPoll = true
  /// Whether a poll request is in flight, and whether what it waits for is ready.
  private(set) var isPollArmed = false
  var isPollReady = false
  /// Whether the descriptor that is polled has been closed.
  private(set) var isSetClosed = false
  /// Whether requests complete within `submit`, as on tmpfs; else when `complete` says so.
  var completesAtOnce = false
  private(set) var generator: SeededGenerator

  private var inFlight: [Submission] = []
  private var ring: [(tag: UInt64, result: Int)] = []
  /// What the eventfd would read.
  private(set) var eventCount = 0
  /// Every submission the kernel took, in order.
  private(set) var taken: [Submission] = []
  /// What was put into the ring for each tag, in order.
  private(set) var results: [UInt64: [Int]] = [:]
  /// Whether the last result for each tag was that of a request with RWF_NOWAIT.
  private(set) var lastWasNowait: [UInt64: Bool] = [:]
  /// How often each fault was injected.
  private(set) var injected: [String: Int] = [:]
  private(set) var submitCalls = 0
  /// No time passes.
  let now: UInt64 = 1_000_000_000
  private(set) var isDestroyed = false

  init(capacity: Int, faults: Faults = .none, seed: UInt64 = 0) {
    self.capacity = capacity
    self.faults = faults
    generator = SeededGenerator(seed: seed)
  }

  var inFlightCount: Int { inFlight.count }
  /// Completions of requests.
  var ringCount: Int { ring.count { $0.tag < ReservedTag.poll } }

  // MARK: Kernel

  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>, count: Int)
    -> Int
  {
    precondition(!isDestroyed, "submit after destroy")
    precondition(takesRequests, "submit to a kernel without AIO")
    precondition(count > 0)
    submitCalls += 1
    if inject(\.interrupted, "EINTR from submit") { return -Int(EINTR) }
    var taken = 0
    while taken < count {
      // The poll request, and what ends a wait, have room of their own.
      if inFlight.count + ringCount == capacity || inject(\.full, "EAGAIN from submit") {
        return taken > 0 ? taken : -Int(EAGAIN)
      }
      if taken > 0, inject(\.shortCount, "short count") { return taken }
      if requests[taken]!.pointee.opcode == Command.pollReadable.number {
        guard hasPoll else {
          note("no poll")
          return taken > 0 ? taken : -Int(EINVAL)
        }
        precondition(!isPollArmed, "two poll requests at once")
        precondition(!isSetClosed, "a poll of a set that was closed")
        isPollArmed = true
        taken += 1
        completePollIfReady()
        continue
      }
      let submission = decode(requests[taken]!.pointee)
      if let refusal = refusal(of: submission) { return taken > 0 ? taken : -Int(refusal) }
      inFlight.append(submission)
      self.taken.append(submission)
      taken += 1
      if completesAtOnce { complete(at: inFlight.count - 1) }
    }
    return taken
  }

  func reap(
    into events: UnsafeMutablePointer<CompletionEvent>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int {
    precondition(!isDestroyed, "reap after destroy")
    precondition(takesRequests, "reap from a kernel without AIO")
    if inject(\.interruptedReap, "EINTR from reap") { return -Int(EINTR) }
    var count = min(capacity, ring.count)
    if count > 1, inject(\.partialReap, "partial reap") {
      count = Int.random(in: 1..<count, using: &generator)
    }
    for (index, (tag, result)) in ring.prefix(count).enumerated() {
      if tag == ReservedTag.wake { note("wake") }
      var event = CompletionEvent()
      event.data = tag
      event.result = Int64(result)
      events[index] = event
    }
    ring.removeFirst(count)
    return count
  }

  func destroy() {
    precondition(inFlight.isEmpty, "destroy waits for what is in flight")
    // The poll is ended, and its event is thrown away with the ring.
    _ = cancelPoll()
    isDestroyed = true
  }

  // MARK: The world

  /// Completes one request in flight, any one.
  func completeOne() {
    guard !inFlight.isEmpty else { return }
    complete(at: Int.random(in: 0..<inFlight.count, using: &generator))
  }

  /// Whether the eventfd wakes the loop for nothing.
  func wakesForNothing() -> Bool { inject(\.spuriousWakeUp, "spurious wake-up") }

  func completeAll() {
    while !inFlight.isEmpty { completeOne() }
  }

  /// A thread ends a wait: a completion that belongs to no request.
  func wake() { ring.append((ReservedTag.wake, 1)) }

  /// Something that the poll request waits for is ready, until the loop has looked at it.
  func becomeReady() {
    isPollReady = true
    completePollIfReady()
  }

  /// `io_cancel(2)` of the poll request, whose event then arrives with 0; unless its event has won
  /// the race.
  func cancelPoll() -> Int {
    guard isPollArmed else { return -Int(EINVAL) }
    isPollArmed = false
    note("cancelled poll")
    ring.append((ReservedTag.poll, 0))
    eventCount += 1
    return -Int(EINPROGRESS)
  }

  /// Closes the epoll set. Its poll must have ended: the event of one in flight would never come.
  func closeSet() {
    precondition(!isPollArmed, "the set was closed under its poll")
    precondition(!isSetClosed, "the set was closed twice")
    isSetClosed = true
  }

  private func completePollIfReady() {
    guard isPollArmed, isPollReady else { return }
    precondition(!isSetClosed, "an event of a set that was closed")
    isPollArmed = false
    note("poll")
    ring.append((ReservedTag.poll, Int(POLLIN)))
    eventCount += 1
  }

  /// Notes what a system call answered to a request: the tests' offload threads make none.
  func record(_ answer: Int, for tag: UInt64) {
    results[tag, default: []].append(answer)
    lastWasNowait[tag] = false
  }

  private func complete(at index: Int) {
    let submission = inFlight.remove(at: index)
    var result = outcome(of: submission)
    if result >= 0, let file = files[submission.descriptor] {
      result = read(file, submission, count: result)
    }
    ring.append((submission.tag, result))
    results[submission.tag, default: []].append(result)
    lastWasNowait[submission.tag] = submission.isNowait
    if submission.event != nil { eventCount += 1 }
  }

  private func read(_ file: File, _ submission: Submission, count: Int) -> Int {
    var count = min(count, max(0, file.bytes.count - Int(submission.offset)))
    if let unit = file.alignment {
      let addresses = submission.memory.map { Int(bitPattern: $0.baseAddress) }
      guard
        (addresses + [Int(submission.offset), submission.length]).allSatisfy({ $0 % unit == 0 })
      else { return -Int(EINVAL) }
      if Int(submission.offset) + count < file.bytes.count { count = count / unit * unit }
    }
    // 0 is the end of the file, and nothing else is.
    if count == 0, submission.length > 0, submission.offset < file.bytes.count {
      return -Int(EAGAIN)
    }
    Self.copy(file.bytes, Int(submission.offset), count, to: submission.memory)
    return count
  }

  /// Copies bytes of a file to the pieces of a request.
  static func copy(
    _ bytes: [UInt8], _ offset: Int, _ count: Int, to memory: [UnsafeMutableRawBufferPointer]
  ) {
    var done = 0
    for piece in memory where done < count {
      let part = min(piece.count, count - done)
      guard part > 0 else { continue }
      bytes.withUnsafeBytes {
        piece.baseAddress!.copyMemory(
          from: $0.baseAddress! + offset + done, byteCount: part)
      }
      done += part
    }
  }

  private func outcome(of submission: Submission) -> Int {
    if submission.isNowait {
      if submission.descriptor == Self.lateNoNowaitDescriptor {
        note("NOWAIT unsupported in a completion")
        return -Int(EOPNOTSUPP)
      }
      if inject(\.nowaitRefusal, "NOWAIT refusal") { return -Int(EAGAIN) }
      if submission.length > 1, inject(\.nowaitShort, "NOWAIT short") {
        return Int.random(in: 0..<submission.length, using: &generator)
      }
    }
    if inject(\.unaskedRetry, "unasked EAGAIN or EINTR") {
      return Bool.random(using: &generator) ? -Int(EAGAIN) : -Int(EINTR)
    }
    if inject(\.failure, "failed completion") {
      return -Int([EIO, ENOSPC, EFBIG, EINVAL, EFAULT].randomElement(using: &generator)!)
    }
    if submission.length > 1, inject(\.shortTransfer, "short transfer") {
      return Int.random(in: 0..<submission.length, using: &generator)
    }
    return submission.length
  }

  private func refusal(of submission: Submission) -> Int32? {
    if submission.descriptor == Self.badDescriptor { return EBADF }
    if submission.offset < 0 { return EINVAL }
    if submission.isNowait, submission.descriptor == Self.noNowaitDescriptor {
      note("NOWAIT unsupported by submit")
      return EOPNOTSUPP
    }
    if submission.command == .fsync || submission.command == .fdatasync,
      inject(\.noSync, "no sync")
    {
      return EINVAL
    }
    if submission.isUncached, inject(\.noUncached, "no RWF_DONTCACHE") { return EOPNOTSUPP }
    if inject(\.refused, "refused at submission") {
      return [EINVAL, EBADF, EPERM].randomElement(using: &generator)
    }
    return nil
  }

  private func decode(_ block: ControlBlock) -> Submission {
    precondition(block.key == 0, "the key belongs to the kernel")
    guard let command = Command.allCases.first(where: { $0.number == block.opcode }) else {
      preconditionFailure("opcode \(block.opcode)")
    }
    // The engine keeps it until the completion.
    let start = UnsafeMutableRawPointer(bitPattern: UInt(block.memory))
    var memory: [UnsafeMutableRawBufferPointer] = []
    switch command {
    case .read, .write:
      memory = [.init(start: start, count: Int(block.count))]
    case .readVector, .writeVector:
      let vectors = start!.assumingMemoryBound(to: iovec.self)
      memory = (0..<Int(block.count)).map {
        .init(start: vectors[$0].iov_base, count: vectors[$0].iov_len)
      }
    case .fsync, .fdatasync:
      precondition(start == nil && block.count == 0 && block.offset == 0)
    case .pollReadable:
      preconditionFailure("polls are not requests")
    }
    let options = RequestOptions(
      rawValue: UInt8(block.rw_flags & ~UInt32(ckernel_rwf_nowait)))
    return Submission(
      tag: block.data, command: command, descriptor: block.descriptor,
      offset: block.offset, memory: memory,
      event: block.flags & 1 != 0 ? Int32(block.event) : nil,
      isNowait: block.rw_flags & UInt32(ckernel_rwf_nowait) != 0,
      options: options.subtracting(.uncached), isUncached: options.contains(.uncached))
  }

  private func inject(_ fault: KeyPath<Faults, Int>, _ name: String) -> Bool {
    let chances = faults[keyPath: fault]
    guard chances > 0, generator.oneIn(chances) else { return false }
    note(name)
    return true
  }

  private func note(_ fault: String) { injected[fault, default: 0] += 1 }
}
