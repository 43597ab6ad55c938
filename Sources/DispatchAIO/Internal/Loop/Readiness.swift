// SPDX-License-Identifier: Apache-2.0
//
// Sockets, pipes and timers in the ring. A context has one epoll set, made on first use, and the
// engine keeps one poll request for that set in flight: ten thousand descriptors cost one slot.
// When the request completes, the loop takes the events from here and runs their handlers.
//
// Everything is under one lock, so that sources are made, suspended, resumed and cancelled on any
// thread; the system calls made under it are short and do not sleep. Handlers run outside of it, on
// the loop's queue.

internal import CKernel
internal import HeapModule
internal import SystemPackage

final class Readiness: Sendable {
  /// The most descriptors whose events one pass takes.
  static let descriptorsPerPass = 64
  /// The number of the timerfd in the set.
  private static let timerNumber = UInt64.max

  /// A descriptor in the set.
  struct Watched {
    var generation: UInt32
    var reader: (any ReadinessSource)?
    var writer: (any ReadinessSource)?
    var polls = PollTable.List()
    /// Whether it was found to be a stream socket that does not block.
    var isStream = false
    /// The events that the set waits for; `nil` while the descriptor is not in it.
    var events: UInt32?

    var isUnused: Bool { reader == nil && writer == nil && polls.isEmpty }

    /// The events that the set has to wait for.
    func wanted(_ table: PollTable) -> UInt32 {
      var wanted = table.events(of: polls)
      if let reader, reader.isRunning { wanted |= AIOPollEvents.readable.rawValue }
      if let writer, writer.isRunning { wanted |= AIOPollEvents.writable.rawValue }
      return wanted
    }
  }

  fileprivate struct TimerEntry: Comparable {
    let deadline: UInt64
    let number: UInt64

    static func < (a: TimerEntry, b: TimerEntry) -> Bool {
      (a.deadline, a.number) < (b.deadline, b.number)
    }
    static func == (a: TimerEntry, b: TimerEntry) -> Bool { a.number == b.number }
  }

  fileprivate struct WeakTimer { weak var timer: (any ReadinessTimer)? }

  /// What an event is for.
  enum Ready {
    case source(any ReadinessSource)
    case poll(OneShotPoll, AIOPollEvents)
  }

  struct State {
    var set: PollSet?
    var watched: [Int32: Watched] = [:]
    var polls = PollTable()
    var generation: UInt32 = 0
    /// Registration and cancel handlers that have not run.
    var handlers: [Block] = []
    /// One-shot polls that ended without an event, and whose completions have not run.
    var endedPolls: [(OneShotPoll, AIOError)] = []
    /// Handlers of sources that were cancelled, which are released outside of the lock.
    var retired: [Block] = []
    var isClosed = false

    /// The deadlines. Stale entries, those of no scheduled timer, go when it is their turn, or when
    /// there are too many.
    fileprivate var timers = Heap<TimerEntry>()
    /// The timers with a deadline, by the numbers of their entries.
    fileprivate var scheduledTimers: [UInt64: any ReadinessTimer] = [:]
    /// All timers, those without a deadline included, which are nobody's but the caller's. Those
    /// that have gone are removed when there are `timersAtPurge`.
    fileprivate var everyTimer: [ObjectIdentifier: WeakTimer] = [:]
    fileprivate var timersAtPurge = 64
    fileprivate var timerDescriptor: Int32?
    fileprivate var lastTimerNumber: UInt64 = 0
    /// The time at which the timerfd fires; 0 if it does not.
    fileprivate var armedDeadline: UInt64 = 0
  }

  private let state = Lock(State())

  init() {}

  /// The set's descriptor, for the poll request; `nil` before the first use.
  var descriptor: Int32? { state.withLock { $0.set?.descriptor } }

  func withLock<Result>(_ body: (inout sending State) -> sending Result) -> sending Result {
    state.withLock(body)
  }

