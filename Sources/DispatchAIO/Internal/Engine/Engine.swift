// SPDX-License-Identifier: Apache-2.0
//
// The engine turns accepted requests into system calls and completions into results. It knows no
// Dispatch, no queues and no closures; its driver calls, in this order and from one thread at a
// time,
//
//   collect()      process the requests that other threads accepted, cancelled and returned
//   submit()       submit the requests that the kernel has room for, and offload others
//   reap()         reap completions from the kernel
//   next()         take the completions, one by one
//
// Nothing in here sleeps or calls out, so that a completion may accept, cancel and close at will.
//
// The life of a slot:
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
// The loop submits a request inline if that cannot make the kernel sleep, and with RWF_NOWAIT if it
// may (see NowaitPredictor). A request that the kernel refuses, or that is known to make it sleep,
// is offloaded: as a system call if it is synchronous anyway, else into the same kernel context,
// for which it takes room like any other (see FileShares). A read that the page cache refuses may
// be submitted as O_DIRECT instead (see DirectReads).

internal import PlatformLibc

struct Engine<K: Kernel, Attachment: Sendable & ~Copyable>: ~Copyable {
  /// A request that has ended. Its ID is stale; the receiver owns its slot, and returns it to the
  /// table's free list.
  struct Completion: ~Copyable {
    let request: Request<Attachment>
    let slot: UInt32
    /// The number of bytes, or a negative errno.
    let result: Int

    /// Takes the attachment out, and releases the request's memory and its file.
    @inline(__always)
    consuming func takeAttachment() -> Attachment { request.attachment }
  }

  /// The answer of `submit` to the driver.
  enum Submission {
    /// Every request is with the kernel or the offload queue, or is submitted once another
    /// completes.
    case settled
    /// The kernel refuses, and has no request that is sure to complete: the driver retries after a
    /// delay.
    case stalled
    /// The turn's budget is used up; the next turn submits the rest.
    case overBudget
  }

  /// The most retries of a request for which the kernel answers that nothing was done.
  static var maximumRetries: UInt8 { 16 }
  /// The most bytes of requests copied by `io_submit(2)` itself that one turn submits.
  static var copyBudget: Int { 512 << 10 }
  /// The longest time of one turn's calls of `io_submit(2)`, in nanoseconds, checked after each.
  static var submitBudget: UInt64 { 200_000 }
  /// The most steps of one `collect`.
  static var arrivalsPerPass: Int { 2048 }
  /// See `nextDeliveryBatch`.
  static var firstDeliveryLimits: (afterReads: Int, afterWrites: Int) { (2, 4) }
  static var largestDeliveryBatch: Int { 256 }

  let kernel: K
  let table: RequestTable<Attachment>
  let offloadQueue: OffloadQueue
  let event: Int32
  let policy: SubmissionPolicy

  /// The requests to submit next.
  var pending = SlotList()
  /// Requests that an offload thread could not submit because the kernel had no memory or room,
  /// until another completes, or the driver retries them.
  var blocked = SlotList()
  /// Requests that have ended without an event: refused, done by a system call, or cancelled.
  var ended = SlotList()
  var shares: FileShares
  /// The number of requests that were found cancelled, and that `collect` has not taken from
  /// `cancellations`.
  var beingCancelled = 0
  /// The slots that were taken from the inboxes and that `collect` has not processed.
  var arrivals = Inbox.Reader()
  var cancellations = Inbox.Reader()
  var offloadResults = Inbox.Reader()

  /// The number of requests in the kernel that the loop submitted, and whose completions have not
  /// been reaped.
  var inKernel = 0
  /// The number of requests that wait for an offload thread, are with one, or were submitted by one
  /// and are in the kernel.
  var offloaded = 0
  /// The number of requests in the kernel without the eventfd flag: see `Request.isUnsignalled`.
  var unsignalled = 0
  /// Whether requests were added to the offload queue; reset by the driver.
  var hasOffloaded = false

  /// The epoll set for which a poll request is kept in flight; -1 if there is none, or the kernel
  /// has no polls.
  var pollDescriptor: Int32 = -1
  /// Whether the poll request is in flight.
  var isPollArmed = false
  /// Whether the set has events; reset by the driver.
  var isPollReady = false
  /// Whether the kernel has refused a poll request.
  var isPollUnsupported = false

  /// The bytes that this turn has submitted and `io_submit(2)` has copied, and the time of its
  /// calls.
  var copiedBytes = 0
  var submitNanoseconds: UInt64 = 0

