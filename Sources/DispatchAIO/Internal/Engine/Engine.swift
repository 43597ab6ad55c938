// SPDX-License-Identifier: Apache-2.0
//
// The engine turns accepted requests into system calls and completions into results. It knows no
// Dispatch, no queues and no closures; whoever drives it calls, in this order and from one thread
// at a time,
//
//   collect()      take in what other threads accepted, cancelled and returned
//   submit()       hand to the kernel what it has room for, and the rest to the offload queue
//   reap()         look what has completed
//   next()         … and take the completions one by one
//
// Nothing in here sleeps or calls out, so that a completion may accept, cancel and close at will.
//
// The life of a slot, and who counts it:
//
//   free -> inbox -> pending ------------------> kernel ----> completion -> free
//                     | |  ^                       ^ |
//                     | |  +---- refused, short ---|-+
//                     | v                          |
//                     | parked (share is used up)  |
//                     |                            |
//                     +--> offload queue, thread --+
//                     |            |
//                     +------------+--> ended (cancelled, refused, done by a system call)
//
// A request goes down from the loop when that cannot make the kernel sleep, or with RWF_NOWAIT when
// nobody knows (see NowaitPredictor). What the kernel refuses to do at once, and what is known to
// make it sleep, goes to the offload queue: as a system call where it is synchronous anyway, else
// into the same kernel context, for which it takes room like any other (see FileShares).

internal import CLibAIO
internal import CLinux
internal import Glibc

struct Engine<K: Kernel, Attachment: Sendable>: ~Copyable {
  /// A request that is over. Its ID is stale; its slot is the receiver's, to give back to the
  /// table's free list.
  struct Completion: ~Copyable {
    let request: Request<Attachment>
    let slot: UInt32
    /// How many bytes, or a negative errno.
    let result: Int
  }

  /// What `submit` has to say to whoever drives the engine.
  enum Submission {
    /// Everything is with the kernel or the offload queue, or what is not goes down when something
    /// completes.
    case settled
    /// The kernel refuses: to be tried once more after a while, because nothing in the kernel is
    /// sure to complete.
    case stalled
    /// The turn has taken its share of time: the rest is for the next.
    case overBudget
  }

  /// How often a request is submitted once more when the kernel says that nothing was done.
  static var maximumRetries: UInt8 { 16 }
  /// How many bytes of requests that `io_submit` itself copies go down in one turn.
  static var copyBudget: Int { 512 << 10 }
  /// How long the calls of `io_submit` of one turn may take, in nanoseconds; looked at after each.
  static var submitBudget: UInt64 { 200_000 }
  /// How many steps it may take to take in arrivals, cancellations and results at a time.
  static var arrivalsPerPass: Int { 2048 }
  /// See `nextBatch`.
  static var firstBatches: (afterReads: Int, afterWrites: Int) { (2, 4) }
  static var largestBatch: Int { 256 }

  let kernel: K
  let table: RequestTable<Attachment>
  let offloadQueue: OffloadQueue
  let event: Int32
  let policy: SubmissionPolicy

  /// What goes down next.
  var pending = SlotList()
  /// What an offload thread could not submit because the kernel had no memory or room; until
  /// something has completed, or the driver says that a while has passed.
  var blocked = SlotList()
  /// Requests that end without an event: refused, done by a system call, or cancelled.
  var ended = SlotList()
  var shares: FileShares
  /// How many requests were found cancelled, and `collect` has not heard of them yet.
  var beingCancelled = 0
  /// What the inboxes had and `collect` has not taken in yet.
  var arrivals = Inbox.Reader()
  var cancellations = Inbox.Reader()
  var offloadResults = Inbox.Reader()

  /// How many requests the kernel holds that the loop submitted, their completions not yet taken.
  var inKernel = 0
  /// How many requests wait for an offload thread, are with one, or were submitted by one and are
  /// with the kernel.
  var offloaded = 0
  /// How many requests in the kernel do not count on the eventfd: see `Request.isUnsignalled`.
  var unsignalled = 0
  /// Whether `submit` has put something into the offload queue since the driver looked last.
  var hasOffloaded = false

  /// The epoll set that a poll request is kept in flight for; -1: there is none, or the kernel has
  /// no such request.
  var pollDescriptor: Int32 = -1
  /// Whether the poll request is in flight.
  var isPollArmed = false
  /// Whether something of the set is ready; the driver's to reset.
  var isPollReady = false
  /// Whether the kernel has refused a poll request.
  var isPollUnsupported = false