  /// Calls `body` with the state, unless this is a forked child, in which it returns `nil`: the
  /// descriptors of the set and the timer are the parent's, too, so that a change would be one of
  /// the parent's; and the thread that holds the lock may not exist.
  func unlessForked<Result>(
    _ body: (inout sending State) -> sending Result
  ) -> sending Result? {
    Fork.isChild ? nil : state.withLock(body)
  }

  // MARK: Descriptors

  /// Adds a source of a descriptor. It waits for no event before it is activated.
  ///
  /// - Throws: The errno of `epoll_create1(2)` or `epoll_ctl(2)`; `EEXIST` if the descriptor has a
  ///   source of that kind; `ECANCELED` if the context has been closed.
  func add(_ source: any ReadinessSource) throws(Errno) {
    let isWriter = source.isWriter
    try change(source.fd) { watched in
      guard (isWriter ? watched.writer : watched.reader) == nil else { return .fileExists }
      if isWriter { watched.writer = source } else { watched.reader = source }
      return nil
    }
  }

  /// Adds a one-shot poll.
  ///
  /// - Throws: As for a source.
  func add(_ poll: OneShotPoll) throws(Errno) -> PollTable.ID {
    let answer = state.withLock { state -> Result<PollTable.ID, Errno> in
      if state.isClosed { return .failure(.canceled) }
      do throws(Errno) {
        let set = try Self.set(&state)
        var watched = state.watched[poll.fd] ?? Self.watched(&state)
        let id = state.polls.append(poll, to: &watched.polls)
        do throws(Errno) {
          try update(poll.fd, &watched, set, state.polls, isNew: true)
        } catch {
          state.polls.take(from: &watched.polls) { $1 == id }
          throw error
        }
        state.watched[poll.fd] = watched
        return .success(id)
      } catch {
        return .failure(error)
      }
    }
    return try answer.get()
  }

  private func change(_ fd: Int32, _ body: (inout Watched) -> Errno?) throws(Errno) {
    let failure = state.withLock { state -> Errno? in
      if state.isClosed { return .canceled }
      do throws(Errno) {
        let set = try Self.set(&state)
        var watched = state.watched[fd] ?? Self.watched(&state)
        if let refusal = body(&watched) { return refusal }
        try update(fd, &watched, set, state.polls, isNew: true)
        state.watched[fd] = watched
        return nil
      } catch {
        return error
      }
    }
    if let failure { throw failure }
  }

  private static func set(_ state: inout State) throws(Errno) -> PollSet {
    if let set = state.set { return set }
    let set = try PollSet()
    state.set = set
    return set
  }

  private static func watched(_ state: inout State) -> Watched {
    state.generation &+= 1
    return Watched(generation: state.generation)
  }

  /// Changes the events that the set waits for to those wanted of a descriptor.
  ///
  /// - Parameter isNew: Whether a source or a poll is added. The set is asked then even if it waits
  ///   for these events already: the descriptor may have been closed under an earlier one, which
  ///   takes it out of the set, and the number be another's now.
  private func update(
    _ fd: Int32, _ watched: inout Watched, _ set: PollSet, _ polls: PollTable, isNew: Bool = false
  ) throws(Errno) {
    let wanted = watched.wanted(polls)
    guard isNew || watched.events != wanted else { return }
    let number = UInt64(UInt32(bitPattern: fd)) | UInt64(watched.generation) << 32
    if watched.events != nil {
      do throws(Errno) {
        try set.modify(fd, events: wanted, number: number)
        watched.events = wanted
        return
      } catch {
        guard isNew, error == .noSuchFileOrDirectory else { throw error }
      }
    }
    try set.add(fd, events: wanted, number: number)
    watched.events = wanted
  }

  /// Updates the set after a source was resumed or suspended.
  ///
  /// - Returns: The errno of `epoll_ctl(2)`, if it failed: only for a descriptor that has left the
  ///   set meanwhile, or that was closed.
  @discardableResult
  func update(_ fd: Int32, _ state: inout State) -> Errno? {
    guard let set = state.set, var watched = state.watched[fd] else { return nil }
    do throws(Errno) {
      try update(fd, &watched, set, state.polls)
      state.watched[fd] = watched
      return nil
    } catch {
      return error
    }
  }

