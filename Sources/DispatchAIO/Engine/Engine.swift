// SPDX-License-Identifier: Apache-2.0
//
// The engine turns accepted requests into system calls and completions into results. It knows no
// Dispatch, no queues and no closures; whoever drives it calls, in this order and from one thread
// at a time,
//
//   collect()      take in what other threads accepted, cancelled and gave back
//   submit()       hand to the kernel what it has room for
//   nextAsleep()   … and to threads that may sleep what the kernel would sleep over
//   reap()         look what has completed
//   next()         … and take the completions one by one; slots are free before they are returned
//
// Nothing in here sleeps or calls out, so that a completion may accept, cancel and close at will.
//
// The life of a slot, and who counts it:
//
//   free list -> inbox -> pending -----------> kernel ----> completion -> free list
//                   |        |  ^  ^             ^  |
//                   |        |  |  |   sleeping -+  |  (with RWF_NOWAIT: refused, short)
//                   |        |  |  +-- side <-+     |
//                   |        v  |             |     |
//                   |      drowsy ------------+ <---+
//                   +--------+-> cancelled, refused -> completion
//
// A request goes down from the loop when that cannot make the kernel sleep, or with RWF_NOWAIT when
// nobody knows (see FileHabits). What the kernel refuses to do at once, and what is known to make
// it sleep, waits in the drowsy queue for its turn on the sleeping side, and goes into the same
// kernel context from there. No more than half of the kernel's room is for such requests, so that
// one slow file leaves room for the others.

internal import CLibAIO
internal import CLinux
internal import Glibc

struct Engine<K: Kernel, Attachment: Sendable>: ~Copyable {
  /// What is left of a request that is over: its slot is free, its buffers and file let go.
  struct Completion {
    let attachment: Attachment
    let result: Result<Int, AIOError>
  }

  /// What `submit` has to say to whoever drives the engine.
  enum Submission {
    /// All is with the kernel, or what is not goes down when something completes.
    case settled
    /// The kernel refuses, and nothing is in flight whose completion would be the moment to try
    /// again: try again after a while.
    case stalled
  }

  /// How often a request is submitted again when the kernel says that nothing was done.
  static var maximumRetries: UInt8 { 16 }
  /// How many bytes of requests that `io_submit` itself copies go down in one call.
  static var longestCopy: Int { 512 << 10 }
  /// See `nextRound`.
  private static var firstRounds: (afterReads: Int, afterWrites: Int) { (2, 4) }
  private static var largestRound: Int { 256 }

  let kernel: K
  let table: RequestTable<Attachment>
  /// How many requests the kernel has promised room for.
  let queueDepth: Int
  private let event: Int32
  private let policy: SubmissionPolicy

  /// What goes down from the loop.
  private var pending = PendingQueue()
  /// What goes down from the sleeping side, and has no room there yet.
  private var drowsy = PendingQueue()
  /// Handed to the sleeping side by `submit`, to be taken with `nextAsleep`, in order.
  private var fallingAsleep: [UInt32] = []
  private var firstFallingAsleep = 0
  /// The kernel had no room for what the sleeping side submitted last. Nothing more is sent there
  /// until something has completed, or the driver says that a while has passed.
  private var isBlockedAsleep = false
  /// How many requests the kernel holds, their completions not yet taken, including `asleep`.
  private(set) var inKernel = 0
  /// How many of those went to the sleeping side.
  private(set) var asleep = 0
  private let mostAsleep: Int
  /// How many of those in the kernel do not count on the eventfd: see `isSilent`.
  private(set) var silent = 0
  /// See `nextRound`.
  private var round = firstRounds.afterReads
  private var firstRound = firstRounds.afterReads
  /// Whether a disk works on what went down last; else `io_submit` itself has done it.
  private var isForDisk = true
  private var batch: SubmissionBatch
  private var events: EventBuffer
  /// Slots whose requests end without an event: refused, done by a system call, or cancelled.
  private var ended: [Ending] = []
  private var firstEnded = 0
  private(set) var counts = EngineCounts()

  private enum Ending {
    case answered(UInt32, Int)
    case cancelled(UInt32)
  }

  /// - Parameters:
  ///   - event: the eventfd that the kernel is to count completions on.
  ///   - policy: what may go down from the loop.
  init(
    kernel: K, table: RequestTable<Attachment>, queueDepth: Int, event: Int32,
    policy: SubmissionPolicy = .neverSleep
  ) {
    self.kernel = kernel
    self.table = table
    self.queueDepth = queueDepth
    self.event = event
    self.policy = policy
    mostAsleep = policy == .performEverything ? queueDepth : max(1, queueDepth / 2)
    batch = SubmissionBatch(capacity: queueDepth)
    events = EventBuffer(capacity: min(queueDepth, 128))
  }

