// SPDX-License-Identifier: Apache-2.0
//
// The loop ties the engine to Dispatch. All of the engine's work is done in *turns*, on one serial
// queue. A turn runs when the kernel has counted a completion on the eventfd (the source's
// handler), when a thread has left work for the loop and no turn was scheduled, or on a call of
// `process`. `turn` is one turn; TurnScheduler schedules the next.
//
// Only turns touch the engine. A request from another thread arrives through the inbox; one that a
// completion handler makes is given to the engine at once, behind those in the inbox. So the
// requests of handlers are submitted together, and so are all those of other blocks on the queue
// before the turn that they scheduled.

internal import CKernel
internal import Dispatch
internal import PlatformLibc
internal import Synchronization
internal import SystemPackage

/// - Safety: `@unchecked Sendable` because what is not constant, atomic or Sendable itself (the
///   engine, the batch for other queues, the life and its closing callbacks) is touched in turns
///   and in blocks on `queue` only, which is serial; a turn traps when it is not.
@safe
final class Loop: SlotOwner, @unchecked Sendable {
  struct Settings: Sendable {
    var queueDepth: Int
    var pendingLimit: Int
    var policy: SubmissionPolicy
    var offloadThreads: Int
    var wait: AdaptiveWait.Settings
  }

  /// The most threads for each that works at a time, stuck ones included. If a file may have all
  /// that work at a time, and not half of them, a hung one takes twice as many.
  static let offloadGrowth = 8
  static let offloadGrowthWithoutAIO = 16
  /// The most waiters that get a slot, or are ended, in one iteration.
  static let admissionsPerPass = 1024

  var queue: DispatchQueue { jobs.queue }
  let settings: Settings
  let table: RequestTable<Delivery>
  /// Descriptors and timers.
  let readiness = Readiness()
  /// Requests of tasks that wait for a slot.
  let admission = AdmissionQueue()
  /// Runs what completions resume within the turn.
  let jobs: JobQueue
  /// What is being sent from files to sockets.
  var sends = FileSends()
  let kernel: SystemKernel
  /// Behind a pointer, because the compiler cannot know that turns never overlap, and would check
  /// each access of a class's property while the program runs. Allocated by `init`, freed by
  /// `deinit`.
  let engine: UnsafeMutablePointer<Engine<SystemKernel, Delivery>>
  private let scheduler: TurnScheduler
  private let offloadPool: OffloadPool

  /// The thread that a turn is running on, or 0.
  private let turnThread = Atomic<UInt>(0)
  /// Whether new requests are refused.
  private let isClosing = Atomic<Bool>(false)
  /// Whether the epoll set is polled.
  private let isPolling = Atomic<Bool>(false)
  /// Whether there are descriptors of which the engine does not know yet.
  private let isPollWanted = Atomic<Bool>(false)

  /// Whether a Dispatch source is to watch the epoll set from the start, because the kernel has no
  /// AIO poll. (Tests set it.)
  var pollsByDispatch: Bool
  /// That source.
  private var readinessSource: (any DispatchSourceRead)?
  /// The blocks of `beforeSubmit`, and a spare array, so that no memory is allocated for each turn.
  private var submitHooks: [Block] = []
  private var spareHooks: [Block] = []
  /// The events of descriptors and timers whose handlers are running; empty between turns.
  private var readyEvents: [Readiness.Ready] = []
  /// The blocks of `async`.
  private let blocks = LoopBlocks()

  private var crossQueueBatch = CrossQueueBatch()
  /// Entered while handlers have been sent to other queues and have not run.
  private let crossQueueHandlers = DispatchGroup()
  private var wait: AdaptiveWait
  private var turns = 0
  private let published = Lock(AIOStatistics())

  private enum Life {
    case open
    /// No request is left, and the kernel's context is being freed off the loop.
    case ending
    case closed
  }
  private var life = Life.open
  private var closeCompletions: [@Sendable () -> Void] = []