  /// Removes a source that was cancelled.
  func remove(_ source: any ReadinessSource, _ state: inout State) {
    guard var watched = state.watched[source.fd] else { return }
    if watched.reader === source { watched.reader = nil }
    if watched.writer === source { watched.writer = nil }
    settle(source.fd, watched, &state)
  }

  /// Removes a one-shot poll.
  ///
  /// - Returns: The poll; `nil` if it has ended.
  func remove(_ id: PollTable.ID) -> OneShotPoll? {
    state.withLock { take(id, &$0) }
  }

  /// Ends a one-shot poll as cancelled: its completion is among the handlers when this returns.
  ///
  /// - Returns: Whether it was; `false` if it has ended, and in a forked child.
  func cancel(_ id: PollTable.ID) -> Bool {
    unlessForked { state in
      guard let poll = take(id, &state) else { return false }
      state.endedPolls.append((poll, .cancelledPoll(poll.subject)))
      return true
    } ?? false
  }

  private func take(_ id: PollTable.ID, _ state: inout State) -> OneShotPoll? {
    guard let poll = state.polls[id], var watched = state.watched[poll.fd] else { return nil }
    state.polls.take(from: &watched.polls) { $1 == id }
    settle(poll.fd, watched, &state)
    return poll
  }

  /// Keeps a descriptor that is in use, and removes one that is not.
  private func settle(_ fd: Int32, _ watched: Watched, _ state: inout State) {
    guard let set = state.set else { return }
    if watched.isUnused {
      if watched.events != nil { set.remove(fd) }
      state.watched[fd] = nil
    } else {
      var watched = watched
      try? update(fd, &watched, set, state.polls)
      state.watched[fd] = watched
    }
  }

  // MARK: On the loop's queue

  /// Takes the events of descriptors that are ready, and of timers that are due.
  ///
  /// - Parameter ready: Gets the sources and polls to run, in order. The handler of each source is
  ///   asked for by `handler(of:)` just before it runs, since the one before may have suspended or
  ///   cancelled it.
  func takeReady(into ready: inout [Ready]) {
    state.withLock { state in
      guard let set = state.set else { return }
      unsafe withUnsafeTemporaryAllocation(
        of: PollSet.Event.self, capacity: Self.descriptorsPerPass
      ) { buffer in
        let count = unsafe set.ready(into: buffer)
        for index in 0..<count {
          let event = unsafe buffer[index]
          if event.data == Self.timerNumber {
            collectTimers(&state, into: &ready)
          } else {
            collect(event, set, &state, into: &ready)
          }
        }
      }
    }
  }

  private func collect(
    _ event: PollSet.Event, _ set: PollSet, _ state: inout State, into ready: inout [Ready]
  ) {
    let fd = Int32(bitPattern: UInt32(truncatingIfNeeded: event.data))
    // The number may have been given to another descriptor in the meantime.
    guard let watched = state.watched[fd],
      watched.generation == UInt32(truncatingIfNeeded: event.data >> 32)
    else { return }
    let events = AIOPollEvents(rawValue: event.events)
    let (ends, before): (AIOPollEvents, Int) = ([.hangUp, .error], ready.count)
    // Not for `.priority`, which only a poll asks for: there may be nothing to read.
    if !events.isDisjoint(with: ends.union([.readable, .readHangUp])),
      let reader = watched.reader, reader.isRunning
    {
      ready.append(.source(reader))
    }
    if !events.isDisjoint(with: ends.union(.writable)), let writer = watched.writer,
      writer.isRunning
    {
      ready.append(.source(writer))
    }
    if !watched.polls.isEmpty {
      var watched = watched
      state.polls.take(from: &watched.polls) { poll, _ in
        let answer = events.intersection(poll.events.union(ends))
        guard !answer.isEmpty else { return false }
        ready.append(.poll(poll, answer))
        return true
      }
      settle(fd, watched, &state)
    }
    if ready.count == before, !events.isDisjoint(with: ends) {
      // A hang-up or an error, which the set reports unasked, of a descriptor for which nobody
      // waits now: it leaves the set until a source of it runs.
      set.remove(fd)
      var watched = watched
      watched.events = nil
      state.watched[fd] = watched.isUnused ? nil : watched
    }
  }

