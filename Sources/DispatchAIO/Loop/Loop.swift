// SPDX-License-Identifier: Apache-2.0
//
// The loop ties the engine to Dispatch. All of the engine's work is done in *turns*, on one serial
// queue. A turn runs when the kernel has counted a completion on the eventfd (the source's
// handler), when a thread has left something for the loop and found it asleep (`wake`), or when the
// caller says so (`process`).
//
// Nobody but a turn touches the engine. A request from another thread comes through the inbox; one
// that a completion handler makes goes to the engine at once, behind those in the inbox. So what
// handlers ask for goes down together, and so does all that other blocks on the queue ask for
// before the turn they woke.
//
// Before the loop sleeps it waits for a moment by itself, where that pays (see Polling). When a turn
// has used its share of time it is queued anew, behind the queue's other blocks; meanwhile the
// source is suspended, or each completion would wake Dispatch's manager thread for nothing.

internal import CLinux
internal import Dispatch
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// - Safety: `@unchecked Sendable` because what is not constant, atomic or Sendable itself (the
///   engine, the departures, the life and its closing callbacks) is touched in turns and in blocks
///   on `queue` only, which is serial; a turn traps when it is not.
@safe
final class Loop: @unchecked Sendable {
  /// How many completions a turn runs before it lets the queue's other blocks run.
  static let completionsPerTurn = 256
  /// How long a turn may take before it does so, in nanoseconds; looked at between rounds.
  static let longestTurn: UInt64 = 100_000
  /// The same for `process()`, whose caller sees to the queue's other work himself.
  static let longestTurnByHand: UInt64 = 1_000_000
  /// How long to wait before asking a kernel again that refused while nothing was in flight.
  static let stallDelay = DispatchTimeInterval.milliseconds(1)

  struct Settings: Sendable {
    var queueDepth: Int
    var pendingLimit: Int
    var policy: SubmissionPolicy
    var sleepingThreads: Int
    /// In nanoseconds.
    var polling: UInt64
  }

  let queue: DispatchQueue
  let settings: Settings
  let table: RequestTable<Delivery>
  /// Requests of tasks that wait for a slot.
  let line = WaitingLine()
  /// Runs what completions resume within the turn.
  let executor: AIOExecutor
  let taskExecutor: AIOTaskExecutor
  private let kernel: LinuxKernel
  /// Behind a pointer, because the compiler cannot know that turns never overlap, and would check
  /// each access of a class's property while the program runs. Allocated by `init`, freed by
  /// `deinit`.
  private let engine: UnsafeMutablePointer<Engine<LinuxKernel, Delivery>>
  private let event: EventDescriptor
  private let source: any DispatchSourceRead
  /// Set once, at the end of `init`.
  private var sleepingSide: SleepingSide?

  /// Whether a turn is running or queued, and will look for mail before it ends.
  private let isAwake = Atomic<Bool>(false)
  /// The thread that a turn is running on, or 0.
  private let turnThread = Atomic<UInt>(0)
  /// Whether new requests are refused.
  private let isClosing = Atomic<Bool>(false)
  /// Marks `queue`, so that one can ask whether one is on it.
  private let onQueue = DispatchSpecificKey<Void>()

  private var departures = Departures()
  /// Entered while handlers are on their way to other queues.
  private let departing = DispatchGroup()
  private var isStallTimerSet = false
  private var polling: Polling
  /// Whether the eventfd may have counted since it was drained.
  private var mayHaveCounted = false
  /// What `comesAgain` queues: one block for all times, as there may be one for every few requests.
  /// It holds the loop, until that has closed.
  private var nextTurn: DispatchWorkItem?
  /// Whether it is queued.
  private var isTurnQueued = false
  /// Whether the source is suspended: while turns follow each other without a pause.
  private var isSourceSuspended = false

  private var turns = 0
  private var wakeUps = 0
  private let published = Lock(AIOStatistics())

  private enum Life {
    case open
    /// No request is left; the kernel's context is being freed, off the loop.
    case ending
    case closed
  }
  private var life = Life.open
  private var whenClosed: [@Sendable () -> Void] = []