  /// Where the slots are that are neither free nor on their way in.
  var accounts: (pending: Int, inKernel: Int, arrived: Int) {
    (pending.count + drowsy.count, inKernel, events.count + ended.count - firstEnded)
  }

  /// Whether `next` has something to return now.
  var hasCompletions: Bool { !events.isEmpty || firstEnded < ended.count }

  // MARK: In

  /// Takes in what was accepted, cancelled and given back since the last time, in order of arrival.
  mutating func collect() {
    // The cancellations first: what they name was accepted before, and so is either pending
    // already or in the inbox that is emptied next.
    let cancelled = table.cancellations.takeAll()
    var arrived = table.inbox.takeAll()
    while let slot = arrived {
      arrived = table.inbox.after(slot)
      arrive(slot)
    }
    var next = cancelled
    while let slot = next {
      next = table.cancellations.after(slot)
      dequeue(slot)
      ended.append(.cancelled(slot))
    }
    var returned = table.returns.takeAll()
    while let slot = returned {
      returned = table.returns.after(slot)
      awake(slot, table[slot].answer)
    }
    checkAccounts()
  }

  /// Takes in a request that the loop itself has placed.
  @inline(__always)
  mutating func arrive(_ slot: UInt32) {
    counts.submitted += 1
    enqueue(slot, isDrowsy: false)
  }

  /// The sleeping side gives a request back: the kernel did not take it, or it has been performed.
  private mutating func awake(_ slot: UInt32, _ answer: Int) {
    inKernel -= 1
    asleep -= 1
    if answer == -Int(EAGAIN), table[request: slot].route == .asleep {
      // No room, though room was kept, as when memory is short: it waits, like `putBack` does.
      table.unclaim(slot)
      enqueue(slot, isDrowsy: true)
      isBlockedAsleep = true
    } else {
      ended.append(.answered(slot, answer))
    }
  }

  @inline(__always)
  private mutating func enqueue(_ slot: UInt32, isDrowsy: Bool) {
    table[slot].isDrowsy = isDrowsy
    if isDrowsy { drowsy.append(slot, in: table) } else { pending.append(slot, in: table) }
  }

  @inline(__always)
  private mutating func dequeue(_ slot: UInt32) {
    if table[slot].isDrowsy {
      drowsy.remove(slot, in: table)
    } else {
      pending.remove(slot, in: table)
    }
  }

  // MARK: Down

  /// Hands pending requests to the kernel, as many as it has room for, in as few calls as it takes.
  mutating func submit() -> Submission {
    sendAsleep()
    while fillBatch() {
      var done = 0
      while done < batch.count {
        let began = clinux_monotonic_nanoseconds()
        let answer = batch.submit(from: done, to: kernel)
        counts.count(submission: answer, took: clinux_monotonic_nanoseconds() &- began)
        switch answer {
        case let taken where taken > 0:
          done += taken
          inKernel += taken
        case -Int(EINTR):
          continue
        case 0, -Int(EAGAIN):
          putBack(from: done)
          return inKernel == 0 ? .stalled : .settled
        case let refusal:
          // The first of the array is at fault, whatever the rest is like.
          ended.append(.answered(slot(ofTag: batch.tag(at: done)), refusal))
          done += 1
        }
      }
    }
    checkAccounts()
    return isBlockedAsleep && inKernel == 0 ? .stalled : .settled
  }

  /// A while has passed since `submit` said that it is stalled.
  mutating func tryAgain() {
    isBlockedAsleep = false
  }

  /// Moves pending requests to the batch. `false`: there is none, or no room for any.
  private mutating func fillBatch() -> Bool {
    batch.removeAll()
    var room = queueDepth - inKernel
    var copying = 0
    var hasDisk = false
    var hasReads = false
    var slot = pending.first
    while room > 0, slot != PendingQueue.end, copying < Self.longestCopy {
      let next = pending.after(slot, in: table)
      let route = route(of: table[request: slot])
      if route == .asleep || route == .performed {
        pending.remove(slot, in: table)
        table[request: slot].route = route
        enqueue(slot, isDrowsy: true)
        let before = asleep
        sendAsleep()
        room -= asleep - before
      } else {
        guard batch.hasRoom(for: table[request: slot].operation) else { break }
        // A request that somebody is just cancelling stays where it is: `collect` will find it.
        if table.claim(slot) {
          pending.remove(slot, in: table)
          let copied = prepare(slot, route)
          copying += copied
          if copied == 0 { hasDisk = true }
          if table[request: slot].verb == .read { hasReads = true }
          room -= 1
        }
      }
      slot = next
    }
    guard batch.count > 0 else { return false }
    isForDisk = hasDisk
    firstRound = hasReads ? Self.firstRounds.afterReads : Self.firstRounds.afterWrites
    return true
  }

