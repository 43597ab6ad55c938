// SPDX-License-Identifier: Apache-2.0
//
// Where requests wait that the table has no slot for: those of tasks, which are suspended meanwhile.
// First come, first served, and before requests made by callback, which get `.full` rather than the
// slot that somebody waits for. No thread waits for anything here.

internal import Synchronization

/// A request in the line, to name it by when cancelling.
final class Ticket: Sendable {
  /// Which it is in the line; set, under the line's lock, when it gets there.
  fileprivate let number = Atomic<Int>(-1)
  /// Set when it left the line for the table.
  fileprivate let key = Atomic<UInt64>(0)
  fileprivate let isCancelled = Atomic<Bool>(false)
}

/// The requests that wait for a slot.
final class WaitingLine: Sendable {
  /// - Safety: `@unchecked Sendable` because whoever took it out of the line has it alone.
  private final class Place: @unchecked Sendable {
    let ticket: Ticket
    /// `nil` once it has been taken.
    private var request: AcceptedRequest<Delivery>?

    init(_ ticket: Ticket, _ request: consuming AcceptedRequest<Delivery>) {
      self.ticket = ticket
      self.request = consume request
    }

    /// To be called once.
    func takeRequest() -> AcceptedRequest<Delivery> {
      guard let request = request.take() else {
        preconditionFailure("waiting line: a request left twice")
      }
      return request
    }
  }

  private struct State {
    /// `nil` where somebody has left before his turn.
    var places: [Place?] = []
    var first = 0
    /// The number of `places[0]`.
    var base = 0
    var count = 0
    var isClosed = false

    mutating func popFirst() -> Place? {
      while first < places.count {
        let place = places[first].take()
        first += 1
        if first == places.count || first == 1024 {
          places.removeFirst(first)
          base += first
          first = 0
        }
        guard let place else { continue }
        count -= 1
        return place
      }
      return nil
    }
  }

  private let state = Lock(State())
  private let count = Atomic<Int>(0)

  /// Whether somebody waits. Relaxed, for those who would like to go past: whoever comes at the same
  /// moment comes before or after.
  var isOccupied: Bool {
    @inline(__always) get { count.load(ordering: .relaxed) > 0 }
  }

  /// Whether somebody waits. As `Inbox.isEmpty` is, sequentially consistent for the loop that goes
  /// to sleep.
  var isEmpty: Bool { count.load(ordering: .sequentiallyConsistent) == 0 }

  /// Takes a request in. The caller then wakes the loop: slots may have become free before anybody
  /// waited.
  ///
  /// - Returns: why not, in which case the request is the caller's to end.
  func add(
    _ request: consuming AcceptedRequest<Delivery>, _ ticket: Ticket
  ) -> AIOError? {
    let subject = request.subject
    let place = Place(ticket, request)
    return state.withLock { state in
      if state.isClosed { return .contextClosed(subject) }
      // Cancelled before it got here: `cancel` did not find it, and left word.
      if ticket.isCancelled.load(ordering: .relaxed) {
        return .cancelled(subject, transferred: 0)
      }
      ticket.number.store(state.base + state.places.count, ordering: .relaxed)
      state.places.append(place)
      state.count += 1
      count.store(state.count, ordering: .sequentiallyConsistent)
      return nil
    }
  }

  /// Moves requests to the table, as far as it has slots. By the loop.
  func admit(to table: RequestTable<Delivery>) {
    while let slot = table.free.take() {
      let isAdmitted = state.withLock { state in
        guard let place = state.popFirst() else { return false }
        count.store(state.count, ordering: .relaxed)
        // Under the lock, so that a canceller finds it in one of the two places.
        let key = table.accept(place.takeRequest(), in: slot)
        place.ticket.key.store(key.word, ordering: .relaxed)
        return true
      }
      guard isAdmitted else { return table.free.give(slot) }
    }
  }

  /// Takes a request out before its turn, and ends it as cancelled, in this call.
  ///
  /// - Returns: its key, if it is in the table already.
  func cancel(_ ticket: Ticket) -> RequestKey? {
    let (place, key) = state.withLock { state -> (Place?, RequestKey?) in
      ticket.isCancelled.store(true, ordering: .relaxed)
      if let key = RequestKey(word: ticket.key.load(ordering: .relaxed)) { return (nil, key) }
      let index = ticket.number.load(ordering: .relaxed) - state.base
      guard state.places.indices.contains(index), let place = state.places[index].take() else {
        return (nil, nil)
      }
      state.count -= 1
      count.store(state.count, ordering: .relaxed)
      return (place, nil)
    }
    if let place { end(place) { .cancelled($0, transferred: 0) } }
    return key
  }

  /// Lets nobody in any more, and ends those who wait.
  func close() {
    let places = state.withLock { state in
      state.isClosed = true
      defer {
        state.places = []
        state.first = 0
        state.count = 0
        count.store(0, ordering: .relaxed)
      }
      return state.places
    }
    for case let place? in places { end(place) { .contextClosed($0) } }
  }

  private func end(_ place: Place, _ error: (AIOError.Subject) -> AIOError) {
    let request = place.takeRequest()
    request.file.release()
    request.attachment.completion(.failure(error(request.subject)))
  }
}

extension RequestKey {
  /// The key as one word other than 0 and 1, which mean other things to whoever keeps it in an
  /// atomic.
  var word: UInt64 { UInt64(generation) << 32 | UInt64(slot) + 2 }

  init?(word: UInt64) {
    guard word > 1 else { return nil }
    self.init(
      slot: UInt32(truncatingIfNeeded: word) - 2, generation: UInt32(truncatingIfNeeded: word >> 32)
    )
  }
}
