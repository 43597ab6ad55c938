// SPDX-License-Identifier: Apache-2.0
//
// Slots on their way from any thread to the loop: many threads push, and one takes all at once. It
// needs no lock, and no memory beyond one link for each slot, because a slot is in an inbox at most
// once.

internal import Synchronization

/// A lock-free stack of slots that is emptied whole, and read in order of arrival.
///
/// - Safety: `@unchecked Sendable` because a link is written by the pusher before its exchange of
///   `head` publishes it (release), and read by the taker after its own (acquire).
@safe
struct Inbox: ~Copyable, @unchecked Sendable {
  private static var end: UInt32 { .max }

  private let capacity: Int
  private let head = Atomic<UInt32>(Inbox.end)
  private let links: UnsafeMutablePointer<UInt32>

  init(capacity: Int) {
    self.capacity = capacity
    unsafe links = .allocate(capacity: capacity)
    unsafe links.initialize(repeating: Inbox.end, count: capacity)
  }

  deinit {
    unsafe links.deallocate()
  }

  /// Whether it has no slots. Sequentially consistent: the loop reads this after it has stored that
  /// it sleeps, and a pusher reads whether the loop sleeps after it has pushed; one of the two must
  /// see the other's store.
  var isEmpty: Bool { head.load(ordering: .sequentiallyConsistent) == Inbox.end }

  /// Adds a slot, from any thread. It must not be in this inbox already.
  @inline(__always)
  func push(_ slot: UInt32) {
    precondition(slot < capacity)
    var old = head.load(ordering: .relaxed)
    while true {
      unsafe links[Int(slot)] = old
      let (exchanged, seen) = head.compareExchange(
        expected: old, desired: slot, ordering: .sequentiallyConsistent)
      if exchanged { return }
      old = seen
    }
  }

  /// Takes all slots out; by one thread at a time.
  ///
  /// - Returns: The newest slot; `link(of:)` leads to the others.
  @inline(__always)
  fileprivate func takeAll() -> UInt32? {
    guard head.load(ordering: .relaxed) != Inbox.end else { return nil }
    let newest = head.exchange(Inbox.end, ordering: .acquiring)
    return newest == Inbox.end ? nil : newest
  }

  /// The slot that arrived before one that was taken out; `Reader` reverses these links.
  @inline(__always)
  fileprivate func link(of slot: UInt32) -> UInt32? {
    precondition(slot < capacity)
    let next = unsafe links[Int(slot)]
    return next == Inbox.end ? nil : next
  }

  /// Changes the link of a slot that was taken out.
  @inline(__always)
  fileprivate func link(_ slot: UInt32, to next: UInt32?) {
    precondition(slot < capacity)
    unsafe links[Int(slot)] = next ?? Inbox.end
  }

  /// Reads an inbox in order of arrival, in bounded steps, because the list may be long and has its
  /// newest slot on top. For one thread, and one inbox.
  struct Reader {
    /// The newest slot of the part that has not been reversed.
    private var newest: UInt32?
    /// The oldest slot of the part that has been reversed.
    private var turned: UInt32?
    /// The next slot to read.
    private var first: UInt32?

    /// Whether every slot that was taken out has been read.
    var isEmpty: Bool {
      @inline(__always) get { first == nil && turned == nil }
    }

    /// The next slot, in order of arrival.
    ///
    /// - Parameter budget: The number of steps that may be made; each slot costs one to reverse its
    ///   link, and one to read it.
    /// - Returns: `nil` if there is none, or the budget is used up.
    @inline(__always)
    mutating func next(from inbox: borrowing Inbox, _ budget: inout Int) -> UInt32? {
      if first == nil { refill(from: inbox, &budget) }
      guard budget > 0, let slot = first else { return nil }
      budget -= 1
      first = inbox.link(of: slot)
      return slot
    }

    private mutating func refill(from inbox: borrowing Inbox, _ budget: inout Int) {
      // What is taken is reversed at least in part, so that `isEmpty` knows of it.
      if newest == nil, budget > 0 { newest = inbox.takeAll() }
      while budget > 0, let slot = newest {
        newest = inbox.link(of: slot)
        inbox.link(slot, to: turned)
        turned = slot
        budget -= 1
      }
      guard newest == nil else { return }
      first = turned
      turned = nil
    }
  }
}