  /// Adds a request that was claimed to the batch.
  ///
  /// - Returns: how many bytes `io_submit` itself will copy for it.
  @inline(__always)
  private mutating func prepare(_ slot: UInt32, _ route: Route) -> Int {
    table[request: slot].route = route
    let traits = table[request: slot].file.traits
    let length = table[request: slot].length
    // tmpfs has done it when `io_submit` returns, and then the loop looks at the ring anyway.
    let isSilent = traits.isMemory && route == .plain && length > 0
    table[request: slot].isSilent = isSilent
    if isSilent { silent += 1 }
    batch.append(
      table[request: slot], tag: tag(of: slot), event: isSilent ? nil : event,
      isNowait: route == .nowait)
    return traits.isMemory || !traits.isDirect ? length : 0
  }

  @inline(__always)
  private func route(of request: borrowing AcceptedRequest<Attachment>) -> Route {
    if request.isRouted, let route = request.route { return route }
    switch policy {
    case .neverSleep:
      return request.file.habits.route(
        request.verb, offset: request.offset + Int64(request.resume),
        length: request.length - request.resume)
    case .plain: return .plain
    case .performEverything: return .performed
    }
  }

  /// Hands drowsy requests to the sleeping side, as far as it has room.
  private mutating func sendAsleep() {
    var slot = drowsy.first
    while !isBlockedAsleep, asleep < mostAsleep, inKernel + batch.count < queueDepth,
      slot != PendingQueue.end
    {
      let next = drowsy.after(slot, in: table)
      if table.claim(slot) {
        drowsy.remove(slot, in: table)
        inKernel += 1
        asleep += 1
        fallingAsleep.append(slot)
      }
      slot = next
    }
  }

  /// The next request for the sleeping side, and how it goes down there: to be handed to
  /// `SleepingSubmitter`, on a thread that may sleep. `nil` when there is none.
  mutating func nextAsleep() -> (slot: UInt32, route: Route, file: OpenFile, isWrite: Bool)? {
    guard firstFallingAsleep < fallingAsleep.count else {
      fallingAsleep.removeAll(keepingCapacity: true)
      firstFallingAsleep = 0
      return nil
    }
    let slot = fallingAsleep[firstFallingAsleep]
    firstFallingAsleep += 1
    guard let route = table[request: slot].route else {
      preconditionFailure("engine: slot \(slot) falls asleep without a route")
    }
    counts.asleep += 1
    return (slot, route, table[request: slot].file, table[request: slot].verb == .write)
  }

  /// What the kernel had no room for goes back to the head of the queue, in its order.
  private mutating func putBack(from first: Int) {
    for index in (first..<batch.count).reversed() {
      let slot = slot(ofTag: batch.tag(at: index))
      isNoLongerSilent(slot)
      table.unclaim(slot)
      pending.prepend(slot, in: table)
    }
  }

  @inline(__always)
  private mutating func isNoLongerSilent(_ slot: UInt32) {
    if table[request: slot].isSilent {
      table[request: slot].isSilent = false
      silent -= 1
    }
  }

  // MARK: Up

  /// How many completions to run before what their handlers ask for goes down.
  ///
  /// A disk that has completed all of them together is idle until it gets the next: with two at
  /// first, reads at depth 32 are a quarter more than with all in one call, at the same processor
  /// time. Writes gain nothing below four. When the disk has something to do, and where nobody waits,
  /// larger batches are cheaper.
  mutating func nextRound() -> Int {
    guard isForDisk else { return 128 }
    defer { round = min(round * 2, Self.largestRound) }
    return round
  }

