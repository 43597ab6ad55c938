// SPDX-License-Identifier: Apache-2.0
//
// Where requests wait that the table has no slot for: those of tasks, which are suspended
// meanwhile. First come, first served, and before requests made by callback, which get `.full`
// rather than the slot that somebody waits for. No thread waits for anything here.

internal import Synchronization

/// A request that waits for a slot, or has got one: to name it by when cancelling.
///
/// - Safety: `@unchecked Sendable` because everything in it is touched under the lock of its queue,
///   `isCancelled` and the request of a waiter that has left the queue excepted: the former is
///   atomic, and the latter is its taker's alone.
final class Waiter: @unchecked Sendable {
  fileprivate let isCancelled = Atomic<Bool>(false)
  /// Set when it left the queue for the table.
  fileprivate var id: RequestID?
  /// While it waits; `nil` before and after.
  fileprivate var request: Request<Delivery>?
  fileprivate var next: Waiter?
  fileprivate unowned(unsafe) var previous: Waiter?
  fileprivate var isQueued = false

  init() {}

  /// To be called once, by whoever took it out of the queue.
  fileprivate func takeRequest() -> Request<Delivery> {
    guard let request = request.take() else {
      preconditionFailure("admission queue: a request left twice")
    }
    return request
  }
}

/// The requests that wait for a slot.
final class AdmissionQueue: Sendable {
  /// A list through the waiters, so that one leaves it from the middle at once.
  private struct State {
    var first: Waiter?
    unowned(unsafe) var last: Waiter?
    var count = 0
    var isClosed = false

    mutating func append(_ waiter: Waiter) {
      waiter.isQueued = true
      // Alive: it is in the list, whose first waiter this holds, and each the next.
      unsafe waiter.previous = unsafe last
      if let last = unsafe last { last.next = waiter } else { first = waiter }
      unsafe last = waiter
      count += 1
    }

    mutating func remove(_ waiter: Waiter) {
      let (before, after) = unsafe (waiter.previous, waiter.next)
      if let before { before.next = after } else { first = after }
      if let after { unsafe after.previous = before } else { unsafe last = before }
      waiter.next = nil
      unsafe waiter.previous = nil
      waiter.isQueued = false
      count -= 1
    }

    mutating func popFirst() -> Waiter? {
      guard let waiter = first else { return nil }
      remove(waiter)
      return waiter
    }
  }

  private let state = Lock(State())
  private let count = Atomic<Int>(0)

  /// Whether somebody waits. Relaxed, for those who would like to overtake: whoever arrives at the
  /// same moment arrives before or after.
  var hasWaiters: Bool {
    @inline(__always) get { count.load(ordering: .relaxed) > 0 }
  }

  /// Whether somebody waits. As `Inbox.isEmpty` is, sequentially consistent for the loop that
  /// prepares to sleep.
  var isEmpty: Bool { count.load(ordering: .sequentiallyConsistent) == 0 }

  /// Takes a request in. The caller then wakes the loop: slots may have become free before anybody
  /// waited.
  ///
  /// - Returns: why not, in which case the request is the caller's to end.
  func add(_ request: consuming Request<Delivery>, _ waiter: Waiter) -> AIOError? {
    let subject = request.subject
    // The waiter is in no list yet: nobody else looks at it.
    waiter.request = consume request
    return state.withLock { state in
      let refusal: AIOError? =
        if state.isClosed {
          .contextClosed(subject)
        } else if waiter.isCancelled.load(ordering: .relaxed) {
          // Cancelled before it got here: `cancel` did not find it, and left word.
          .cancelled(subject, transferred: 0)
        } else {
          nil
        }
      guard refusal == nil else {
        waiter.request = nil
        return refusal
      }
      state.append(waiter)
      count.store(state.count, ordering: .sequentiallyConsistent)
      return nil
    }
  }

  /// Moves requests to the table, as far as it has slots. By the loop.
  ///
  /// - Parameter limit: how many, at the most.
  func admit(to table: RequestTable<Delivery>, limit: Int) {
    for _ in 0..<limit {
      guard let slot = table.free.take() else { return }
      let isAdmitted = state.withLock { state in
        guard let waiter = state.popFirst() else { return false }
        count.store(state.count, ordering: .relaxed)
        // Under the lock, so that a canceller finds it in one of the two places.
        waiter.id = table.accept(waiter.takeRequest(), in: slot)
        return true
      }
      guard isAdmitted else { return table.free.give(slot) }
    }
  }

  /// Takes a request out before its turn, and ends it as cancelled, in this call.
  ///
  /// - Returns: its ID, if it is in the table already.
  func cancel(_ waiter: Waiter) -> RequestID? {
    let (isRemoved, id) = state.withLock { state -> (Bool, RequestID?) in
      waiter.isCancelled.store(true, ordering: .relaxed)
      guard waiter.isQueued else { return (false, waiter.id) }
      state.remove(waiter)
      count.store(state.count, ordering: .relaxed)
      return (true, nil)
    }
    if isRemoved { end(waiter) { .cancelled($0, transferred: 0) } }
    return id
  }

  /// Refuses new waiters from now on.
  func close() {
    state.withLock { $0.isClosed = true }
  }

  /// Ends waiters of a queue that was closed, in this call.
  ///
  /// - Parameter limit: how many, at the most.
  /// - Returns: whether all have been ended.
  func endClosed(limit: Int) -> Bool {
    for _ in 0..<limit {
      let waiter = state.withLock { state -> Waiter? in
        guard state.isClosed, let waiter = state.popFirst() else { return nil }
        count.store(state.count, ordering: .relaxed)
        return waiter
      }
      guard let waiter else { return true }
      end(waiter) { .contextClosed($0) }
    }
    return isEmpty
  }

  private func end(_ waiter: Waiter, _ error: (AIOError.Subject) -> AIOError) {
    let request = waiter.takeRequest()
    request.file.release()
    request.attachment.completion(.failure(error(request.subject)))
  }
}

extension RequestID {
  /// The ID as one word other than 0 and 1, which mean other things to whoever keeps it in an
  /// atomic.
  var word: UInt64 { UInt64(generation) << 32 | UInt64(slot) + 2 }

  init?(word: UInt64) {
    guard word > 1 else { return nil }
    self.init(
      slot: UInt32(truncatingIfNeeded: word) - 2, generation: UInt32(truncatingIfNeeded: word >> 32)
    )
  }
}