  /// The handler of a source with an event; `nil` if it has none, or no longer runs.
  func handler(of source: any ReadinessSource) -> Block? {
    state.withLock { state in
      guard source.isRunning, source.willRun(&state) else { return nil }
      return source.eventHandler
    }
  }

  /// What `takeHandlers` takes.
  struct Handlers {
    /// Registration and cancel handlers, to be run.
    let handlers: [Block]
    /// The polls that ended without an event.
    let polls: [(OneShotPoll, AIOError)]
    /// Handlers of sources that were cancelled, to be released.
    let retired: [Block]
  }

  /// Takes what is to be run, and released, outside of the lock.
  func takeHandlers() -> Handlers {
    state.withLock { state in
      defer {
        state.handlers.removeAll(keepingCapacity: true)
        state.endedPolls.removeAll(keepingCapacity: true)
        state.retired.removeAll(keepingCapacity: true)
      }
      return Handlers(
        handlers: state.handlers, polls: state.endedPolls, retired: state.retired)
    }
  }

  /// Whether `takeHandlers` has something.
  var hasHandlers: Bool {
    state.withLock { !$0.handlers.isEmpty || !$0.endedPolls.isEmpty || !$0.retired.isEmpty }
  }

  /// What is known of a socket that is to be sent to: a descriptor that is watched is open, and not
  /// another one.
  func knowledge(of fd: Int32) -> (isStream: Bool, isClosed: Bool) {
    state.withLock { ($0.watched[fd]?.isStream ?? false, $0.isClosed) }
  }

  /// Learns that a descriptor is a stream socket that does not block, if it is watched.
  func noteStream(_ fd: Int32) {
    state.withLock { state in
      // To modify what may be there allocates memory, whether it is or not.
      guard state.watched[fd] != nil else { return }
      state.watched[fd]?.isStream = true
    }
  }

  /// Whether `close` has been called.
  var isClosed: Bool { state.withLock { $0.isClosed } }

  /// Cancels all sources and polls, and refuses new ones.
  func close() {
    state.withLock { state in
      guard !state.isClosed else { return }
      state.isClosed = true
      for watched in state.watched.values {
        watched.reader?.cancel(&state)
        watched.writer?.cancel(&state)
      }
      // What is left has polls.
      var ended: [(OneShotPoll, AIOError)] = []
      for (fd, watched) in state.watched {
        var polls = watched.polls
        state.polls.take(from: &polls) { poll, _ in
          ended.append((poll, .contextClosed(poll.subject)))
          return true
        }
        // It stays open, and would keep the set ready, for nobody.
        if watched.events != nil { state.set?.remove(fd) }
      }
      state.endedPolls += ended
      state.watched = [:]
      for entry in state.everyTimer.values { entry.timer?.cancel(&state) }
      state.everyTimer = [:]
      state.timers = Heap()
    }
  }

  /// Closes the epoll set and the timerfd. The poll request must have ended.
  func destroy() {
    state.withLock { state in
      state.set?.close()
      state.set = nil
      if let descriptor = state.timerDescriptor {
        try? FileDescriptor(rawValue: descriptor).close()
      }
      state.timerDescriptor = nil
    }
  }

  // MARK: Timers

