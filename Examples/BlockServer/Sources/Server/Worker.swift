// SPDX-License-Identifier: Apache-2.0
//
// The calls on an export that may block, on a queue of their own, in turns: each client that has
// work gets some milliseconds of it done, and then the others. It is done in pieces that take
// milliseconds at the most (see Export+Blocking), whatever was asked for. A piece locks no more
// than its own range, and only when it is its turn; one that had to wait for its range is done
// before all others as soon as it has it, because others may wait for it. So nobody waits for more
// than a turn of each of the others, and writes of a range for no more than the pieces of it that
// were there before.

import DequeModule
import Dispatch
import DispatchAIO
import ServerSupport
import Synchronization

/// A request that is done by the worker, piece by piece.
///
/// - Safety: `@unchecked Sendable` because one thread at a time has it: that of the piece, and then
///   the command's loop.
final class Job: @unchecked Sendable {
  let command: Command
  /// Where the next piece begins.
  var position: UInt64
  var result: Result<[Export.Extent], Export.Failure> = .success([])
  /// Whether the client has gone, so that nothing more has to be done.
  let isDropped = Atomic<Bool>(false)

  init(_ command: Command) {
    self.command = command
    position = command.request.offset
  }

  // A command in use has a connection, which has chosen an export.
  fileprivate var export: Export { command.connection!.export }
  fileprivate var client: ObjectIdentifier { ObjectIdentifier(command.connection!) }
}

/// The worker of one export, which the connections of all loops share. Called from any thread.
final class Worker: Sendable {
  fileprivate struct Client {
    var waiting: Deque<Job> = []
    /// The job of which a piece is done, or waits for its range.
    var active: Job?
  }

  /// What is to be done next: pieces of a job, or the one that has its range already.
  fileprivate struct Turn {
    var job: Job
    var ticket: RangeLocks.Ticket?
  }

  fileprivate struct State {
    var clients: [ObjectIdentifier: Client] = [:]
    /// The clients that have work and none that is active, in the order of their turns.
    var turns: Deque<ObjectIdentifier> = []
    /// The pieces that had to wait for their ranges, and have them.
    var granted: Deque<Turn> = []
    /// The number of pieces that wait for their ranges.
    var parked = 0
    /// Whether `work` runs, or will.
    var isWorking = false
  }

  /// The most pieces that wait for their ranges, so that others need not wait behind one.
  private static let mostParked = 8
  /// The time after which a job's turn ends, with the piece that is being done.
  private static let turn = Duration.milliseconds(2)

  private let ranges: RangeLocks
  private let queue: DispatchQueue
  private let state = Lock(State())

  /// - Parameter ranges: the locks of the export.
  init(label: String, ranges: RangeLocks) {
    self.ranges = ranges
    queue = DispatchQueue(label: label)
  }

  /// Does a job, and then calls `finished` of its command's loop, on that loop.
  func add(_ job: Job) {
    change { state in
      let client = job.client
      state.clients[client, default: Client()].waiting.append(job)
      if let entry = state.clients[client], entry.active == nil, entry.waiting.count == 1 {
        state.turns.append(client)
      }
    }
  }

  /// Drops the jobs of a client that has gone: those that have not begun, which are returned, and
  /// what is left of the one that has.
  func drop(_ client: Connection) -> [Command] {
    let client = ObjectIdentifier(client)
    return state.withLock { state in
      guard let entry = state.clients[client] else { return [] }
      if let active = entry.active {
        active.isDropped.store(true, ordering: .relaxed)
        state.clients[client]?.waiting = []
      } else {
        state.clients[client] = nil
        state.turns.removeAll { $0 == client }
      }
      return entry.waiting.map(\.command)
    }
  }

  /// Changes what there is to do, and sees to it that it is done.
  private func change(_ body: (inout State) -> Void) {
    let isIdle = state.withLock { state in
      body(&state)
      defer { state.isWorking = true }
      return !state.isWorking
    }
    if isIdle { queue.async { [self] in work() } }
  }

  // MARK: On the queue

  private func work() {
    while let turn = state.withLock({ $0.next(Self.mostParked) }) { take(turn) }
  }

  /// Does pieces of a job for as long as its turn lasts.
  private func take(_ turn: Turn) {
    let job = turn.job
    let end = ContinuousClock.now + Self.turn
    // Whoever waited for its range has others behind it: they come next.
    let isOnePiece = turn.ticket != nil
    var ticket = turn.ticket
    var isDone = false
    repeat {
      if ticket == nil, let range = job.export.lockedRange(of: job) {
        ticket = lock(range, for: job)
        if ticket == nil { return }
      }
      isDone = job.isDropped.load(ordering: .relaxed) || job.export.perform(job)
      if let held = ticket { ranges.release(held) }
      ticket = nil
    } while !isDone && !isOnePiece && ContinuousClock.now < end && !isAnyGranted
    state.withLock { $0.end(job, isDone: isDone) }
    if isDone {
      let loop = job.command.loop
      loop.context.async { loop.finished(job) }
    }
  }

  private var isAnyGranted: Bool { state.withLock { !$0.granted.isEmpty } }

  /// Locks the range of a job's next piece.
  ///
  /// - Returns: `nil` if others have it; the piece is done as soon as it is granted.
  private func lock(_ range: Range<UInt64>, for job: Job) -> RangeLocks.Ticket? {
    // Counted first, because it may be granted before `acquire` returns.
    state.withLock { $0.parked += 1 }
    let (ticket, isGranted) = ranges.acquire(
      range, exclusive: true,
      granted: { [self] ticket in
        change { state in
          state.parked -= 1
          state.granted.append(Turn(job: job, ticket: ticket))
        }
      })
    guard isGranted else { return nil }
    state.withLock { $0.parked -= 1 }
    return ticket
  }
}

extension Worker.State {
  /// The job whose turn it is; `nil` if there is none, and the work ends.
  fileprivate mutating func next(_ mostParked: Int) -> Worker.Turn? {
    if let turn = granted.popFirst() { return turn }
    guard parked < mostParked, let client = turns.popFirst() else {
      isWorking = false
      return nil
    }
    let job = clients[client]!.waiting.removeFirst()  // Who has a turn has work.
    clients[client]!.active = job
    return Worker.Turn(job: job, ticket: nil)
  }

  /// Notes that a turn is over.
  fileprivate mutating func end(_ job: Job, isDone: Bool) {
    let client = job.client
    clients[client]!.active = nil  // It was there, with this job.
    if !isDone { clients[client]!.waiting.prepend(job) }
    if clients[client]!.waiting.isEmpty {
      clients[client] = nil
    } else {
      turns.append(client)
    }
  }
}