  /// - Parameter kernel: Owned by the loop from now on, also if this throws.
  /// - Throws: The errno of `eventfd(2)`.
  init(_ settings: Settings, kernel: SystemKernel, queue: DispatchQueue?) throws(Errno) {
    self.settings = settings
    pollsByDispatch = !kernel.takesRequests
    let marked = MarkedQueue(queue)
    jobs = JobQueue(marked)
    self.kernel = kernel
    let event: EventDescriptor
    do {
      event = try EventDescriptor()
    } catch {
      kernel.destroy()
      throw error
    }
    let table = RequestTable<Delivery>(capacity: settings.queueDepth + settings.pendingLimit)
    self.table = table
    let limit =
      settings.offloadThreads
      * (kernel.takesRequests ? Self.offloadGrowth : Self.offloadGrowthWithoutAIO)
    let offloadQueue = OffloadQueue(
      base: settings.offloadThreads, limit: limit,
      sharesFiles: !kernel.takesRequests,
      continues: { table.continues($0, $1) }, claim: { table.claim($0) })
    unsafe engine = .allocate(capacity: 1)
    unsafe engine.initialize(
      to: Engine(
        kernel: kernel, table: table, offloadQueue: offloadQueue, queueDepth: settings.queueDepth,
        event: event.rawValue, policy: settings.policy))
    var wait = settings.wait
    // Nobody can sleep in a kernel that completes nothing.
    if !kernel.takesRequests { wait.sleepBound = 0 }
    self.wait = AdaptiveWait(wait)
    let scheduler = TurnScheduler(queue: marked, event: event, kernel: kernel)
    self.scheduler = scheduler
    offloadPool = OffloadPool(queue: offloadQueue, limit: limit) {
      let worker = WorkerBox(OffloadWorker(kernel: kernel, table: table, event: event.rawValue))
      return { slot, more in
        if worker.inner.perform(slot, more) { scheduler.scheduleTurn() }
      }
    }
    // The closures hold the loop, so that it outlives its context until it has closed.
    scheduler.activate(
      turn: { [self] in turn() },
      prepareRetry: { [self] in unsafe engine.pointee.retryBlocked() },
      closed: { [self] in closed() })
  }

  deinit {
    unsafe engine.deinitialize(count: 1)
    unsafe engine.deallocate()
  }

  /// A reference to the worker of one offload thread, which cannot be copied.
  private final class WorkerBox {
    var inner: OffloadWorker<SystemKernel, Delivery>
    init(_ inner: consuming OffloadWorker<SystemKernel, Delivery>) { self.inner = inner }
  }

  // MARK: From any thread

  /// Accepts a request, which then completes exactly once.
  ///
  /// - Parameter request: The request, which holds its file.
  /// - Throws: `.full`, `.contextClosed` or `.forked`; the caller then releases the file.
  func accept(_ request: consuming Request<Delivery>) throws(AIOError) -> RequestID {
    if Fork.isChild { throw .forked(request.subject) }
    // Waiters were here before.
    guard !admission.hasWaiters, let slot = table.free.take() else {
      if isClosing.load(ordering: .sequentiallyConsistent) { throw .contextClosed(request.subject) }
      throw AIOError(.full, request.subject, .full(limit: table.capacity))
    }
    // Read after a slot was taken: the loop closes once it has seen all slots free after it began
    // to refuse, so that one of the two sees the other's store.
    if isClosing.load(ordering: .sequentiallyConsistent) {
      giveBack(slot)
      throw .contextClosed(request.subject)
    }
    // This turn runs the handler, and submits the request after those that have arrived.
    if turnThread.load(ordering: .relaxed) == Self.thread,
      unsafe !table.hasArrivals && engine.pointee.arrivals.isEmpty || engine.pointee.collect()
    {
      let id = table.place(request, in: slot)
      unsafe engine.pointee.arrive(slot)
      return id
    }
    let id = table.accept(request, in: slot)
    // The caller is a block of the queue, for example the handler of a Dispatch source: such blocks
    // cannot run while the loop waits.
    // While another thread runs a turn, this one is not on the queue.
    if turnThread.load(ordering: .relaxed) == 0, jobs.isCurrent {
      wait.deferToOthers()
    }
    scheduler.scheduleTurn()
    return id
  }

  /// Whether a request that is made now goes to the kernel with the next submission: the caller is
  /// within a turn, and the request has to wait neither for a slot nor for room, nor for an offload
  /// thread.
  @inline(__always)
  func submitsNext(_ verb: Verb, _ file: OpenFile, offset: Int64, length: Int) -> Bool {
    unsafe turnThread.load(ordering: .relaxed) == Self.thread && !admission.hasWaiters
      && table.free.count > 0
      && engine.pointee.submitsNext(verb, file, offset: offset, length: length)
  }

  private static var thread: UInt {
    @inline(__always) get { ckernel_thread() }
  }