  /// What this turn has copied, and for how long it has been in `io_submit`.
  var copiedBytes = 0
  var submitNanoseconds: UInt64 = 0

  /// See `nextBatch`.
  var batchLimit = firstBatches.afterReads
  var firstBatch = firstBatches.afterReads
  /// Whether a disk works on what went down last; else `io_submit` itself has done it.
  var isForDisk = true
  /// Whether `next` looks at `ended` before the events.
  var takesEndedFirst = false

  var batch: SubmissionBatch
  var events: EventBuffer
  var counts = EngineCounts()

  /// - Parameters:
  ///   - queueDepth: how many requests of one file the kernel may have; it has room for
  ///     `FileShares.room`.
  ///   - event: the eventfd that the kernel is to count completions on.
  ///   - policy: what may go down from the loop.
  init(
    kernel: K, table: RequestTable<Attachment>, offloadQueue: OffloadQueue, queueDepth: Int,
    event: Int32, policy: SubmissionPolicy = .nonblocking
  ) {
    self.kernel = kernel
    self.table = table
    self.offloadQueue = offloadQueue
    self.event = event
    self.policy = policy
    shares = FileShares(queueDepth: queueDepth)
    batch = SubmissionBatch(capacity: queueDepth)
    events = EventBuffer(capacity: min(queueDepth, 128))
  }

  /// Where the slots are that are neither free nor on their way in.
  var accounts: (pending: Int, offloaded: Int, inKernel: Int, arrived: Int) {
    (
      pending.count + blocked.count + shares.parkedCount + beingCancelled, offloaded, inKernel,
      events.count + ended.count
    )
  }

  /// Whether `next` has something to return now.
  var hasCompletions: Bool {
    @inline(__always) get { !events.isEmpty || !ended.isEmpty }
  }

  // MARK: In

  /// Begins a turn: what its submissions may cost is counted anew.
  mutating func beginTurn() {
    copiedBytes = 0
    submitNanoseconds = 0
  }

  /// Takes in what was accepted, cancelled and returned since the last time, in order of arrival.
  ///
  /// - Returns: whether that was all.
  @discardableResult
  mutating func collect() -> Bool {
    var budget = Self.arrivalsPerPass
    // A request may have been cancelled that is among the arrivals still: see `cancel`.
    while let slot = arrivals.next(from: table.inbox, &budget) { arrive(slot) }
    while let slot = cancellations.next(from: table.cancellations, &budget) { cancel(slot) }
    while let slot = offloadResults.next(from: table.offloadResults, &budget) {
      offloadReturned(slot, table[slot].answer)
    }
    checkAccounts()
    return arrivals.isEmpty && cancellations.isEmpty && offloadResults.isEmpty && budget > 0
  }

  /// Takes in a request that the loop itself has placed.
  @inline(__always)
  mutating func arrive(_ slot: UInt32) {
    counts.accepted += 1
    if table[slot].isCancelledEarly {
      table[slot].isCancelledEarly = false
      return end(slot, -Int(ECANCELED))
    }
    enqueue(slot, isFirst: false)
  }

  /// Ends a request that somebody has cancelled before it was claimed.
  private mutating func cancel(_ slot: UInt32) {
    if table[slot].place == .arriving {
      table[slot].isCancelledEarly = true
      return
    }
    unlist(slot)
    releaseRoom(slot)
    end(slot, -Int(ECANCELED))
  }

  /// Takes a request that waits out of the list that it is in.
  @inline(__always)
  mutating func unlist(_ slot: UInt32) {
    switch table[slot].place {
    case .pending: pending.remove(slot, in: table)
    case .blocked: blocked.remove(slot, in: table)
    case .parked: shares.unpark(slot, of: table[request: slot].file.number, in: table)
    case .beingCancelled: beingCancelled -= 1
    case .offloaded:
      offloadQueue.remove(slot)
      offloaded -= 1
    case .arriving, .inKernel, .ended:
      preconditionFailure("engine: slot \(slot) does not wait: it is \(table[slot].place)")
    }
  }

  /// An offload thread returns a request: the kernel did not take it, or it was done by a system
  /// call.
  private mutating func offloadReturned(_ slot: UInt32, _ answer: Int) {
    offloaded -= 1
    releaseRoom(slot)
    if answer == -Int(EAGAIN), table[request: slot].route == .offload {
      // No room, though room was kept, as when memory is short: it waits, like `putBack` does.
      table.unclaim(slot)
      table[request: slot].isRouteForced = true
      table[slot].place = .blocked
      blocked.append(slot, in: table)
    } else {
      end(slot, answer)
    }
  }

