// SPDX-License-Identifier: Apache-2.0
//
// The fixed table that has every request from acceptance to completion. It is the one part of the
// engine that threads share: they take a slot, fill it, and push its number; from then on the loop
// owns the slot, and others may touch only its state word.

internal import Synchronization

/// The phase of a request, which determines the owner of its slot.
enum RequestPhase: UInt64 {
  /// Free, or owned by the thread that has just taken it.
  case free
  /// Waiting for the loop, for room, or for an offload thread: it can be cancelled.
  case waiting
  /// With the kernel or an offload thread, or about to be: it can no longer be cancelled.
  case submitted
  /// Cancelled, and not completed yet.
  case cancelled
}

/// The identity of a request: a slot, and the number of its use.
struct RequestID: Hashable, Sendable {
  let slot: UInt32
  let generation: UInt32
}

/// The place of a slot that is not free, among those of the loop.
enum SlotPlace {
  /// In the inbox, on its way to the loop.
  case arriving
  /// In the engine's list of requests to submit next.
  case pending
  /// In the engine's list of requests that an offload thread could not submit.
  case blocked
  /// In no list: it was found cancelled, and is in `cancellations`.
  case beingCancelled
  /// In its file's list of requests that wait for the file's share of the kernel's room.
  case parked
  /// In the offload queue, or with an offload thread.
  case offloaded
  /// With the kernel.
  case inKernel
  /// In the engine's list of requests that have ended without an event.
  case ended
}

/// The loop's state of a slot, or its offload thread's.
struct Slot {
  /// The neighbours in the list that `place` names.
  var next = SlotList.end
  var previous = SlotList.end
  var place = SlotPlace.arriving
  /// Whether it was cancelled before the loop took it in.
  var isCancelledEarly = false
  /// The answer to the request, a count of bytes or a negative errno, while it is in
  /// `offloadResults` or in the list of those that have ended.
  var answer = 0
}

/// - Safety: `@unchecked Sendable` because a slot's contents are touched by one thread at a time:
///   the one that took it from the free list until it pushes it to the inbox, then the loop until
///   it retires it, and in between an offload thread, from its claim of the slot until it submits
///   the slot or pushes it to `offloadResults`. The hand-overs are release/acquire pairs. The
///   states are atomics.
@safe
final class RequestTable<Attachment: Sendable & ~Copyable>: @unchecked Sendable {
  let capacity: Int
  let free: FreeList
  /// Requests on their way to the pending queue.
  let inbox: Inbox
  /// Requests in phase `cancelled` that the loop has yet to complete.
  let cancellations: Inbox
  /// Requests that offload threads return, with an answer.
  let offloadResults: Inbox

  private let slots: UnsafeMutablePointer<Slot>
  /// The request of each slot, initialized unless the slot is free.
  private let requests: UnsafeMutablePointer<Request<Attachment>>
  /// The state word of each slot: `generation << 2 | phase`. Apart from the slots, because other
  /// threads read them while the loop changes a slot.
  private let states: UnsafeMutablePointer<Atomic<UInt64>>