  /// Returns a slot that was taken, or whose request has ended. From any thread.
  func giveBack(_ slot: UInt32) {
    table.free.give(slot)
    if !admission.isEmpty || isClosing.load(ordering: .sequentiallyConsistent) {
      scheduler.scheduleTurn()
    }
  }

  /// Accepts a request, which waits for a slot if there is none; one that is refused ends in this
  /// call. In a forked child it would wait forever.
  ///
  /// - Parameter request: The request, which holds its file.
  func admit(_ request: consuming Request<Delivery>, _ waiter: Waiter) {
    if Fork.isChild {
      let error = AIOError.forked(request.subject)
      return request.end(error)
    }
    admission.add(request, waiter, to: table)
    scheduler.scheduleTurn()
  }

  func cancel(_ id: RequestID) -> AIOCancellation {
    if Fork.isChild { return .alreadyCompleted }
    switch table.cancel(id) {
    case .waiting:
      scheduler.scheduleTurn()
      return .cancelled
    case .submitted: return .notCancellable
    case .cancelled, .free, nil: return .alreadyCompleted
    }
  }

  /// Cancels a request that `admit` has added, or is about to add.
  func cancel(_ waiter: Waiter) {
    // In a child, the thread that holds the lock may not exist.
    if Fork.isChild { return }
    if let id = admission.cancel(waiter) { _ = cancel(id) }
  }

  /// Closes once every accepted request has completed. `completion` is called on the loop's queue;
  /// never in a forked child, where no queue runs.
  func close(_ completion: (@Sendable () -> Void)?) {
    if Fork.isChild { return }
    isClosing.store(true, ordering: .sequentiallyConsistent)
    admission.close()
    // Waiters are ended at once; on the queue by turns, which have a bound.
    if !jobs.isCurrent {
      while !admission.endClosed(limit: Self.admissionsPerPass) {}
    }
    readiness.close()
    queue.async { [self] in
      if let completion {
        guard life != .closed else { return completion() }
        closeCompletions.append(completion)
      }
      turn()
    }
  }

  /// The statistics as of the end of the last turn. In a forked child as of the fork, or zeros if a
  /// turn was just ending.
  var statistics: AIOStatistics {
    if Fork.isChild { return published.withLockIfAvailable { $0 } ?? AIOStatistics() }
    return published.withLock { $0 }
  }

  // MARK: The turn

  /// A turn, on behalf of the caller of `process()`.
  func turnByHand() -> Int {
    if Fork.isChild {
      fatalError("AIOContext: process() was called in a child of fork, which has no contexts")
    }
    guard jobs.isCurrent else {
      fatalError("AIOContext: process() was not called on the context's queue, '\(queue.label)'")
    }
    guard !jobs.isRunningJob else {
      fatalError(
        """
        AIOContext: process() was called by a task or an actor that the loop runs; it will go on by \
        itself when they await
        """)
    }
    return turn(byHand: true)
  }

  /// One turn: iterations that accept requests, submit them, and run what has completed, until no
  /// work is left or the turn's budget is used up, in which case another is scheduled.
  ///
  /// - Parameter byHand: Whether the caller is a block of the queue, which may be a part of an
  ///   actor: then no other part of an actor may run before the turn has returned.
  /// - Returns: The number of completions that were run, or sent to their queues.
  @discardableResult
  private func turn(byHand: Bool = false) -> Int {
    if turnThread.exchange(Self.thread, ordering: .acquiring) != 0 {
      fatalError(
        """
        AIOContext: a turn of the loop began while another was running: either process() was \
        called inside a completion handler, or the context's queue is not serial
        """)
    }
    defer { turnThread.store(0, ordering: .releasing) }
    guard life == .open else {
      leaveJobs()
      return 0
    }
    scheduler.turnBegins()
    if byHand { scheduler.turnByHandBegins() }
    turns += 1
    let outerPass = byHand ? 0 : jobs.enter()
    var budget = TurnBudget(byHand: byHand)
    unsafe engine.pointee.beginTurn()
    while iterate(&budget) {}
    if !byHand { jobs.leave(outerPass) }
    flush()
    if isClosing.load(ordering: .sequentiallyConsistent) { endIfIdle() }
    if !byHand { leaveJobs() }
    return budget.completions
  }

  /// Makes sure that the jobs that are left run: in a turn, where their requests are submitted
  /// together, unless the loop has ended.
  private func leaveJobs() {
    guard jobs.hasJobs else { return }
    if life == .open { scheduler.yield() } else { jobs.runLater() }
  }

