// SPDX-License-Identifier: Apache-2.0
//
// The free slots of the request table. Any thread takes one to make a request; the loop returns it,
// and so do the queues that handlers run on.
//
// A Treiber stack ("Systems Programming: Coping with Parallelism", IBM RJ 5118, 1986) of indices:
// last in, first out, so that the slot used next is the one still in the cache.

internal import Synchronization

/// The free slots of a table, as a lock-free stack.
///
/// - Safety: `@unchecked Sendable` because `head` and every link are atomics, and the memory of the
///   links lives exactly as long as the list.
@safe
struct FreeList: ~Copyable, @unchecked Sendable {
  /// The most slots that a table can have, which 20 bits count.
  static let maximumCapacity = (1 << 20) - 1

  let capacity: Int

  /// One word, so that one compare-and-exchange changes all of it: the top of the stack, the number
  /// of slots on it, and a tag that grows with every change. Without the tag, a thread that read `A
  /// -> B`, slept while others took A and B and returned A, would make B the top (ABA).
  private let head: Atomic<UInt64>

  /// The slot beneath each slot of the stack. A thread may read the link of a slot that another has
  /// just taken; its exchange of the head then fails, and it repeats the read: hence atomic, though
  /// relaxed.
  private let links: UnsafeMutablePointer<Atomic<UInt32>>

  private struct Head {
    var word: UInt64
    var top: UInt32 { UInt32(truncatingIfNeeded: word) & 0xf_ffff }
    var count: Int { Int(word >> 20) & 0xf_ffff }
    var tag: UInt64 { word >> 40 }

    init(word: UInt64) { self.word = word }
    init(top: UInt32, count: Int, tag: UInt64) {
      word = UInt64(top) | UInt64(count) << 20 | tag << 40
    }
  }

  init(capacity: Int) {
    precondition((1...Self.maximumCapacity).contains(capacity))
    self.capacity = capacity
    unsafe links = .allocate(capacity: capacity)
    for index in 0..<capacity {
      unsafe (links + index).initialize(to: Atomic(UInt32(index + 1) & 0xf_ffff))
    }
    head = Atomic(Head(top: 0, count: capacity, tag: 0).word)
  }

  deinit {
    unsafe links.deinitialize(count: capacity)
    unsafe links.deallocate()
  }

  /// The number of slots that are free at this moment.
  var count: Int { Head(word: head.load(ordering: .sequentiallyConsistent)).count }

  /// Takes a slot, from any thread; `nil` if none is free.
  @inline(__always)
  func take() -> UInt32? {
    var old = Head(word: head.load(ordering: .acquiring))
    while old.count > 0 {
      // In bounds: `top` was put there by `give` or `init`, and count > 0 says it is a slot.
      let under = unsafe links[Int(old.top)].load(ordering: .relaxed)
      let new = Head(top: under, count: old.count - 1, tag: old.tag + 1)
      let (exchanged, seen) = head.compareExchange(
        expected: old.word, desired: new.word, ordering: .sequentiallyConsistent)
      if exchanged { return old.top }
      old = Head(word: seen)
    }
    return nil
  }

  /// Returns a slot to the list, from any thread that owns it.
  @inline(__always)
  func give(_ slot: UInt32) {
    precondition(slot < capacity)
    var old = Head(word: head.load(ordering: .relaxed))
    while true {
      // In bounds by the precondition, and only this thread's until the exchange below.
      unsafe links[Int(slot)].store(old.top, ordering: .relaxed)
      let new = Head(top: slot, count: old.count + 1, tag: old.tag + 1)
      let (exchanged, seen) = head.compareExchange(
        expected: old.word, desired: new.word, ordering: .sequentiallyConsistent)
      if exchanged { return }
      old = Head(word: seen)
    }
  }
}