  /// - Parameter kernel: the loop's from now on; also when this throws.
  /// - Throws: the errno of `eventfd(2)`.
  init(_ settings: Settings, kernel: LinuxKernel, queue: DispatchQueue?) throws(Errno) {
    self.settings = settings
    self.queue = queue ?? DispatchQueue(label: "DispatchAIO.loop")
    executor = AIOExecutor(queue: self.queue)
    taskExecutor = AIOTaskExecutor(executor)
    self.kernel = kernel
    do {
      event = try EventDescriptor()
    } catch {
      kernel.destroy()
      throw error
    }
    table = RequestTable(capacity: settings.queueDepth + settings.pendingLimit)
    unsafe engine = .allocate(capacity: 1)
    unsafe engine.initialize(
      to: Engine(
        kernel: kernel, table: table, queueDepth: settings.queueDepth, event: event.rawValue,
        policy: settings.policy))
    polling = Polling(bound: settings.polling)
    source = DispatchSource.makeReadSource(
      fileDescriptor: event.rawValue, queue: self.queue)
    sleepingSide = SleepingSide(
      threads: settings.sleepingThreads, sharesFiles: settings.policy == .performEverything
    ) { [unowned self] in makeWorker() }
    // Both handlers hold the loop, so that it outlives its context until it has closed; Dispatch
    // drops them when the source has been cancelled.
    source.setEventHandler { [self] in
      wakeUps += 1
      if isAwake.load(ordering: .relaxed) {
        // A turn is queued already, which will look; one more each time would leave the queue's
        // other blocks less and less of it.
        event.drain()
      } else {
        mayHaveCounted = true
        turn(polls: true)
      }
    }
    source.setCancelHandler { [self] in
      event.close()
      closed()
    }
    nextTurn = DispatchWorkItem { [self] in
      isTurnQueued = false
      turn(polls: true)
    }
    self.queue.setSpecific(key: onQueue, value: ())
    source.activate()
  }

  deinit {
    queue.setSpecific(key: onQueue, value: nil)
    unsafe engine.deinitialize(count: 1)
    unsafe engine.deallocate()
  }

  // MARK: From any thread

  /// Takes a request in, to complete exactly once.
  ///
  /// - Parameter request: holds its file.
  /// - Throws: `.full`, `.contextClosed` or `.forked`; the caller then gives the hold up.
  func accept(
    _ request: consuming AcceptedRequest<Delivery>
  ) throws(AIOError) -> RequestKey {
    if Fork.isChild { throw .forked(request.subject) }
    let isInTurn = turnThread.load(ordering: .relaxed) == Self.thread
    guard let slot = isInTurn ? table.takeOnLoop() : table.free.take() else {
      if isClosing.load(ordering: .sequentiallyConsistent) { throw .contextClosed(request.subject) }
      throw AIOError(.full, request.subject, .full(limit: table.capacity))
    }
    // Looked at after a slot was taken: the loop closes when it has seen all slots free after it
    // began to refuse, so one of the two notices the other.
    if isClosing.load(ordering: .sequentiallyConsistent) {
      table.free.give(slot)
      wake()
      throw .contextClosed(request.subject)
    }
    if isInTurn {
      // The turn that runs the handler goes on, and takes it along.
      if table.hasMail { unsafe engine.pointee.collect() }
      let key = table.place(request, in: slot)
      unsafe engine.pointee.arrive(slot)
      return key
    }
    let key = table.accept(request, in: slot)
    wake()
    return key
  }

  private static var thread: UInt {
    @inline(__always) get { UInt(pthread_self()) }
  }

  /// Takes a request in that waits for a slot. A forked child's would wait for good.
  ///
  /// - Parameter request: holds its file.
  /// - Returns: why not; the caller then gives the hold up.
  func wait(_ request: consuming AcceptedRequest<Delivery>, _ ticket: Ticket) -> AIOError? {
    if Fork.isChild { return .forked(request.subject) }
    if let error = line.add(request, ticket) { return error }
    wake()
    return nil
  }

  func cancel(_ key: RequestKey) -> AIOCancellation {
    if Fork.isChild { return .alreadyCompleted }
    if table.cancel(key) {
      wake()
      return .cancelled
    }
    return table.phase(of: key) == .submitted ? .notCancellable : .alreadyCompleted
  }

  /// Closes once every accepted request has completed. `completion` is called on the loop's queue;
  /// never in a forked child, where no queue runs.
  func close(_ completion: (@Sendable () -> Void)?) {
    if Fork.isChild { return }
    isClosing.store(true, ordering: .sequentiallyConsistent)
    line.close()
    queue.async { [self] in
      if let completion {
        guard life != .closed else { return completion() }
        whenClosed.append(completion)
      }
      turn(polls: false)
    }
  }

  /// What the kernel counts completions on.
  var completionDescriptor: Int32 { event.rawValue }

  var statistics: AIOStatistics { published.withLock { $0 } }

  /// Makes sure that a turn looks for mail.
  @inline(__always)
  private func wake() {
    if isAwake.load(ordering: .sequentiallyConsistent) { return }
    if !isAwake.exchange(true, ordering: .sequentiallyConsistent) {
      queue.async { [self] in turn(polls: true) }
    }
  }

  // MARK: The turn

  /// The caller is about to call `turnByHand`: nothing else need see to it that a turn comes.
  func turnIsComing() {
    isAwake.store(true, ordering: .sequentiallyConsistent)
  }

