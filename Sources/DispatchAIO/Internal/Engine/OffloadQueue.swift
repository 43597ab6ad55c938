// SPDX-License-Identifier: Apache-2.0
//
// The items that wait for an offload thread, and the rules of which thread may take one: all of the
// offload pool except the threads themselves. It knows no Dispatch and no clock, so that tests
// drive it step by step.
//
// The rules, which keep one file that is slow, or hangs, from holding up the others:
//
//   - Files take turns. Of one file at most one write is under way (its others would wait for the
//     same inode lock), one sync, and `readsPerFile` reads; a sync does not wait behind writes.
//   - An item is *claimed* when a thread takes it, right before the system call: until then its
//     request can be cancelled.
//   - Writes of a file that continue each other are taken together, for one system call: the kernel
//     would take them one by one under the inode's lock.
//   - `base` threads work at a time. One whose call has taken longer than `stuckAfter` does not
//     count, and is replaced, up to `limit` threads in all.

/// The kind of an offload thread's work on a file.
enum OffloadKind: Int {
  case sync, write, read

  init(_ verb: Verb) {
    switch verb {
    case .read: self = .read
    case .write: self = .write
    case .fsync, .fdatasync: self = .sync
    }
  }
}

/// The items that wait for an offload thread: slots of a request table, or of another. Any thread
/// may call it; no call sleeps.
final class OffloadQueue: Sendable {
  /// The time in one call after which a thread counts as stuck, in nanoseconds.
  static let stuckAfter: UInt64 = 20_000_000

  /// The most writes that are taken together with another.
  private static let mostContinuations = 127

  /// The work of a thread.
  struct Work {
    let item: UInt32
    fileprivate let file: UInt32
    fileprivate let kind: OffloadKind
  }

  private struct Item {
    var next = UInt32.max
    var previous = UInt32.max
    var file: UInt32 = 0
    var kind = OffloadKind.read
    var isWaiting = false
  }

  private struct List {
    var first = UInt32.max
    var last = UInt32.max
    var isEmpty: Bool { first == .max }
  }

  /// The waiting items of one file, by kind, and the numbers of those under way.
  private struct File {
    private var waiting = InlineArray<3, List>(repeating: List())
    private var active = InlineArray<3, Int>(repeating: 0)
    /// The next runnable file; only while `isRunnable`.
    var nextRunnable = UInt32.max
    /// Whether it is in the list of files of which an item may begin.
    var isRunnable = false

    subscript(kind: OffloadKind) -> List {
      get { waiting[kind.rawValue] }
      set { waiting[kind.rawValue] = newValue }
    }

    subscript(active kind: OffloadKind) -> Int {
      get { active[kind.rawValue] }
      set { active[kind.rawValue] = newValue }
    }
  }

  private struct Thread {
    var isRunning = false
    /// The time at which its call began; 0 outside of calls.
    var since: UInt64 = 0
  }

  private struct State {
    var items: [Item] = []
    var files: [File] = []
    var firstRunnable = UInt32.max
    var lastRunnable = UInt32.max
    var runnableCount = 0
    var threads: [Thread]
    var running = 0
    /// Threads that were started and have not asked for work.
    var starting = 0
  }

  private let state: Lock<State>
  private let base: Int
  private let readsPerFile: Int
  private let writesPerFile: Int
  private let claim: @Sendable (UInt32) -> Bool
  private let continues: @Sendable (UInt32, UInt32) -> Bool

  /// - Parameters:
  ///   - base: The number of threads that work at a time while none is stuck.
  ///   - limit: The most threads, stuck ones included.
  ///   - sharesFiles: Whether one file may have all of the threads.
  ///   - claim: Makes an item the taker's; `false` if it was cancelled. Called under the queue's
  ///     lock, as is `continues`.
  ///   - continues: Whether one write begins where another ends, so that one call may do both.
  init(
    base: Int, limit: Int, sharesFiles: Bool = false,
    continues: @escaping @Sendable (UInt32, UInt32) -> Bool = { _, _ in false },
    claim: @escaping @Sendable (UInt32) -> Bool
  ) {
    precondition(base >= 1 && limit >= base)
    self.base = base
    readsPerFile = sharesFiles ? base : max(1, base / 2)
    writesPerFile = sharesFiles ? base : 1
    self.claim = claim
    self.continues = continues
    state = Lock(State(threads: Array(repeating: Thread(), count: limit)))
  }

  // MARK: Items

  /// Adds an item behind the others of its file and kind. It must not be in the queue.
  ///
  /// - Parameter file: The file's number.
  func append(_ item: UInt32, file: UInt32, kind: OffloadKind) {
    state.withLock { state in
      while state.items.count <= item { state.items.append(Item()) }
      while state.files.count <= file { state.files.append(File()) }
      assert(!state.items[Int(item)].isWaiting)
      let last = state.files[Int(file)][kind].last
      state.items[Int(item)] = Item(previous: last, file: file, kind: kind, isWaiting: true)
      if last == .max {
        state.files[Int(file)][kind].first = item
      } else {
        state.items[Int(last)].next = item
      }
      state.files[Int(file)][kind].last = item
      makeRunnable(file, &state)
    }
  }

  /// Removes an item whose request was cancelled, if it is in the queue.
  func remove(_ item: UInt32) {
    state.withLock { state in
      guard item < state.items.count, state.items[Int(item)].isWaiting else { return }
      unlink(item, &state)
    }
  }

  // MARK: Threads

  /// Takes the number of a thread that has to be started: the thread calls `next` until that
  /// returns no work. Called after `append`, until it returns `nil`.
  func threadToStart(now: UInt64) -> Int? {
    state.withLock { threadToStart(now: now, &$0) }
  }

