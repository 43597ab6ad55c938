// SPDX-License-Identifier: Apache-2.0
//
// The way of a slot from any thread to the loop: many push, one takes all that piled up. No lock,
// and no memory of its own beyond a link per slot, because a slot is in an inbox at most once.

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

  /// Whether nothing waits. Sequentially consistent: the loop asks this after it has said that it
  /// goes to sleep, and a pusher looks whether the loop sleeps after it has pushed; one of the two
  /// must see the other.
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

  /// Takes everything out, for one thread at a time.
  ///
  /// - Returns: the newest; the others are reached with `older`.
  @inline(__always)
  fileprivate func takeAll() -> UInt32? {
    guard head.load(ordering: .relaxed) != Inbox.end else { return nil }
    let newest = head.exchange(Inbox.end, ordering: .acquiring)
    return newest == Inbox.end ? nil : newest
  }

  /// The slot that arrived before one that was taken out, and then what `Reader` makes of it.
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

  /// Reads an inbox in order of arrival, so much at a time: what has piled up may be long, and its
  /// newest is on top. For one thread, and one inbox.
  struct Reader {
    /// The newest of what is still to be turned around.
    private var newest: UInt32?
    /// The oldest of what has been turned around.
    private var turned: UInt32?
    /// The next of what can be read.
    private var first: UInt32?

    /// Whether something was taken out of the inbox and not read yet.
    var isEmpty: Bool {
      @inline(__always) get { first == nil && turned == nil }
    }

    /// The next slot, in order of arrival.
    ///
    /// - Parameter budget: how many steps may be made; each slot costs one to turn it around, and
    ///   one to read it.
    /// - Returns: `nil` when there is none, or the budget is used up.
    @inline(__always)
    mutating func next(from inbox: borrowing Inbox, _ budget: inout Int) -> UInt32? {
      if first == nil { refill(from: inbox, &budget) }
      guard budget > 0, let slot = first else { return nil }
      budget -= 1
      first = inbox.link(of: slot)
      return slot
    }

    private mutating func refill(from inbox: borrowing Inbox, _ budget: inout Int) {
      if newest == nil { newest = inbox.takeAll() }
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