  /// See `nextDeliveryBatch`.
  var deliveryLimit = firstDeliveryLimits.afterReads
  var firstDeliveryLimit = firstDeliveryLimits.afterReads
  /// Whether a disk works on the requests submitted last, rather than `io_submit(2)` itself having
  /// done them.
  var isForDisk = true
  /// Whether `next` looks at `ended` before the events.
  var takesEndedFirst = false

  /// The bytes that this turn has copied out of bounce buffers.
  var bouncedBytes = 0
  var bounceBuffers = BounceBuffers()

  var batch: SubmissionBatch
  var events: EventBuffer
  var counts = EngineCounts()

  /// - Parameters:
  ///   - queueDepth: The most requests of one file in the kernel, which has room for
  ///     `FileShares.room`.
  ///   - event: The eventfd on which the kernel counts completions.
  ///   - policy: The requests that the loop may submit, if the kernel takes any.
  init(
    kernel: K, table: RequestTable<Attachment>, offloadQueue: OffloadQueue, queueDepth: Int,
    event: Int32, policy: SubmissionPolicy = .nonblocking
  ) {
    self.kernel = kernel
    self.table = table
    self.offloadQueue = offloadQueue
    self.event = event
    self.policy = kernel.takesRequests ? policy : .threadsOnly
    shares = FileShares(queueDepth: queueDepth)
    batch = SubmissionBatch(capacity: queueDepth)
    events = EventBuffer(capacity: min(queueDepth, 128))
  }

  /// The numbers of slots that are neither free nor in an inbox, by place.
  var accounts: (pending: Int, offloaded: Int, inKernel: Int, arrived: Int) {
    (
      pending.count + blocked.count + shares.parkedCount + beingCancelled, offloaded, inKernel,
      events.count + ended.count
    )
  }

  /// Whether `next` has a completion to return now.
  var hasCompletions: Bool {
    @inline(__always) get { !events.isEmpty || !ended.isEmpty }
  }

  // MARK: In

  /// Begins a turn, with a new budget for its submissions.
  mutating func beginTurn() {
    copiedBytes = 0
    submitNanoseconds = 0
    bouncedBytes = 0
  }

  /// Processes the requests that were accepted, cancelled and returned since the last call, in
  /// order of arrival.
  ///
  /// - Returns: Whether the inboxes are empty.
  @discardableResult
  mutating func collect() -> Bool {
    var budget = Self.arrivalsPerPass
    // A request may be cancelled while it is among the arrivals: see `cancel`.
    while let slot = arrivals.next(from: table.inbox, &budget) { arrive(slot) }
    while let slot = cancellations.next(from: table.cancellations, &budget) { cancel(slot) }
    while let slot = offloadResults.next(from: table.offloadResults, &budget) {
      offloadReturned(slot, table[slot].answer)
    }
    checkAccounts()
    return arrivals.isEmpty && cancellations.isEmpty && offloadResults.isEmpty && budget > 0
  }

  /// Processes a request that was placed in the table.
  @inline(__always)
  mutating func arrive(_ slot: UInt32) {
    counts.accepted += 1
    if table[slot].isCancelledEarly {
      table[slot].isCancelledEarly = false
      return end(slot, -Int(ECANCELED))
    }
    enqueue(slot, isFirst: false)
  }

  /// Ends a request that was cancelled before it was claimed.
  private mutating func cancel(_ slot: UInt32) {
    if table[slot].place == .arriving {
      table[slot].isCancelledEarly = true
      return
    }
    unlist(slot)
    releaseRoom(slot)
    end(slot, -Int(ECANCELED))
  }

  /// Removes a waiting request from the list that it is in.
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

  /// Processes a request that an offload thread returned: the kernel did not take it, or a system
  /// call did it.
  private mutating func offloadReturned(_ slot: UInt32, _ answer: Int) {
    offloaded -= 1
    releaseRoom(slot)
    if answer == -Int(EAGAIN), table[request: slot].route == .offload {
      // The kernel has no room although the request holds some, for example if memory is short: it
      // waits, as after `putBack`.
      table.unclaim(slot)
      table[request: slot].isRouteForced = true
      table[slot].place = .blocked
      blocked.append(slot, in: table)
    } else {
      end(slot, answer)
    }
  }

  /// Retries the requests that an offload thread could not submit.
  mutating func retryBlocked() {
    while let slot = blocked.popFirst(in: table) {
      table[slot].place = .pending
      pending.append(slot, in: table)
    }
  }

