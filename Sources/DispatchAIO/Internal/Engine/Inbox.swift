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

  /// Takes everything out, for one thread at a time: the first of a chain in order of arrival,
  /// to be walked with `after`. `nil` when there is nothing.
  @inline(__always)
  func takeAll() -> UInt32? {
    guard head.load(ordering: .relaxed) != Inbox.end else { return nil }
    var newest = head.exchange(Inbox.end, ordering: .acquiring)
    // The stack has the newest on top: turn the chain around.
    var first = Inbox.end
    while newest != Inbox.end {
      let older = unsafe links[Int(newest)]
      unsafe links[Int(newest)] = first
      first = newest
      newest = older
    }
    return first == Inbox.end ? nil : first
  }

  /// The slot that arrived after `slot`, in a chain that `takeAll` began. To be asked before the
  /// slot can be pushed again.
  @inline(__always)
  func after(_ slot: UInt32) -> UInt32? {
    precondition(slot < capacity)
    let next = unsafe links[Int(slot)]
    return next == Inbox.end ? nil : next
  }
}