  /// Whether items wait that no thread may begin. The caller repeats the check after a delay, when
  /// threads may count as stuck.
  var isBacklogged: Bool { state.withLock { $0.runnableCount > $0.starting } }

  /// The answer to a thread that asks for work.
  struct Step {
    /// The next work; if `nil`, the thread ends.
    var work: Work?
    /// The number of another thread that has to be started.
    var threadToStart: Int?
    /// As `OffloadQueue.isBacklogged`.
    var isBacklogged = false
  }

  /// Ends a thread's work, and takes its next.
  ///
  /// - Parameters:
  ///   - finished: The work that it has just done; `nil` in its first call.
  ///   - more: Is set to the writes that are done in one call with the work's own item, in order.
  func next(
    for thread: Int, finished: Work?, now: UInt64, more: inout [UInt32]
  ) -> Step {
    more.removeAll(keepingCapacity: true)
    return state.withLock { state in
      if let finished {
        addActive(-1, finished.file, finished.kind, &state)
        makeRunnable(finished.file, &state)
      } else {
        state.starting -= 1
      }
      state.threads[thread].since = 0
      guard !isCrowded(now, &state), let work = take(&state, &more) else {
        state.threads[thread].isRunning = false
        state.running -= 1
        return step(nil, now, &state)
      }
      state.threads[thread].since = now
      return step(work, now, &state)
    }
  }

  // MARK: Under the lock

  private func step(_ work: Work?, _ now: UInt64, _ state: inout State) -> Step {
    let thread = threadToStart(now: now, &state)
    return Step(
      work: work, threadToStart: thread, isBacklogged: state.runnableCount > state.starting)
  }

  private func threadToStart(now: UInt64, _ state: inout State) -> Int? {
    guard state.runnableCount > state.starting, state.running < state.threads.count,
      state.running < base || state.running - stuck(now, state) < base,
      let thread = state.threads.firstIndex(where: { !$0.isRunning })
    else { return nil }
    state.threads[thread].isRunning = true
    state.running += 1
    state.starting += 1
    return thread
  }

  /// Whether there are more threads than there should be, because some are no longer stuck: then
  /// the one that asks for work ends.
  private func isCrowded(_ now: UInt64, _ state: inout State) -> Bool {
    state.running > base && state.running - stuck(now, state) > base
  }

  private func stuck(_ now: UInt64, _ state: State) -> Int {
    var count = 0
    for thread in state.threads
    where thread.since != 0 && now > thread.since && now - thread.since > Self.stuckAfter {
      count += 1
    }
    return count
  }

  private func take(_ state: inout State, _ more: inout [UInt32]) -> Work? {
    while let file = popRunnable(&state) {
      for kind in [OffloadKind.sync, .write, .read] where mayBegin(kind, state.files[Int(file)]) {
        while case let item = state.files[Int(file)][kind].first, item != .max {
          unlink(item, &state)
          // It was cancelled, and the canceller completes the request.
          guard claim(item) else { continue }
          if kind == .write { takeContinuations(of: item, file, &state, &more) }
          addActive(1, file, kind, &state)
          makeRunnable(file, &state)
          return Work(item: item, file: file, kind: kind)
        }
      }
    }
    return nil
  }

  /// Takes the writes each of which begins where the one before ends.
  private func takeContinuations(
    of first: UInt32, _ file: UInt32, _ state: inout State, _ more: inout [UInt32]
  ) {
    var last = first
    while case let item = state.files[Int(file)][.write].first, item != .max,
      more.count < Self.mostContinuations, continues(last, item)
    {
      unlink(item, &state)
      guard claim(item) else { return }
      more.append(item)
      last = item
    }
  }

  private func unlink(_ item: UInt32, _ state: inout State) {
    let entry = state.items[Int(item)]
    if entry.previous == .max {
      state.files[Int(entry.file)][entry.kind].first = entry.next
    } else {
      state.items[Int(entry.previous)].next = entry.next
    }
    if entry.next == .max {
      state.files[Int(entry.file)][entry.kind].last = entry.previous
    } else {
      state.items[Int(entry.next)].previous = entry.previous
    }
    state.items[Int(item)].isWaiting = false
  }

  private func addActive(_ change: Int, _ file: UInt32, _ kind: OffloadKind, _ state: inout State) {
    state.files[Int(file)][active: kind] += change
    assert(state.files[Int(file)][active: kind] >= 0)
  }

  private func mayBegin(_ kind: OffloadKind, _ file: File) -> Bool {
    let limit =
      switch kind {
      case .sync: 1
      case .write: writesPerFile
      case .read: readsPerFile
      }
    return !file[kind].isEmpty && file[active: kind] < limit
  }

  /// Adds a file to the runnable ones, if an item of it may begin now.
  private func makeRunnable(_ file: UInt32, _ state: inout State) {
    let entry = state.files[Int(file)]
    guard !entry.isRunnable,
      mayBegin(.sync, entry) || mayBegin(.write, entry) || mayBegin(.read, entry)
    else { return }
    state.files[Int(file)].isRunnable = true
    state.files[Int(file)].nextRunnable = .max
    if state.lastRunnable == .max {
      state.firstRunnable = file
    } else {
      state.files[Int(state.lastRunnable)].nextRunnable = file
    }
    state.lastRunnable = file
    state.runnableCount += 1
  }

  private func popRunnable(_ state: inout State) -> UInt32? {
    guard state.firstRunnable != .max else { return nil }
    let file = state.firstRunnable
    state.firstRunnable = state.files[Int(file)].nextRunnable
    if state.firstRunnable == .max { state.lastRunnable = .max }
    state.files[Int(file)].isRunnable = false
    state.runnableCount -= 1
    return file
  }
}