  /// A while has passed since `submit` said that it is stalled.
  mutating func retryBlocked() {
    while let slot = blocked.popFirst(in: table) {
      table[slot].place = .pending
      pending.append(slot, in: table)
    }
  }

  /// Puts a request where it waits for its next attempt.
  @inline(__always)
  mutating func enqueue(_ slot: UInt32, isFirst: Bool) {
    if route(of: table[request: slot]) == .syscall {
      // It needs no room in the kernel, and so does not wait behind those that do.
      table[request: slot].route = .syscall
      return offload(slot)
    }
    table[slot].place = .pending
    if isFirst { pending.prepend(slot, in: table) } else { pending.append(slot, in: table) }
  }

  /// Hands a request, whose route says how it goes down there, to the offload queue.
  mutating func offload(_ slot: UInt32) {
    table[slot].place = .offloaded
    offloaded += 1
    counts.offloadSubmits += 1
    hasOffloaded = true
    offloadQueue.append(
      slot, file: table[request: slot].file.number, kind: OffloadKind(table[request: slot].verb))
  }

  /// Puts a request that is over where `next` finds it.
  mutating func end(_ slot: UInt32, _ answer: Int) {
    table[slot].place = .ended
    table[slot].answer = answer
    ended.append(slot, in: table)
  }

  @inline(__always)
  func route(of request: borrowing Request<Attachment>) -> Route {
    if request.isRouteForced { return request.route }
    switch policy {
    case .nonblocking:
      return request.file.predictor.route(
        request.verb, offset: request.chunkOffset, length: request.length - request.resumeOffset)
    case .inline: return .inline
    case .threadsOnly: return .syscall
    }
  }

  // MARK: Room, tags and accounts

  @inline(__always)
  mutating func takeRoom(_ slot: UInt32) {
    table[request: slot].holdsRoom = true
    shares.take(for: table[request: slot].file.number)
  }

  @inline(__always)
  mutating func releaseRoom(_ slot: UInt32) {
    guard table[request: slot].holdsRoom else { return }
    table[request: slot].holdsRoom = false
    shares.give(from: table[request: slot].file.number)
  }

  /// The slot of a tag that the kernel handed back.
  @inline(__always)
  func slot(ofTag tag: UInt64) -> UInt32 {
    let slot = UInt32(truncatingIfNeeded: tag)
    precondition(
      table.tag(of: slot) == tag,
      "engine: the kernel completed a request twice, or one that was never submitted")
    return slot
  }

  /// Every slot is free, on its way in, pending, offloaded, with the kernel, or ended: never in two
  /// places. (What other threads hold at this moment is counted nowhere, hence no equality here;
  /// the tests of the engine, where there are no other threads, demand it.)
  @inline(__always)
  func checkAccounts() {
    assert(inKernel >= 0 && offloaded >= 0 && shares.held <= shares.room)
    assert(inKernel <= shares.held)
    assert(
      table.free.count + pending.count + blocked.count + shares.parkedCount + beingCancelled
        + offloaded + inKernel + events.count + ended.count <= table.capacity)
  }
}

/// What goes down from the loop.
enum SubmissionPolicy {
  /// Only what cannot make the kernel sleep.
  case nonblocking
  /// Everything, as it is.
  case inline
  /// Nothing: there is no kernel AIO, and every request is a system call on an offload thread.
  case threadsOnly
}

/// How much the engine has done.
struct EngineCounts: Equatable {
  /// Requests taken in.
  var accepted = 0
  var succeeded = 0
  var failed = 0
  var cancelled = 0
  /// Calls of `io_submit` from the loop, and what they took.
  var submitCalls = 0
  var submittedRequests = 0
  var largestBatch = 0
  /// The longest such call, in nanoseconds.
  var longestSubmit: UInt64 = 0
  /// Attempts with RWF_NOWAIT that have to be made once more on an offload thread.
  var nowaitRefusals = 0
  /// Attempts handed to the offload queue.
  var offloadSubmits = 0
  /// Attempts made once more because the kernel said, unasked, that nothing was done.
  var retries = 0
  /// Transfers that went on behind what was done.
  var continuations = 0

  @inline(__always)
  mutating func count(submission answer: Int, took nanoseconds: UInt64) {
    submitCalls += 1
    if answer > 0 {
      submittedRequests += answer
      if answer > largestBatch { largestBatch = answer }
    }
    if nanoseconds > longestSubmit { longestSubmit = nanoseconds }
  }
}
