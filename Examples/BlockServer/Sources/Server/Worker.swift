// SPDX-License-Identifier: Apache-2.0
//
// The calls on an export that may block, on a queue of their own, in turns: each client that has
// work gets some milliseconds of it done, and then the others. It is done in pieces that take
// milliseconds at the most (see Export+Blocking), whatever was asked for, and lock no more than
// their own range, for no longer. So nobody waits for more than a turn of each of the others, and
// reads and writes of a range for no more than the pieces that have begun.

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

  fileprivate struct State {
    var clients: [ObjectIdentifier: Client] = [:]
    /// The clients that have work and none that is active, in the order of their turns.
    var turns: Deque<ObjectIdentifier> = []
    var active = 0
  }

  /// The most pieces that wait for their ranges, so that others need not wait behind one.
  private static let mostActive = 8
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
    state.withLock { state in
      let client = job.client
      state.clients[client, default: Client()].waiting.append(job)
      if let entry = state.clients[client], entry.active == nil, entry.waiting.count == 1 {
        state.turns.append(client)
      }
    }
    beginTurns()
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

  private func beginTurns() {
    while let job = state.withLock({ $0.next(Self.mostActive) }) {
      lockPiece(of: job) { ticket in queue.async { [self] in run(job, ticket) } }
    }
  }

  /// Locks the range of a job's next piece, if it needs one, and calls `locked` with the ticket, if
  /// it has it at once. If not, the job runs when it is granted.
  ///
  /// - Returns: whether it has it.
  @discardableResult
  private func lockPiece(of job: Job, _ locked: (RangeLocks.Ticket?) -> Void) -> Bool {
    guard let range = job.export.lockedRange(of: job) else {
      locked(nil)
      return true
    }
    let (ticket, isGranted) = ranges.acquire(
      range, exclusive: true,
      granted: { [self] ticket in queue.async { [self] in run(job, ticket) } })
    if isGranted { locked(ticket) }
    return isGranted
  }

  /// Does a job's turn: a piece, and further ones as long as the turn lasts.
  private func run(_ job: Job, _ ticket: RangeLocks.Ticket?) {
    let end = ContinuousClock.now + Self.turn
    var ticket = ticket
    while true {
      let isDone = job.isDropped.load(ordering: .relaxed) || job.export.perform(job)
      if let ticket { ranges.release(ticket) }
      if isDone || ContinuousClock.now > end {
        state.withLock { $0.end(job, isDone: isDone) }
        if isDone {
          let loop = job.command.loop
          loop.context.async { loop.finished(job) }
        }
        return beginTurns()
      }
      guard lockPiece(of: job, { ticket = $0 }) else { return }
    }
  }
}

extension Worker.State {
  /// The job whose turn it is.
  fileprivate mutating func next(_ mostActive: Int) -> Job? {
    guard active < mostActive, let client = turns.popFirst() else { return nil }
    let job = clients[client]!.waiting.removeFirst()  // Who has a turn has work.
    clients[client]!.active = job
    active += 1
    return job
  }

  /// Notes that a piece is done.
  fileprivate mutating func end(_ job: Job, isDone: Bool) {
    active -= 1
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
