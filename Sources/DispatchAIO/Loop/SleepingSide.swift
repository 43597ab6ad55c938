// SPDX-License-Identifier: Apache-2.0
//
// The threads that may sleep. They take what the loop must not submit itself, in an order that
// keeps one slow file from holding up the others: files take turns; of one file, one write at a
// time is under way (its others would wait for the same inode lock), and its reads have at most
// half of the threads. How many requests wait here is bounded by the engine.
//
// A thread that has nothing to do looks out for more, for a moment, when the last time more came
// soon: an append takes some 60 us, and to wake a thread for it as long again.

internal import CLinux
internal import Dispatch
internal import Synchronization

final class SleepingSide: Sendable {
  /// What there is to do: a slot of the request table, and how.
  struct Work: Sendable {
    let slot: UInt32
    let route: Route
    let isWrite: Bool
    let file: ObjectIdentifier
  }

  /// What does it: made for each thread, on its first work, and then used by that thread only.
  typealias Worker = (Work) -> Void

  /// What waits, and is under way, of one file.
  private struct FileQueue {
    var reads = Queue()
    var writes = Queue()
    var activeReads = 0
    var activeWrites = 0
    /// Whether it is in the line of files that have something to start.
    var isInLine = false

    var isIdle: Bool { reads.isEmpty && writes.isEmpty && activeReads == 0 && activeWrites == 0 }
  }

  private struct State {
    var files: [ObjectIdentifier: FileQueue] = [:]
    /// Files that have something to start, the one that waits longest first.
    var line: [ObjectIdentifier] = []
    /// Threads that have nothing to do.
    var idle: [Int]
    /// How many threads look out for work.
    var lookouts = 0
  }

  /// A serial queue, which has a thread while it has work.
  ///
  /// - Safety: `@unchecked Sendable` because its variables are touched on the queue only.
  private final class Thread: @unchecked Sendable {
    let queue: DispatchQueue
    lazy var worker = makeWorker()
    private let makeWorker: @Sendable () -> Worker
    /// When it had nothing more to do, and how long it took until it had; in nanoseconds.
    var idleSince: UInt64 = 0
    var lastGap = UInt64.max

    init(_ number: Int, _ makeWorker: @escaping @Sendable () -> Worker) {
      queue = DispatchQueue(label: "DispatchAIO.sleeping.\(number)")
      self.makeWorker = makeWorker
    }
  }

  /// For how long a thread looks out for work, in nanoseconds.
  private static let lookout: UInt64 = 50_000

  private let state: Lock<State>
  /// Changes with each piece of work that comes.
  private let arrivals = Atomic<UInt>(0)
  private let threads: [Thread]
  private let mostReads: Int
  private let mostWrites: Int

  /// - Parameters:
  ///   - threads: how many may sleep at once, at the most.
  ///   - sharesFiles: whether one file may have all of them.
  ///   - makeWorker: makes what does the work of one thread.
  init(threads: Int, sharesFiles: Bool, makeWorker: @escaping @Sendable () -> Worker) {
    state = Lock(State(idle: Array((0..<threads).reversed())))
    self.threads = (0..<threads).map { Thread($0, makeWorker) }
    mostReads = sharesFiles ? threads : max(1, threads / 2)
    mostWrites = sharesFiles ? threads : 1
  }

  /// Takes something to do. From the loop; never waits.
  ///
  /// - Parameter owner: kept alive until the thread that does it has nothing more to do.
  func take(_ work: Work, for owner: some AnyObject & Sendable) {
    let thread = state.withLock { state -> Int? in
      var file = state.files[work.file] ?? FileQueue()
      if work.isWrite { file.writes.append(work) } else { file.reads.append(work) }
      state.files[work.file] = file
      lineUp(work.file, &state)
      return state.line.count > state.lookouts ? state.idle.popLast() : nil
    }
    arrivals.add(1, ordering: .releasing)
    if let thread { wake(thread, for: owner) }
  }

  private func wake(_ thread: Int, for owner: some AnyObject & Sendable) {
    threads[thread].queue.async { [self] in run(thread, for: owner) }
  }

  /// One thread, until there is nothing for it to do.
  ///
  /// - Parameter owner: alive until this returns.
  private func run(_ number: Int, for owner: some AnyObject & Sendable) {
    defer { withExtendedLifetime(owner) {} }
    let thread = threads[number]
    thread.lastGap = clinux_monotonic_nanoseconds() &- thread.idleSince
    var done: Work?
    var isLookingOut = false
    while true {
      let seen = arrivals.load(ordering: .acquiring)
      let looksOut = thread.lastGap < 4 * Self.lookout && !isLookingOut
      let (next, another) = state.withLock { state -> (Work?, Int?) in
        if let done { finished(done, &state) }
        done = nil
        if isLookingOut { state.lookouts -= 1 }
        let next = start(&state)
        guard next == nil else {
          // What this one has taken is no longer in the way of the rest of its file.
          return (next, state.line.count > state.lookouts ? state.idle.popLast() : nil)
        }
        if looksOut { state.lookouts += 1 } else { state.idle.append(number) }
        return (nil, nil)
      }
      if let another { wake(another, for: owner) }
      if let next {
        if isLookingOut { thread.lastGap = clinux_monotonic_nanoseconds() &- thread.idleSince }
        isLookingOut = false
        thread.worker(next)
        done = next
        continue
      }
      if !isLookingOut { thread.idleSince = clinux_monotonic_nanoseconds() }
      guard looksOut else { return }
      isLookingOut = true
      while arrivals.load(ordering: .relaxed) == seen,
        clinux_monotonic_nanoseconds() &- thread.idleSince < Self.lookout
      {}
    }
  }

  // MARK: Under the lock

  private func start(_ state: inout State) -> Work? {
    guard !state.line.isEmpty else { return nil }
    let name = state.line.removeFirst()
    guard var file = state.files[name] else { return nil }
    file.isInLine = false
    let work: Work?
    if file.activeWrites < mostWrites, let write = file.writes.popFirst() {
      file.activeWrites += 1
      work = write
    } else if file.activeReads < mostReads, let read = file.reads.popFirst() {
      file.activeReads += 1
      work = read
    } else {
      work = nil
    }
    state.files[name] = file
    lineUp(name, &state)
    return work
  }

  private func finished(_ work: Work, _ state: inout State) {
    guard var file = state.files[work.file] else { return }
    if work.isWrite { file.activeWrites -= 1 } else { file.activeReads -= 1 }
    state.files[work.file] = file.isIdle ? nil : file
    lineUp(work.file, &state)
  }

  /// Puts a file at the end of the line, if it has something that may start now.
  private func lineUp(_ name: ObjectIdentifier, _ state: inout State) {
    guard let file = state.files[name], !file.isInLine else { return }
    guard
      !file.writes.isEmpty && file.activeWrites < mostWrites
        || !file.reads.isEmpty && file.activeReads < mostReads
    else { return }
    state.files[name]?.isInLine = true
    state.line.append(name)
  }

  /// First in, first out.
  private struct Queue {
    private var works: [Work] = []
    private var first = 0

    var isEmpty: Bool { first == works.count }

    mutating func append(_ work: Work) { works.append(work) }

    mutating func popFirst() -> Work? {
      guard first < works.count else { return nil }
      defer {
        first += 1
        if first == works.count {
          works.removeAll(keepingCapacity: true)
          first = 0
        } else if first == 256 {
          works.removeFirst(first)
          first = 0
        }
      }
      return works[first]
    }
  }
}