  /// Makes the timerfd on first use.
  ///
  /// - Throws: The errno of `timerfd_create(2)`, `epoll_create1(2)` or `epoll_ctl(2)`; `ECANCELED`
  ///   if the context has been closed.
  func prepareTimers() throws(Errno) {
    let failure = state.withLock { state -> Errno? in
      if state.isClosed { return .canceled }
      guard state.timerDescriptor == nil else { return nil }
      let descriptor = ckernel_timer_create()
      guard descriptor >= 0 else { return Errno(rawValue: -descriptor) }
      do throws(Errno) {
        let set = try Self.set(&state)
        try set.add(
          descriptor, events: AIOPollEvents.readable.rawValue, number: Self.timerNumber)
        state.timerDescriptor = descriptor
        return nil
      } catch {
        try? FileDescriptor(rawValue: descriptor).close()
        return error
      }
    }
    if let failure { throw failure }
  }

  /// Adds a timer, which is cancelled when the context is closed.
  ///
  /// - Throws: `ECANCELED` if that has happened.
  func add(_ timer: any ReadinessTimer) throws(Errno) {
    // The last reference to a timer may be one of these: it must not end under the lock, as what
    // its handlers hold may use it.
    var present: [any ReadinessTimer] = []
    let isClosed = state.withLock { state in
      if state.isClosed { return true }
      if state.everyTimer.count >= state.timersAtPurge {
        present = state.everyTimer.values.compactMap(\.timer)
        state.everyTimer = [:]
        for timer in present {
          state.everyTimer[ObjectIdentifier(timer)] = WeakTimer(timer: timer)
        }
        state.timersAtPurge = max(64, 2 * present.count)
      }
      state.everyTimer[ObjectIdentifier(timer)] = WeakTimer(timer: timer)
      return false
    }
    withExtendedLifetime(present) {}
    if isClosed { throw .canceled }
  }

  /// Adds an entry for a timer's deadline, which takes the place of its earlier one.
  func schedule(_ timer: any ReadinessTimer, _ state: inout State) {
    unschedule(timer, &state)
    state.lastTimerNumber += 1
    timer.number = state.lastTimerNumber
    state.scheduledTimers[timer.number] = timer
    state.timers.insert(TimerEntry(deadline: timer.deadline, number: timer.number))
    let stale = state.timers.count - state.scheduledTimers.count
    if stale > 64, stale > state.timers.count / 2 { dropStale(&state) }
    arm(&state)
  }

  /// Makes the entry of a timer stale. The caller holds the timer: it must not end under the lock,
  /// as what its handlers hold may use it.
  func unschedule(_ timer: any ReadinessTimer, _ state: inout State) {
    state.scheduledTimers[timer.number] = nil
    timer.number = 0
  }

  private func dropStale(_ state: inout State) {
    let scheduled = state.scheduledTimers
    state.timers = Heap(state.timers.unordered.filter { scheduled[$0.number] != nil })
  }

  /// Sets the timerfd to fire no later than at the first deadline.
  private func arm(_ state: inout State) {
    guard let first = state.timers.min, let descriptor = state.timerDescriptor else { return }
    guard state.armedDeadline == 0 || first.deadline < state.armedDeadline else { return }
    // 0 would disarm it.
    state.armedDeadline = max(1, first.deadline)
    _ = ckernel_timer_set(descriptor, state.armedDeadline)
  }

  private func collectTimers(_ state: inout State, into ready: inout [Ready]) {
    let now = ckernel_monotonic_nanoseconds()
    state.armedDeadline = 0
    while let first = state.timers.min, first.deadline <= now {
      _ = state.timers.popMin()
      guard let timer = state.scheduledTimers.removeValue(forKey: first.number) else { continue }
      // The caller holds it from here on.
      ready.append(.source(timer))
      timer.fired(now: now)
      if timer.interval > 0 { schedule(timer, &state) }
    }
    // Setting the timerfd ends its readability, also if it is disarmed.
    if state.timers.isEmpty, let descriptor = state.timerDescriptor {
      _ = ckernel_timer_set(descriptor, 0)
    }
    arm(&state)
  }
}
