// SPDX-License-Identifier: Apache-2.0
//
// The loop ties the engine to Dispatch. All of the engine's work is done in *turns*, on one serial
// queue. A turn runs when the kernel has counted a completion on the eventfd (the source's
// handler), when a thread has left something for the loop and found it asleep (`wake`), or when the
// caller says so (`process`).
//
// Nobody but a turn touches the engine. A request made by a completion handler takes the same way
// through the inbox as one from any other thread, only that the loop is awake then, and takes it
// in before the turn ends: so all that the handlers of one turn ask for goes down in one
// `io_submit`, and so does all that other blocks on the queue ask for before the turn they woke.

internal import CLinux
internal import Dispatch
internal import Glibc
internal import Synchronization
internal import SystemPackage

/// - Safety: `@unchecked Sendable` because what is not constant, atomic or Sendable itself (the
///   engine, the departures, the life and its closing callbacks) is touched in turns and in blocks
///   on `queue` only, which is serial; a turn traps when it is not.
final class Loop: @unchecked Sendable {
  /// How many completions a turn runs before it lets the queue's other blocks run.
  static let completionsPerTurn = 256
  /// How long a turn may take before it does so, in nanoseconds; looked at between rounds.
  static let longestTurn: UInt64 = 1_000_000
  /// How long to wait before asking a kernel again that refused while nothing was in flight.
  static let stallDelay = DispatchTimeInterval.milliseconds(1)

  struct Settings: Sendable {
    var queueDepth: Int
    var pendingLimit: Int
    var policy: SubmissionPolicy
    var sleepingThreads: Int
  }

  let queue: DispatchQueue
  let settings: Settings
  let table: RequestTable<Delivery>
  private let kernel: LinuxKernel
  private var engine: Engine<LinuxKernel, Delivery>
  private let event: EventDescriptor
  private let source: any DispatchSourceRead
  /// Set once, at the end of `init`.
  private var sleepingSide: SleepingSide?

  /// Whether a turn is running or queued, and will look for mail before it ends.
  private let isAwake = Atomic<Bool>(false)
  /// Whether a turn is running, to catch a second one.
  private let isInTurn = Atomic<Bool>(false)
  /// Whether new requests are refused.
  private let isClosing = Atomic<Bool>(false)
  /// Marks `queue`, so that one can ask whether one is on it.
  private let onQueue = DispatchSpecificKey<Void>()

  private var departures = Departures()
  /// Entered while handlers are on their way to other queues.
  private let departing = DispatchGroup()
  private var isStallTimerSet = false

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
    self.kernel = kernel
    do {
      event = try EventDescriptor()
    } catch {
      kernel.destroy()
      throw error
    }
    table = RequestTable(capacity: settings.queueDepth + settings.pendingLimit)
    engine = Engine(
      kernel: kernel, table: table, queueDepth: settings.queueDepth, event: event.rawValue,
      policy: settings.policy)
    source = DispatchSource.makeReadSource(
      fileDescriptor: event.rawValue, queue: self.queue)
    sleepingSide = SleepingSide(
      threads: settings.sleepingThreads, sharesFiles: settings.policy == .performEverything
    ) { [unowned self] in makeWorker() }
    // Both handlers hold the loop, so that it outlives its context until it has closed; Dispatch
    // drops them when the source has been cancelled.
    source.setEventHandler { [self] in
      event.drain()
      wakeUps += 1
      // If it is awake, a turn is queued already, which will look; one more each time would leave
      // the queue's other blocks less and less of it.
      if !isAwake.load(ordering: .relaxed) { turn() }
    }
    source.setCancelHandler { [self] in
      event.close()
      closed()
    }
    self.queue.setSpecific(key: onQueue, value: ())
    source.activate()
  }

  deinit {
    queue.setSpecific(key: onQueue, value: nil)
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
    guard let slot = table.free.take() else {
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
    let key = table.accept(request, in: slot)
    wake()
    return key
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
    queue.async { [self] in
      if let completion {
        guard life != .closed else { return completion() }
        whenClosed.append(completion)
      }
      turn()
    }
  }

  var statistics: AIOStatistics { published.withLock { $0 } }

  /// Makes sure that a turn looks for mail.
  @inline(__always)
  private func wake() {
    if isAwake.load(ordering: .sequentiallyConsistent) { return }
    if !isAwake.exchange(true, ordering: .sequentiallyConsistent) {
      queue.async { [self] in turn() }
    }
  }

  // MARK: The turn

  /// A turn, on behalf of the caller of `process()`.
  func turnByHand() -> Int {
    if Fork.isChild {
      fatalError("AIOContext: process() was called in a child of fork, which has no contexts")
    }
    guard DispatchQueue.getSpecific(key: onQueue) != nil else {
      fatalError("AIOContext: process() was not called on the context's queue, '\(queue.label)'")
    }
    return turn()
  }

  /// Runs until nothing is left to do, or the turn's share is used up, in which case another is on
  /// its way.
  ///
  /// - Returns: how many completions were run, or sent to their queues.
  @discardableResult
  func turn() -> Int {
    if isInTurn.exchange(true, ordering: .acquiring) {
      fatalError(
        """
        AIOContext: a turn of the loop began while another was running: either process() was \
        called inside a completion handler, or the context's queue is not serial
        """)
    }
    defer { isInTurn.store(false, ordering: .releasing) }
    guard life == .open else { return 0 }
    isAwake.store(true, ordering: .relaxed)
    turns += 1
    let began = clinux_monotonic_nanoseconds()
    var completions = 0
    while true {
      engine.collect()
      if engine.submit() == .stalled { setStallTimer() }
      while let (slot, route, file, isWrite) = engine.nextAsleep() {
        sleepingSide?.take(
          .init(slot: slot, route: route, isWrite: isWrite, file: ObjectIdentifier(file)),
          for: self)
      }
      if !engine.reap() { setStallTimer() }
      if !engine.hasCompletions {
        isAwake.store(false, ordering: .sequentiallyConsistent)
        if !table.hasMail { break }
        isAwake.store(true, ordering: .relaxed)
        continue
      }
      if completions >= Self.completionsPerTurn
        || completions > 0 && clinux_monotonic_nanoseconds() &- began > Self.longestTurn
      {
        queue.async { [self] in turn() }
        break
      }
      while completions < Self.completionsPerTurn, let completion = engine.next() {
        completions += 1
        deliver(completion)
      }
    }
    departures.send(departing)
    publish()
    if isClosing.load(ordering: .sequentiallyConsistent) { endIfIdle() }
    return completions
  }

  @inline(__always)
  private func deliver(_ completion: consuming Engine<LinuxKernel, Delivery>.Completion) {
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
      engine.tryAgain()
      turn()
    }
  }

  private func publish() {
    let counts = engine.counts
    let accounts = engine.accounts
    published.withLock { statistics in
      statistics.submitted = counts.submitted
      statistics.completed = counts.succeeded
      statistics.failed = counts.failed
      statistics.cancelled = counts.cancelled
      statistics.pending = accounts.pending
      statistics.inKernel = accounts.inKernel
      statistics.asleep = engine.asleep
      statistics.submitCalls = counts.submitCalls
      statistics.submittedByCalls = counts.submittedByCalls
      statistics.largestBatch = counts.largestBatch
      statistics.longestSubmit = .nanoseconds(counts.longestSubmit)
      statistics.turns = turns
      statistics.wakeUps = wakeUps
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
    let callbacks = whenClosed
    whenClosed = []
    for callback in callbacks { callback() }
  }
}
