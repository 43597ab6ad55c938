// SPDX-License-Identifier: Apache-2.0
//
// The queue of requests for which the table has no slot: those of suspended tasks. They are
// admitted in order of arrival, and before requests with a callback, which are refused with `.full`
// while there are waiters. No thread blocks here.

internal import Synchronization

/// A request that waits for a slot, or has one: the handle by which it is cancelled.
///
/// - Safety: `@unchecked Sendable` because everything in it is touched under the lock of its queue,
///   except `isCancelled`, which is atomic, and the request of a waiter that has left the queue,
///   which only its taker touches.
final class Waiter: @unchecked Sendable {
  fileprivate let isCancelled = Atomic<Bool>(false)
  /// The request's ID, set when it moves from the queue to the table.
  fileprivate var id: RequestID?
  /// The request while it waits; `nil` before and after.
  fileprivate var request: Request<Delivery>?
  fileprivate var next: Waiter?
  fileprivate unowned(unsafe) var previous: Waiter?
  fileprivate var isQueued = false

  init() {}

  /// Takes the request out. Called once, by the thread that removed the waiter from the queue.
  fileprivate func takeRequest() -> Request<Delivery> {
    guard let request = request.take() else {
      preconditionFailure("admission queue: a request left twice")
    }
    return request
  }
}

/// The requests that wait for a slot.
final class AdmissionQueue: Sendable {
  /// A list linked through the waiters, from which one is removed in constant time.
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

  /// Whether there are waiters. Relaxed: for a request that arrives at the same moment either
  /// answer is right.
  var hasWaiters: Bool {
    @inline(__always) get { count.load(ordering: .relaxed) > 0 }
  }

  /// Whether there are no waiters. Sequentially consistent, as `Inbox.isEmpty`, for a loop that
  /// prepares to sleep.
  var isEmpty: Bool { count.load(ordering: .sequentiallyConsistent) == 0 }

  /// Accepts a request if there are no waiters, and the table has a slot; otherwise adds it to the
  /// waiters. Ends it in this call if it was cancelled, or the queue was closed. The caller then
  /// schedules a turn, for the request, or because slots may have become free before it was added.
  func add(
    _ request: consuming Request<Delivery>, _ waiter: Waiter, to table: RequestTable<Delivery>
  ) {
    let subject = request.subject
    // The waiter is in no list yet, so that no other thread touches it.
    waiter.request = consume request
    let refusal = state.withLock { state in
      let refusal: AIOError? =
        if state.isClosed {
          .contextClosed(subject)
        } else if waiter.isCancelled.load(ordering: .relaxed) {
          // It was cancelled before this call: `cancel` did not find it, and set the mark.
          .cancelled(subject, transferred: 0)
        } else {
          nil
        }
      guard refusal == nil else { return refusal }
      if state.first == nil, let slot = table.free.take() {
        // Under the lock, as in `admit`.
        waiter.id = table.accept(waiter.takeRequest(), in: slot)
        return nil
      }
      state.append(waiter)
      count.store(state.count, ordering: .sequentiallyConsistent)
      return nil
    }
    if let refusal { end(waiter) { _ in refusal } }
  }

  /// Moves requests to the table while it has slots. Called by the loop.
  ///
  /// - Parameter limit: The most waiters to take.
  func admit(to table: RequestTable<Delivery>, limit: Int) {
    for _ in 0..<limit {
      guard let slot = table.free.take() else { return }
      let isAdmitted = state.withLock { state in
        guard let waiter = state.popFirst() else { return false }
        count.store(state.count, ordering: .relaxed)
        // Under the lock, so that a cancellation finds it either in the queue or in the table.
        waiter.id = table.accept(waiter.takeRequest(), in: slot)
        return true
      }
      guard isAdmitted else { return table.free.give(slot) }
    }
  }

  /// Removes a waiter, and ends its request as cancelled in this call.
  ///
  /// - Returns: The request's ID, if it is in the table already.
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

  /// Closes the queue, which then refuses waiters.
  func close() {
    state.withLock { $0.isClosed = true }
  }

  /// Ends the requests of waiters in this call, if the queue was closed.
  ///
  /// - Parameter limit: The most waiters to take.
  /// - Returns: Whether all have been ended.
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
    let error = error(request.subject)
    request.end(error)
  }
}

extension RequestID {
  /// The ID as one word other than 0 and 1, which `CancellationState` uses for other states.
  var word: UInt64 { UInt64(generation) << 32 | UInt64(slot) + 2 }

  init?(word: UInt64) {
    guard word > 1 else { return nil }
    self.init(
      slot: UInt32(truncatingIfNeeded: word) - 2, generation: UInt32(truncatingIfNeeded: word >> 32)
    )
  }
}