  /// One iteration of a turn.
  ///
  /// - Returns: Whether the turn continues.
  private func iterate(_ budget: inout TurnBudget) -> Bool {
    let isBehind = takeInAndSubmit(&budget)
    let hasJobs = !budget.byHand && jobs.hasJobs
    let isReady = unsafe engine.pointee.isPollReady || readiness.hasHandlers || !blocks.isEmpty
    // A hook has asked for another.
    let hasHooks = !submitHooks.isEmpty
    guard unsafe engine.pointee.hasCompletions || hasJobs || isReady || hasHooks else {
      flush()
      guard isBehind else { return !waitOrSleep(&budget) }
      guard budget.byHand && !budget.isUsedUp else {
        scheduler.yield()
        return false
      }
      unsafe engine.pointee.beginTurn()
      return true
    }
    scheduler.completionsWereSeen()
    budget.isReadyToSleep = false
    if hasHooks { budget.jobs += 1 }
    guard !budget.isUsedUp else {
      scheduler.yield()
      return false
    }
    budget.iterations += 1
    if isReady { runReady(&budget) }
    deliver(&budget)
    if hasJobs || !budget.byHand && jobs.hasJobs { budget.jobs += jobs.run(until: budget.end) }
    return true
  }

  /// Processes what has arrived, submits what the kernel and the offload threads have room for, and
  /// reaps completions.
  ///
  /// - Returns: Whether work was left because it would take too long.
  private func takeInAndSubmit(_ budget: inout TurnBudget) -> Bool {
    var isBehind = false
    if admission.hasWaiters { isBehind = !admitWaiters() }
    if !submitHooks.isEmpty { runSubmitHooks() }
    if isPollWanted.load(ordering: .relaxed) { preparePolling() }
    if unsafe !engine.pointee.collect() { isBehind = true }
    switch unsafe engine.pointee.submit() {
    case .settled: scheduler.retrySucceeded()
    case .stalled: scheduler.retryLater()
    case .overBudget: isBehind = true
    }
    if unsafe engine.pointee.hasOffloaded {
      unsafe engine.pointee.hasOffloaded = false
      offloadPool.start(for: self)
    }
    if unsafe engine.pointee.isPollUnsupported { watchReadinessByDispatch() }
    if unsafe !engine.pointee.reap() { scheduler.retryLater() }
    return isBehind
  }

  // MARK: Readiness and blocks

  /// Schedules a turn after a change for which one is needed: a first descriptor to poll, or a
  /// handler to run. From any thread.
  func readinessChanged(hasHandlers: Bool) {
    if Fork.isChild { return }
    let isFirst = !isPolling.load(ordering: .relaxed)
    // Stored before a turn is scheduled: one that runs looks at it before it sleeps.
    if isFirst { isPollWanted.store(true, ordering: .sequentiallyConsistent) }
    if hasHandlers || isFirst { scheduler.scheduleTurn() }
  }

  /// Runs a block in a turn. From any thread.
  func async(_ body: @escaping @Sendable () -> Void) {
    if Fork.isChild { return }
    if blocks.append(Block(body)) {
      scheduler.scheduleTurn()
    } else {
      queue.async(execute: body)
    }
  }

  /// Begins a send. From any thread.
  func start(_ send: FileSend) {
    if turnThread.load(ordering: .relaxed) == Self.thread {
      send.start()
    } else {
      async { send.start() }
    }
  }

  /// Runs a block before the next submission. Called on the queue.
  func beforeSubmit(_ body: @escaping @Sendable () -> Void) {
    if Fork.isChild { return }
    guard jobs.isCurrent else {
      fatalError(
        "AIOContext: beforeSubmit was not called on the context's queue, '\(queue.label)'")
    }
    guard life == .open else { return queue.async(execute: body) }
    submitHooks.append(Block(body))
    scheduler.scheduleTurn()
  }

  private func runSubmitHooks() {
    swap(&submitHooks, &spareHooks)
    for hook in spareHooks { hook.run() }
    spareHooks.removeAll(keepingCapacity: true)
  }