  /// A turn, on behalf of the caller of `process()`.
  func turnByHand() -> Int {
    if Fork.isChild {
      fatalError("AIOContext: process() was called in a child of fork, which has no contexts")
    }
    guard DispatchQueue.getSpecific(key: onQueue) != nil else {
      fatalError("AIOContext: process() was not called on the context's queue, '\(queue.label)'")
    }
    guard !executor.isRunningJob else {
      fatalError(
        """
        AIOContext: process() was called by a task or an actor that the loop runs; it will go on by \
        itself when they await
        """)
    }
    return turn(polls: false, byHand: true)
  }

  /// Runs until nothing is left to do, or the turn's share is used up, in which case another is on
  /// its way.
  ///
  /// - Parameters:
  ///   - polls: whether to wait for completions, where that pays.
  ///   - byHand: whether somebody on the queue called, who may be in the middle of what an actor
  ///     does: then no other part of an actor may run before he has gone on.
  /// - Returns: how many completions were run, or sent to their queues.
  @discardableResult
  private func turn(polls: Bool, byHand: Bool = false) -> Int {
    if turnThread.exchange(Self.thread, ordering: .acquiring) != 0 {
      fatalError(
        """
        AIOContext: a turn of the loop began while another was running: either process() was \
        called inside a completion handler, or the context's queue is not serial
        """)
    }
    defer { turnThread.store(0, ordering: .releasing) }
    guard life == .open else { return 0 }
    isAwake.store(true, ordering: .relaxed)
    turns += 1
    let began = clinux_monotonic_nanoseconds()
    let longest = byHand ? Self.longestTurnByHand : Self.longestTurn
    var completions = 0
    var jobs = 0
    let outer = byHand ? 0 : executor.enter()
    var hasPolled = false
    var isGoingToSleep = false
    var goesOn = true
    while goesOn {
      if line.isOccupied { admit() }
      if !table.inbox.isEmpty { polling.deferToOthers() }
      unsafe engine.pointee.collect()
      if unsafe engine.pointee.submit() == .stalled { setStallTimer() }
      while let (slot, route, file, isWrite) = unsafe engine.pointee.nextAsleep() {
        sleepingSide?.take(
          .init(slot: slot, route: route, isWrite: isWrite, file: ObjectIdentifier(file)),
          for: self)
      }
      if unsafe !engine.pointee.reap() { setStallTimer() }
      if unsafe !engine.pointee.hasCompletions && (byHand || !executor.hasJobs) {
        report()
        let now = clinux_monotonic_nanoseconds()
        let isLate = hasPolled && now &- began > longest
        switch polls && !isGoingToSleep ? poll(isLate: isLate) : .nothing {
        case .something: hasPolled = true
        case .nothing:
          isGoingToSleep = true
          goesOn = !sleeps()
        case .later:
          comesAgain()
          goesOn = false
        }
        continue
      }
      mayHaveCounted = true
      isGoingToSleep = false
      if max(completions, jobs) >= Self.completionsPerTurn
        || completions + jobs > 0 && clinux_monotonic_nanoseconds() &- began > longest
      {
        comesAgain()
        break
      }
      var left = unsafe min(engine.pointee.nextRound(), Self.completionsPerTurn - completions)
      while left > 0, let completion = unsafe engine.pointee.next() {
        left -= 1
        completions += 1
        if line.isOccupied { admit() }
        deliver(completion)
      }
      if !byHand { jobs += executor.run() }
    }
    if !byHand {
      executor.leave(outer)
      if executor.hasJobs { executor.runLater() }
    }
    report()
    if isClosing.load(ordering: .sequentiallyConsistent) { endIfIdle() }
    return completions
  }

  /// Gives free slots to those who wait for one.
  private func admit() {
    table.shareSpare()
    line.admit(to: table)
  }

  /// Lets everybody else have what the handlers left: results, statistics, and first the slot, with
  /// which whoever gets a result may make the next request.
  private func report() {
    table.shareSpare()
    departures.send(departing)
    publish()
  }

  /// Ends the turn, for another to begin after the queue's other blocks.
  private func comesAgain() {
    if !isSourceSuspended {
      isSourceSuspended = true
      source.suspend()
    }
    guard !isTurnQueued, let nextTurn else { return }
    isTurnQueued = true
    queue.async(execute: nextTurn)
  }

  /// Goes to sleep, unless something has come meanwhile.
  private func sleeps() -> Bool {
    if mayHaveCounted {
      // What was counted until here has been reaped, or will be when the turn goes round once more;
      // left on the eventfd, it would wake the loop for nothing.
      mayHaveCounted = false
      event.drain()
      return false
    }
    isAwake.store(false, ordering: .sequentiallyConsistent)
    if table.hasMail || !line.isEmpty && table.free.count > 0 {
      isAwake.store(true, ordering: .relaxed)
      return false
    }
    // tmpfs has completed all of it when `io_submit` returns. Should a kernel ever not, nothing
    // would tell of it.
    if unsafe engine.pointee.silent > 0 { setStallTimer() }
    if isSourceSuspended {
      isSourceSuspended = false
      source.resume()
    }
    return true
  }

