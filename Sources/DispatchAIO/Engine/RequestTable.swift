// SPDX-License-Identifier: Apache-2.0
//
// The fixed table that every request lives in from acceptance to completion. It is the one piece
// of the engine that threads share: they take a slot, fill it, and pass its number on; from then
// on the loop owns the slot, and only its state word may be touched by others.

internal import Synchronization

/// Where a request is on its way, and so who owns its slot.
enum RequestPhase: UInt64 {
  /// Nobody's, or the thread's that has just taken it.
  case free
  /// In the inbox or the pending queue: can be cancelled.
  case waiting
  /// Handed to the kernel, or being handed to it: cannot be cancelled any more.
  case submitted
  /// Cancelled; its completion is on the way.
  case cancelled
}

/// A request's number: which slot, and which use of it.
struct RequestKey: Hashable, Sendable {
  let slot: UInt32
  let generation: UInt32
}

struct Slot {
  /// The neighbours in the pending queue.
  var next = PendingQueue.end
  var previous = PendingQueue.end
  /// Which pending queue that is.
  var isDrowsy = false
  /// What the sleeping side has to say of the request, while it is in `returns`: what `io_submit`
  /// answered, or the result of a system call.
  var answer = 0
}

/// - Safety: `@unchecked Sendable` because a slot's contents are touched by one thread at a time:
///   the one that took it from the free list until it pushes it to the inbox, then the loop until
///   it gives it back, and in between a thread of the sleeping side, from when the loop hands it
///   over until the kernel takes it or `returns` does. The hand-overs are release/acquire pairs.
///   The states are atomics.
@safe
final class RequestTable<Attachment: Sendable>: @unchecked Sendable {
  let capacity: Int
  let free: FreeList
  /// Requests on their way to the pending queue.
  let inbox: Inbox
  /// Requests in phase `cancelled` that the loop has yet to complete.
  let cancellations: Inbox
  /// Requests that the sleeping side gives back, with an answer.
  let returns: Inbox

  private let slots: UnsafeMutablePointer<Slot>
  /// Per slot, its request: initialized unless the slot is free.
  private let requests: UnsafeMutablePointer<AcceptedRequest<Attachment>>
  /// Per slot, generation and phase in one word: `generation << 2 | phase`. Apart from the slots,
  /// because other threads look at them while the loop changes a slot.
  private let states: UnsafeMutablePointer<Atomic<UInt64>>

  init(capacity: Int) {
    self.capacity = capacity
    free = FreeList(capacity: capacity)
    inbox = Inbox(capacity: capacity)
    cancellations = Inbox(capacity: capacity)
    returns = Inbox(capacity: capacity)
    unsafe slots = .allocate(capacity: capacity)
    unsafe slots.initialize(repeating: Slot(), count: capacity)
    unsafe requests = .allocate(capacity: capacity)
    unsafe states = .allocate(capacity: capacity)
    for index in 0..<capacity { unsafe (states + index).initialize(to: Atomic(0)) }
  }

  deinit {
    for slot in 0..<UInt32(capacity) where load(slot) & 3 != RequestPhase.free.rawValue {
      unsafe (requests + Int(slot)).deinitialize(count: 1)
    }
    unsafe requests.deallocate()
    unsafe states.deinitialize(count: capacity)
    unsafe states.deallocate()
    unsafe slots.deinitialize(count: capacity)
    unsafe slots.deallocate()
  }

  @inline(__always)
  subscript(index: UInt32) -> Slot {
    _read {
      precondition(index < capacity)
      yield unsafe slots[Int(index)]
    }
    _modify {
      precondition(index < capacity)
      yield unsafe &slots[Int(index)]
    }
  }

  /// The request in a slot that is not free, and is the caller's.
  @inline(__always)
  subscript(request slot: UInt32) -> AcceptedRequest<Attachment> {
    _read {
      precondition(slot < capacity)
      yield unsafe requests[Int(slot)]
    }
    _modify {
      precondition(slot < capacity)
      yield unsafe &requests[Int(slot)]
    }
  }

  // MARK: From any thread

  /// Puts a request into a slot that the caller has taken from `free`, and passes it to the loop.
  @inline(__always)
  func accept(_ request: consuming AcceptedRequest<Attachment>, in slot: UInt32) -> RequestKey {
    let key = place(request, in: slot)
    inbox.push(slot)
    return key
  }

  /// Puts a request into a slot that the caller has taken from `free`.
  @inline(__always)
  func place(_ request: consuming AcceptedRequest<Attachment>, in slot: UInt32) -> RequestKey {
    precondition(slot < capacity)
    // Free, and so not initialized.
    unsafe (requests + Int(slot)).initialize(to: request)
    let key = key(of: slot)
    set(key, .waiting)
    return key
  }