  /// Runs the handlers of descriptors and timers that are ready, and blocks.
  private func runReady(_ budget: inout TurnBudget) {
    if unsafe engine.pointee.isPollReady {
      unsafe engine.pointee.isPollReady = false
      readiness.takeReady(into: &readyEvents)
      budget.jobs += readyEvents.count
      for event in readyEvents {
        switch event {
        case .source(let source): readiness.handler(of: source)?.run()
        case .poll(let poll, let events): poll.completion(.success(events))
        }
      }
      readyEvents.removeAll(keepingCapacity: true)
    }
    if readiness.hasHandlers {
      let taken = readiness.takeHandlers()
      for handler in taken.handlers { handler.run() }
      for (poll, error) in taken.polls { poll.completion(.failure(error)) }
      budget.jobs += taken.handlers.count + taken.polls.count
    }
    if !blocks.isEmpty { budget.jobs += blocks.run(until: budget.end) }
  }

  /// Makes the engine poll the epoll set, once there is one.
  private func preparePolling() {
    // Before the look, so that a later descriptor is seen, too.
    isPollWanted.store(false, ordering: .sequentiallyConsistent)
    guard !isPolling.load(ordering: .relaxed), let descriptor = readiness.descriptor else { return }
    isPolling.store(true, ordering: .relaxed)
    if pollsByDispatch {
      unsafe engine.pointee.isPollUnsupported = true
    } else {
      unsafe engine.pointee.pollDescriptor = descriptor
    }
  }

  /// Watches the epoll set by a Dispatch source, because the kernel has no AIO poll.
  private func watchReadinessByDispatch() {
    unsafe engine.pointee.isPollUnsupported = false
    guard readinessSource == nil, let descriptor = readiness.descriptor else { return }
    let source = DispatchSource.makeReadSource(fileDescriptor: descriptor, queue: queue)
    source.setEventHandler { [self] in
      unsafe engine.pointee.isPollReady = true
      turn()
    }
    source.setCancelHandler { [self] in readiness.destroy() }
    source.activate()
    readinessSource = source
  }

  /// Admits waiters to free slots, or ends them if the context closes.
  ///
  /// - Returns: Whether no waiter is left for whom that could be done now.
  private func admitWaiters() -> Bool {
    if isClosing.load(ordering: .sequentiallyConsistent) {
      return admission.endClosed(limit: Self.admissionsPerPass)
    }
    admission.admit(to: table, limit: Self.admissionsPerPass)
    return admission.isEmpty || table.free.count == 0
  }

  /// Delivers one batch of completions, before the requests that their handlers make are submitted.
  private func deliver(_ budget: inout TurnBudget) {
    var left = unsafe min(engine.pointee.nextDeliveryBatch(), budget.completionsLeft)
    defer { budget.areCopiesUsedUp = unsafe engine.pointee.isBounceBudgetUsedUp }
    while left > 0, let completion = unsafe engine.pointee.next() {
      left -= 1
      budget.completions += 1
      deliver(completion)
      // Handlers may take long: the clock is read after each eight.
      if left & 7 == 0, budget.isLate { break }
    }
  }

  @inline(__always)
  private func deliver(_ completion: consuming Engine<SystemKernel, Delivery>.Completion) {
    let result: Result<Int, AIOError> =
      completion.result >= 0 || completion.result == Request<Delivery>.wouldWait
      ? .success(
        completion.request.options.contains(.append) && completion.result >= 0
          ? Int(completion.request.offset) : completion.result)
      : .failure(.failed(completion.request, errno: Int32(-completion.result)))
    let slot = completion.slot
    // The request's buffers and file are released before the handler runs.
    switch completion.takeAttachment() {
    case .callback(let callback, let queue?):
      crossQueueBatch.add(callback, result, slot: slot, to: queue)
    case .callback(let callback, nil):
      table.free.give(slot)
      callback(result)
    case .task(let resumption, let isIsolated):
      table.free.give(slot)
      if isIsolated {
        resumption.resume(returning: result)
      } else {
        jobs.resumeNonisolated { resumption.resume(returning: result) }
      }
    }
  }

  /// Sends results to other queues, and publishes the statistics.
  private func flush() {
    if !crossQueueBatch.isEmpty { crossQueueBatch.flush(crossQueueHandlers, for: self) }
    publish()
  }

  // MARK: Waiting

  /// Without work: waits in the ring, if that pays, or returns the queue.
  ///
  /// - Returns: Whether the turn has ended.
  private func waitOrSleep(_ budget: inout TurnBudget) -> Bool {
    if !budget.byHand, !budget.isReadyToSleep {
      switch waitInRing(isLate: budget.hasWaited && budget.isLate) {
      case .something:
        budget.hasWaited = true
        return false
      case .yields:
        scheduler.yield()
        return true
      case .nothing:
        break
      }
    }
    budget.isReadyToSleep = true
    guard scheduler.prepareToSleep(hasArrivals) else { return false }
    // A memory file has completed everything when `io_submit(2)` returns. If a kernel did not, no
    // event would report the completion.
    if unsafe engine.pointee.unsignalled > 0 { scheduler.retryLater() }
    return true
  }