  /// Looks for completions, unless some that were found before are still to be taken.
  ///
  /// - Parameter nanoseconds: for how long to wait for the first, if there is none; below 1 s.
  /// - Returns: whether it could look. If not, look again after a while: the eventfd has been
  ///   cleared, and will not tell of completions that are in the ring already.
  mutating func reap(waiting nanoseconds: UInt64 = 0) -> Bool {
    guard events.isEmpty, inKernel > 0 else { return true }
    for attempt in 0..<8 {
      let answer = events.refill(from: kernel, waiting: attempt == 0 ? nanoseconds : 0)
      // Interrupted: none was taken.
      if answer == -Int(EINTR) { continue }
      guard answer >= 0 else { return false }
      inKernel -= answer
      round = firstRound
      if answer > 0 { isBlockedAsleep = false }
      checkAccounts()
      return true
    }
    return false
  }

  /// The next completion, in order; `nil` when there is none at hand.
  mutating func next() -> Completion? {
    while let event = events.removeFirst() {
      let slot = slot(ofTag: event.tag)
      if table[request: slot].route == .asleep { asleep -= 1 }
      if let completion = judge(slot, event.result) { return completion }
    }
    while firstEnded < ended.count {
      firstEnded += 1
      switch ended[firstEnded - 1] {
      case .answered(let slot, let answer):
        if let completion = judge(slot, answer) { return completion }
      case .cancelled(let slot):
        return fail(slot) { .cancelled($0, transferred: $1) }
      }
    }
    ended.removeAll(keepingCapacity: true)
    firstEnded = 0
    return nil
  }

  /// Decides whether a request is over.
  ///
  /// - Parameter result: what the kernel says: a count of bytes, or a negative errno, from the
  ///   completion, from `io_submit`, or from a system call.
  @inline(__always)
  private mutating func judge(_ slot: UInt32, _ result: Int) -> Completion? {
    guard let route = table[request: slot].route else {
      preconditionFailure("engine: slot \(slot) completed without having gone down")
    }
    isNoLongerSilent(slot)
    if result >= 0 {
      if route == .nowait {
        table[request: slot].file.habits.accepted(table[request: slot].verb)
      }
      let moved = table[request: slot].resume + result
      if moved < table[request: slot].length {
        if goesOn(slot, route, after: result) { return nil }
        if table[request: slot].isToFinish, table[request: slot].verb == .write {
          // The kernel takes no more of it, and does not say why.
          return fail(slot) { AIOError(errno: EIO, $0, transferred: $1) }
        }
      }
      return succeed(slot, max(table[request: slot].moved, moved))
    }
    if comesAgain(slot, route, after: Int32(-result)) { return nil }
    return fail(slot) { AIOError(errno: Int32(-result), $0, transferred: $1) }
  }

  /// Whether a request that failed is not over: it goes again, the same way or another.
  private mutating func comesAgain(
    _ slot: UInt32, _ route: Route, after errno: Int32
  ) -> Bool {
    let (verb, file) = (table[request: slot].verb, table[request: slot].file)
    switch (errno, route, verb) {
    case (ENOSPC, _, .write), (EDQUOT, _, .write), (EFBIG, _, .write):
      // A direct write fails as a whole, also when a part of it had room: half of it may have.
      let rest = table[request: slot].length - table[request: slot].resume
      let half = file.traits.alignment.roundDown(min(rest, table[request: slot].mostAtOnce) / 2)
      guard table[request: slot].isToFinish, half > 0 else { return false }
      table[request: slot].mostAtOnce = half
      counts.resumed += 1
      again(slot, by: route)
    case (EAGAIN, .nowait, _):
      // It would have had to sleep.
      file.habits.refused(verb)
      counts.refused += 1
      again(slot, by: .asleep)
    case (EOPNOTSUPP, .nowait, _):
      // There is no NOWAIT for this file.
      file.habits.unsupported(verb)
      counts.refused += 1
      again(slot, by: .asleep)
    case (EINVAL, .plain, .fsync), (EINVAL, .plain, .fdatasync):
      // Linux before 4.18, or a filesystem without: the system call may still have it.
      guard policy != .plain else { return false }
      file.habits.unsupported(verb)
      again(slot, by: .performed)
    case (EAGAIN, _, _), (EINTR, _, _):
      // Nobody asked for such an answer: filesystems give it under lock or memory pressure, and
      // when a signal came.
      guard table[request: slot].retries < Self.maximumRetries else { return false }
      table[request: slot].retries += 1
      counts.retries += 1
      again(slot, by: route)
    default:
      return false
    }
    return true
  }