  /// Where a request is now; `nil` when the key's request has completed and its slot is free or
  /// another's.
  func phase(of key: RequestKey) -> RequestPhase? {
    guard key.slot < capacity else { return nil }
    let state = load(key.slot)
    guard generation(of: state) == key.generation else { return nil }
    let phase = RequestPhase(rawValue: state & 3)
    return phase == .free ? nil : phase
  }

  /// Cancels a request that waits. On success it completes with the next pass of the loop, which
  /// the caller must wake.
  func cancel(_ key: RequestKey) -> Bool {
    guard key.slot < capacity, move(key, from: .waiting, to: .cancelled) else { return false }
    cancellations.push(key.slot)
    return true
  }

  // MARK: By the owner of a slot

  @inline(__always)
  func key(of slot: UInt32) -> RequestKey {
    RequestKey(slot: slot, generation: generation(of: load(slot)))
  }

  /// Slot and generation in one word, for the kernel to hand back with the completion.
  @inline(__always)
  func tag(of slot: UInt32) -> UInt64 {
    UInt64(slot) | UInt64(key(of: slot).generation) << 32
  }

  /// Claims a waiting request for the kernel. `false`: somebody has cancelled it, and it is, or
  /// will be in a moment, among `cancellations`.
  @inline(__always)
  func claim(_ slot: UInt32) -> Bool {
    move(key(of: slot), from: .waiting, to: .submitted)
  }

  /// Says that a thread of the sleeping side has read the slot for the last time before the kernel
  /// takes it. The kernel's own hand-over from `io_submit` to the completion does the same, but the
  /// Thread Sanitizer cannot see that one; this is a store of what is there already.
  func handToKernel(_ slot: UInt32) {
    set(key(of: slot), .submitted)
  }

  /// Whether other threads have left something for the loop to take in.
  var hasMail: Bool { !inbox.isEmpty || !cancellations.isEmpty || !returns.isEmpty }

  /// Makes a claimed request wait again: the kernel had no room for it.
  func unclaim(_ slot: UInt32) {
    set(key(of: slot), .waiting)
  }

  /// Empties a slot and frees it, with a new generation, so that the old key is stale.
  @inline(__always)
  func retire(_ slot: UInt32) -> AcceptedRequest<Attachment> {
    let state = load(slot)
    precondition(
      state & 3 != RequestPhase.free.rawValue, "request table: a slot that is free completed")
    // Not free, and so initialized.
    let request = unsafe (requests + Int(slot)).move()
    set(RequestKey(slot: slot, generation: generation(of: state) &+ 1), .free)
    keep(slot)
    return request
  }

  // MARK: The spare slot

  /// A free slot that the loop keeps for the request that a completion handler makes next, so that
  /// neither costs an exchange of the free list's head. The loop's only.
  private var spare: UInt32?

  @inline(__always)
  private func keep(_ slot: UInt32) {
    if let spare { free.give(spare) }
    spare = slot
  }

  /// Takes a free slot, on the loop.
  @inline(__always)
  func takeOnLoop() -> UInt32? {
    if let slot = spare {
      spare = nil
      return slot
    }
    return free.take()
  }

  /// Gives the spare slot to all, before the loop does something else than running handlers.
  @inline(__always)
  func shareSpare() {
    if let slot = spare {
      spare = nil
      free.give(slot)
    }
  }

  /// How many slots are free, on the loop.
  var freeCount: Int { free.count + (spare == nil ? 0 : 1) }

  // MARK: The state word

  @inline(__always)
  private func generation(of state: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: state >> 2) }

  @inline(__always)
  private func word(_ key: RequestKey, _ phase: RequestPhase) -> UInt64 {
    UInt64(key.generation) << 2 | phase.rawValue
  }

  @inline(__always)
  private func load(_ slot: UInt32) -> UInt64 {
    precondition(slot < capacity)
    return unsafe states[Int(slot)].load(ordering: .acquiring)
  }

  @inline(__always)
  private func set(_ key: RequestKey, _ phase: RequestPhase) {
    precondition(key.slot < capacity)
    unsafe states[Int(key.slot)].store(word(key, phase), ordering: .releasing)
  }

  @inline(__always)
  private func move(_ key: RequestKey, from old: RequestPhase, to new: RequestPhase) -> Bool {
    precondition(key.slot < capacity)
    return unsafe states[Int(key.slot)].compareExchange(
      expected: word(key, old), desired: word(key, new), ordering: .acquiringAndReleasing
    ).exchanged
  }
}