  /// Adds a request to the list in which it waits for its next attempt.
  @inline(__always)
  mutating func enqueue(_ slot: UInt32, isFirst: Bool) {
    // The request counts where its route is final, here or when it is submitted.
    if route(of: table[request: slot], counts: false) == .syscall,
      route(of: table[request: slot]) == .syscall
    {
      // It needs no room in the kernel, and so does not wait behind requests that do.
      table[request: slot].route = .syscall
      return offload(slot)
    }
    table[slot].place = .pending
    if isFirst { pending.prepend(slot, in: table) } else { pending.append(slot, in: table) }
  }

  /// Adds a request to the offload queue, by the route that it has.
  mutating func offload(_ slot: UInt32) {
    guard table[request: slot].mayWait else { return endWaiting(slot) }
    table[slot].place = .offloaded
    offloaded += 1
    counts.offloadSubmits += 1
    hasOffloaded = true
    offloadQueue.append(
      slot, file: table[request: slot].file.number, kind: OffloadKind(table[request: slot].verb))
  }

  /// Adds a request that has ended to `ended`, for `next`.
  mutating func end(_ slot: UInt32, _ answer: Int) {
    table[slot].place = .ended
    table[slot].answer = answer
    ended.append(slot, in: table)
  }

  /// Ends a request that would have to wait, and may not.
  mutating func endWaiting(_ slot: UInt32) {
    releaseRoom(slot)
    end(slot, Request<Attachment>.wouldWait)
  }

  /// Whether a request that arrives now, on a file whose requests have not been parked, goes to the
  /// kernel with the next submission.
  func submitsNext(_ verb: Verb, _ file: OpenFile, offset: Int64, length: Int) -> Bool {
    // With so much room left, the file's share has room, too.
    guard shares.held + pending.count < shares.queueDepth, shares.parkedCount == 0,
      blocked.isEmpty, length <= NowaitPredictor.longestCopy
    else { return false }
    switch policy {
    case .nonblocking:
      return file.predictor.route(verb, offset: offset, length: length, counts: false).isOnLoop
    case .inline: return true
    case .threadsOnly: return false
    }
  }

  @inline(__always)
  func route(of request: borrowing Request<Attachment>, counts: Bool = true) -> Route {
    if request.isRouteForced { return request.route }
    switch policy {
    case .nonblocking:
      return request.file.predictor.route(
        request.verb, offset: request.chunkOffset, length: request.length - request.resumeOffset,
        counts: counts)
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

  /// The slot of a completion's tag.
  @inline(__always)
  func slot(ofTag tag: UInt64) -> UInt32 {
    let slot = UInt32(truncatingIfNeeded: tag)
    precondition(
      table.tag(of: slot) == tag,
      "engine: the kernel completed a request twice, or one that was never submitted")
    return slot
  }

  /// Asserts that every slot is in one place: free, in an inbox, pending, offloaded, in the kernel,
  /// or ended. Slots that other threads hold at this moment are not counted, hence no equality
  /// here; the tests of the engine, which have no other threads, demand it.
  @inline(__always)
  func checkAccounts() {
    assert(inKernel >= 0 && offloaded >= 0 && shares.held <= shares.room)
    assert(inKernel <= shares.held)
    assert(
      table.free.count + pending.count + blocked.count + shares.parkedCount + beingCancelled
        + offloaded + inKernel + events.count + ended.count <= table.capacity)
  }
}

/// The requests that the loop submits.
enum SubmissionPolicy {
  /// Those that cannot make the kernel sleep.
  case nonblocking
  /// All, inline.
  case inline
  /// None: the kernel takes no requests, and each is a system call on an offload thread.
  case threadsOnly
}

/// The counts of the engine's work.
struct EngineCounts: Equatable {
  /// Requests accepted.
  var accepted = 0
  var succeeded = 0
  var failed = 0
  var cancelled = 0
  /// Calls of `io_submit(2)` by the loop, and the requests that the kernel took in them.
  var submitCalls = 0
  var submittedRequests = 0
  var largestBatch = 0
  /// The longest such call, in nanoseconds.
  var longestSubmit: UInt64 = 0
  /// Attempts with RWF_NOWAIT that the kernel refused.
  var nowaitRefusals = 0
  /// Attempts to read past the page cache, of files opened `.automatic`.
  var directReads = 0
  /// Attempts handed to the offload queue.
  var offloadSubmits = 0
  /// Attempts repeated because the kernel answered, unasked, that nothing was done.
  var retries = 0
  /// Attempts that continued a transfer.
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