  /// Whether a short transfer is not the end of its request.
  private mutating func goesOn(
    _ slot: UInt32, _ route: Route, after count: Int
  ) -> Bool {
    let (verb, traits) = (table[request: slot].verb, table[request: slot].file.traits)
    let moved = table[request: slot].resume + count
    if verb == .read, route == .nowait, !traits.isDirect {
      // As much as the page cache had. Nothing says whether the file ends there: all of it again,
      // from where it can wait for the disk.
      counts.refused += 1
      again(slot, by: .asleep)
      return true
    }
    guard table[request: slot].isToFinish else { return false }
    table[request: slot].moved = max(table[request: slot].moved, moved)
    let alignment = traits.alignment
    if verb == .read {
      // A direct read that ends within a block has met the end of the file.
      if count == 0 || moved % alignment.offset != 0 { return false }
    }
    let resume = alignment.roundDown(moved)
    if resume == table[request: slot].resume {
      // No progress.
      guard table[request: slot].retries < Self.maximumRetries else { return false }
      table[request: slot].retries += 1
    }
    table[request: slot].resume = resume
    counts.resumed += 1
    table[request: slot].isRouted = false
    table.unclaim(slot)
    pending.prepend(slot, in: table)
    table[slot].isDrowsy = false
    return true
  }

  /// Makes a request wait again, for another attempt.
  private mutating func again(_ slot: UInt32, by route: Route) {
    table[request: slot].route = route
    table[request: slot].isRouted = true
    table.unclaim(slot)
    enqueue(slot, isDrowsy: route == .asleep || route == .performed)
  }

  @inline(__always)
  private mutating func succeed(_ slot: UInt32, _ count: Int) -> Completion {
    let request = table.retire(slot)
    if request.verb == .write, count > 0 {
      request.file.habits.extended(to: request.offset + Int64(count))
    }
    request.file.release()
    counts.succeeded += 1
    return Completion(attachment: request.attachment, result: .success(count))
  }

  private mutating func fail(
    _ slot: UInt32, _ error: (AIOError.Subject, _ transferred: Int) -> AIOError
  ) -> Completion {
    let request = table.retire(slot)
    request.file.release()
    let error = error(request.subject, request.moved)
    if error.code == .cancelled { counts.cancelled += 1 } else { counts.failed += 1 }
    return Completion(attachment: request.attachment, result: .failure(error))
  }

  // MARK: Tags and accounts

  /// What the kernel hands back with a completion: the slot, and the generation to prove it.
  @inline(__always)
  private func tag(of slot: UInt32) -> UInt64 { table.tag(of: slot) }

  @inline(__always)
  private func slot(ofTag tag: UInt64) -> UInt32 {
    let slot = UInt32(truncatingIfNeeded: tag)
    precondition(
      table.tag(of: slot) == tag,
      "engine: the kernel completed a request twice, or one that was never submitted")
    return slot
  }

  /// Every slot is free, on its way in, pending, with the kernel, or ended: never in two places.
  /// (What other threads hold at this moment is counted nowhere, hence no equality here; the tests
  /// of the engine, where there are no other threads, demand it.)
  @inline(__always)
  private func checkAccounts() {
    assert(inKernel >= 0 && inKernel <= queueDepth)
    assert(asleep >= 0 && asleep <= min(inKernel + events.count, mostAsleep + events.count))
    assert(
      table.freeCount + pending.count + drowsy.count + inKernel + events.count <= table.capacity)
  }
}

/// What goes down from the loop.
enum SubmissionPolicy {
  /// Only what cannot make the kernel sleep.
  case neverSleep
  /// Everything, as it is.
  case plain
  /// Nothing: there is no kernel AIO, and every request is a system call on the sleeping side.
  case performEverything
}

/// How much the engine has done.
struct EngineCounts: Equatable {
  /// Requests taken in.
  var submitted = 0
  var succeeded = 0
  var failed = 0
  var cancelled = 0
  /// Calls of `io_submit` from the loop, and what they took.
  var submitCalls = 0
  var submittedByCalls = 0
  var largestBatch = 0
  /// The longest such call, in nanoseconds.
  var longestSubmit: UInt64 = 0
  /// Attempts with RWF_NOWAIT that have to be made again on the sleeping side.
  var refused = 0
  /// Attempts handed to the sleeping side.
  var asleep = 0
  /// Attempts made again because the kernel said, unasked, that nothing was done.
  var retries = 0
  /// Short transfers that went on.
  var resumed = 0

  @inline(__always)
  mutating func count(submission answer: Int, took nanoseconds: UInt64) {
    submitCalls += 1
    if answer > 0 {
      submittedByCalls += answer
      if answer > largestBatch { largestBatch = answer }
    }
    if nanoseconds > longestSubmit { longestSubmit = nanoseconds }
  }
}