  /// Whether other threads have left work for the loop.
  private func hasArrivals() -> Bool {
    table.hasArrivals || !admission.isEmpty && table.free.count > 0 || !blocks.isEmpty
      || readiness.hasHandlers || isPollWanted.load(ordering: .sequentiallyConsistent)
  }

  private enum Waited {
    /// A completion, or an arrival.
    case something
    case nothing
    /// The queue's other blocks have to run first.
    case yields
  }

  /// Waits for the next completion, for a bounded time, if that pays.
  ///
  /// - Parameter isLate: Whether the queue's other blocks have to run before.
  private func waitInRing(isLate: Bool) -> Waited {
    let (inKernel, offloaded) = unsafe (engine.pointee.inKernel, engine.pointee.offloaded)
    guard
      let mode = unsafe wait.mode(
        inKernel: inKernel, offloaded: offloaded, isPolling: engine.pointee.isPollArmed)
    else { return .nothing }
    if isLate { return .yields }
    let began = ckernel_monotonic_nanoseconds()
    let longest = wait.longest(mode)
    var waited: UInt64 = 0
    while waited < longest {
      if mode == .spin {
        if unsafe !engine.pointee.reap() { scheduler.retryLater() }
      } else {
        let left = longest &- waited
        scheduler.waitInRing(unless: hasArrivals) {
          if unsafe !engine.pointee.reap(waiting: left) { scheduler.retryLater() }
        }
      }
      waited = ckernel_monotonic_nanoseconds() &- began
      if unsafe engine.pointee.hasCompletions || engine.pointee.isPollReady || hasArrivals() {
        wait.waited(waited, successfully: true, mode: mode)
        return .something
      }
    }
    wait.waited(waited, successfully: false, mode: mode)
    return .nothing
  }

  private func publish() {
    let counts = unsafe engine.pointee.counts
    let accounts = unsafe engine.pointee.accounts
    let (turns, wakeups, hops) = (turns, scheduler.wakeups, crossQueueBatch.hops)
    let (waits, waitHits) = (wait.waits, wait.successes)
    published.withLock { statistics in
      statistics.accepted = counts.accepted
      statistics.succeeded = counts.succeeded
      statistics.failed = counts.failed
      statistics.cancelled = counts.cancelled
      statistics.pending = accounts.pending
      statistics.offloaded = accounts.offloaded
      statistics.inKernel = accounts.inKernel
      statistics.submitCalls = counts.submitCalls
      statistics.submittedRequests = counts.submittedRequests
      statistics.largestBatch = counts.largestBatch
      statistics.longestSubmit = .nanoseconds(counts.longestSubmit)
      statistics.turns = turns
      statistics.wakeups = wakeups
      statistics.waits = waits
      statistics.waitHits = waitHits
      statistics.queueHops = hops
      statistics.nowaitRefusals = counts.nowaitRefusals
      statistics.directReads = counts.directReads
      statistics.offloadSubmits = counts.offloadSubmits
      statistics.retries = counts.retries
      statistics.continuations = counts.continuations
    }
  }

  // MARK: The end

  /// Ends the loop if every slot is free, which means that no request is left anywhere.
  private func endIfIdle() {
    // A thread that closes the context may not have cancelled the sources yet: its turn follows.
    // Asked first, because that thread closes the admission before, which may have used a slot.
    guard life == .open, readiness.isClosed, table.free.count == table.capacity, admission.isEmpty,
      !readiness.hasHandlers, submitHooks.isEmpty, blocks.close()
    else { return }
    life = .ending
    scheduler.prepareToClose()
    // Handlers on other queues have run before close calls back; and io_destroy takes tens of
    // milliseconds, so it gets a thread of its own.
    crossQueueHandlers.notify(queue: DispatchQueue(label: "DispatchAIO.teardown")) { [self] in
      // This ends the poll request, after which its epoll set may be closed.
      kernel.destroy()
      if let readinessSource { readinessSource.cancel() } else { readiness.destroy() }
      scheduler.close()
    }
  }

  /// Calls the closing callbacks. The source's cancel handler calls this last.
  private func closed() {
    life = .closed
    let completions = closeCompletions
    closeCompletions = []
    for completion in completions { completion() }
  }
}