  init(capacity: Int) {
    self.capacity = capacity
    free = FreeList(capacity: capacity)
    inbox = Inbox(capacity: capacity)
    cancellations = Inbox(capacity: capacity)
    offloadResults = Inbox(capacity: capacity)
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

  /// The request in a slot that is not free, and that the caller owns.
  @inline(__always)
  subscript(request slot: UInt32) -> Request<Attachment> {
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

  /// Puts a request into a slot that the caller has taken from `free`, and pushes the slot to the
  /// inbox.
  @inline(__always)
  func accept(_ request: consuming Request<Attachment>, in slot: UInt32) -> RequestID {
    let id = place(request, in: slot)
    inbox.push(slot)
    return id
  }

  /// Puts a request into a slot that the caller has taken from `free`.
  @inline(__always)
  func place(_ request: consuming Request<Attachment>, in slot: UInt32) -> RequestID {
    precondition(slot < capacity)
    // Free, and so not initialized.
    unsafe (requests + Int(slot)).initialize(to: request)
    let id = id(of: slot)
    set(id, .waiting)
    return id
  }

  /// The phase of a request; `nil` if it has completed, and its slot is free or another's.
  func phase(of id: RequestID) -> RequestPhase? {
    guard id.slot < capacity else { return nil }
    return phase(of: id, in: load(id.slot))
  }

  private func phase(of id: RequestID, in state: UInt64) -> RequestPhase? {
    guard generation(of: state) == id.generation else { return nil }
    let phase = RequestPhase(rawValue: state & 3)
    return phase == .free ? nil : phase
  }

  /// Cancels a request, if it waits: then it completes in the next turn, which the caller must
  /// schedule.
  ///
  /// - Returns: The phase in which it was found, as `phase(of:)`. Found and moved at once: the
  ///   kernel may take it and refuse it meanwhile.
  func cancel(_ id: RequestID) -> RequestPhase? {
    guard id.slot < capacity else { return nil }
    let (isMoved, found) = move(id, from: .waiting, to: .cancelled)
    if isMoved { cancellations.push(id.slot) }
    return phase(of: id, in: found)
  }

  // MARK: By the owner of a slot

  @inline(__always)
  func id(of slot: UInt32) -> RequestID {
    RequestID(slot: slot, generation: generation(of: load(slot)))
  }

  /// Slot and generation in one word, which the kernel returns with the completion.
  @inline(__always)
  func tag(of slot: UInt32) -> UInt64 {
    UInt64(slot) | UInt64(id(of: slot).generation) << 32
  }

  /// Claims a waiting request for the kernel; `false` if it was cancelled, in which case it is
  /// among `cancellations`, or about to be.
  @inline(__always)
  func claim(_ slot: UInt32) -> Bool {
    move(id(of: slot), from: .waiting, to: .submitted).exchanged
  }

  /// Marks the last access of an offload thread to the slot before the kernel takes it. The
  /// kernel's own hand-over from `io_submit` to the completion does the same, but the Thread
  /// Sanitizer cannot see that one; this stores the value that is there already.
  func handToKernel(_ slot: UInt32) {
    set(id(of: slot), .submitted)
  }

  /// Whether an inbox has slots for the loop.
  var hasArrivals: Bool {
    !inbox.isEmpty || !cancellations.isEmpty || !offloadResults.isEmpty
  }

  /// Undoes `claim`, after the kernel had no room for the request.
  func unclaim(_ slot: UInt32) {
    set(id(of: slot), .waiting)
  }

  /// Moves the request out of a slot, and makes its ID stale. The caller owns the slot, and returns
  /// it to `free`.
  @inline(__always)
  func retire(_ slot: UInt32) -> Request<Attachment> {
    let state = load(slot)
    precondition(
      state & 3 != RequestPhase.free.rawValue, "request table: a slot that is free completed")
    // Not free, and so initialized.
    let request = unsafe (requests + Int(slot)).move()
    set(RequestID(slot: slot, generation: generation(of: state) &+ 1), .free)
    return request
  }

  // MARK: The state word

  @inline(__always)
  private func generation(of state: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: state >> 2) }

  @inline(__always)
  private func word(_ id: RequestID, _ phase: RequestPhase) -> UInt64 {
    UInt64(id.generation) << 2 | phase.rawValue
  }

  @inline(__always)
  private func load(_ slot: UInt32) -> UInt64 {
    precondition(slot < capacity)
    return unsafe states[Int(slot)].load(ordering: .acquiring)
  }

  @inline(__always)
  private func set(_ id: RequestID, _ phase: RequestPhase) {
    precondition(id.slot < capacity)
    unsafe states[Int(id.slot)].store(word(id, phase), ordering: .releasing)
  }

  @inline(__always)
  private func move(
    _ id: RequestID, from old: RequestPhase, to new: RequestPhase
  ) -> (exchanged: Bool, original: UInt64) {
    precondition(id.slot < capacity)
    return unsafe states[Int(id.slot)].compareExchange(
      expected: word(id, old), desired: word(id, new), ordering: .acquiringAndReleasing)
  }
}