  /// Waits for the next completion, for a moment, where that pays.
  ///
  /// - Parameter isLate: whether the queue's other blocks are to run before.
  private func poll(isLate: Bool) -> Poll {
    let (inKernel, asleep) = unsafe (engine.pointee.inKernel, engine.pointee.asleep)
    guard let way = polling.way(inKernel: inKernel, asleep: asleep) else { return .nothing }
    if isLate { return .later }
    let began = clinux_monotonic_nanoseconds()
    let longest = polling.longest(way)
    var waited: UInt64 = 0
    while waited < longest {
      let wait = way == .spin ? 0 : longest &- waited
      if unsafe !engine.pointee.reap(waiting: wait) { setStallTimer() }
      waited = clinux_monotonic_nanoseconds() &- began
      if unsafe engine.pointee.hasCompletions {
        polling.waited(waited, successfully: true)
        return .something
      }
      if table.hasMail { return .something }
    }
    polling.waited(waited, successfully: false)
    return .nothing
  }

  private enum Poll {
    /// A completion, or mail.
    case something
    case nothing
    /// The queue's other blocks are to run first.
    case later
  }

  @inline(__always)
  private func deliver(_ completion: Engine<LinuxKernel, Delivery>.Completion) {
    if let queue = completion.attachment.queue {
      departures.add(completion.attachment.completion, completion.result, to: queue)
    } else {
      completion.attachment.completion(completion.result)
    }
  }

  /// The kernel refuses, and nothing will tell when it does not any more: come back after a while,
  /// rather than spin.
  private func setStallTimer() {
    guard !isStallTimerSet else { return }
    isStallTimerSet = true
    queue.asyncAfter(deadline: .now() + Self.stallDelay) { [self] in
      isStallTimerSet = false
      unsafe engine.pointee.tryAgain()
      turn(polls: true)
    }
  }

  private func publish() {
    let counts = unsafe engine.pointee.counts
    let accounts = unsafe engine.pointee.accounts
    let asleep = unsafe engine.pointee.asleep
    published.withLock { statistics in
      statistics.submitted = counts.submitted
      statistics.completed = counts.succeeded
      statistics.failed = counts.failed
      statistics.cancelled = counts.cancelled
      statistics.pending = accounts.pending
      statistics.inKernel = accounts.inKernel
      statistics.asleep = asleep
      statistics.submitCalls = counts.submitCalls
      statistics.submittedByCalls = counts.submittedByCalls
      statistics.largestBatch = counts.largestBatch
      statistics.longestSubmit = .nanoseconds(counts.longestSubmit)
      statistics.turns = turns
      statistics.wakeUps = wakeUps
      statistics.polls = polling.waits
      statistics.pollHits = polling.successes
      statistics.hops = departures.sent
      statistics.refused = counts.refused
      statistics.sleepingSubmits = counts.asleep
      statistics.retries = counts.retries
      statistics.resumed = counts.resumed
    }
  }

  // MARK: The sleeping side

  /// What one of its threads does with each request.
  private func makeWorker() -> SleepingSide.Worker {
    let submitter = Submitter(
      SleepingSubmitter(kernel: kernel, table: table, event: event.rawValue))
    return { [unowned self] work in
      // Alive: see `take`.
      let isReturned = submitter.inner.submit(work.slot, work.route)
      if isReturned { wake() }
    }
  }

  /// A place for what one thread uses.
  private final class Submitter {
    var inner: SleepingSubmitter<LinuxKernel, Delivery>
    init(_ inner: consuming SleepingSubmitter<LinuxKernel, Delivery>) { self.inner = inner }
  }

  // MARK: The end

  /// Ends the loop if every slot is free, which means that no request is left anywhere.
  private func endIfIdle() {
    guard life == .open, table.free.count == table.capacity else { return }
    life = .ending
    if isSourceSuspended {
      // A source that is suspended never runs its cancel handler.
      isSourceSuspended = false
      source.resume()
    }
    // Handlers on other queues have run before close calls back; and io_destroy takes tens of
    // milliseconds, so it gets a thread of its own.
    departing.notify(queue: DispatchQueue(label: "DispatchAIO.teardown")) { [self] in
      kernel.destroy()
      source.cancel()
    }
  }

  /// The source's cancel handler: the last that runs.
  private func closed() {
    life = .closed
    nextTurn = nil
    let callbacks = whenClosed
    whenClosed = []
    for callback in callbacks { callback() }
  }
}
