// SPDX-License-Identifier: Apache-2.0
//
// The engine turns accepted requests into system calls and completions into results. It knows no
// Dispatch, no queues and no closures; whoever drives it calls, in this order and from one thread
// at a time,
//
//   collect()   take in what other threads accepted and cancelled
//   submit()    hand to the kernel what it has room for
//   reap()      look what has completed
//   next()      … and take the completions one by one; slots are free before they are returned
//
// Nothing in here calls out, so that a completion may accept, cancel and close at will.
//
// The life of a slot, and who counts it:
//
//   free list -> inbox -> pending queue -> kernel -> (completion) -> free list
//                   \_________\-> cancelled, failed at submission -/

internal import CLibAIO
internal import Glibc

struct Engine<K: Kernel, Attachment: Sendable>: ~Copyable {
  /// A request that is over, its slot already free.
  struct Completion {
    let attachment: Attachment
    let result: Result<Int, AIOError>
  }

  /// What `submit` has to say to whoever drives the engine.
  enum Submission {
    /// All is with the kernel, or what is not goes down when something completes.
    case settled
    /// The kernel refuses, and nothing is in flight whose completion would be the moment to try
    /// again: try again after a while.
    case stalled
  }

  /// How often a request is submitted again when the kernel says that nothing was done.
  static var maximumRetries: UInt8 { 16 }

  let kernel: K
  let table: RequestTable<Attachment>
  /// How many requests the kernel has promised room for.
  let queueDepth: Int
  private let event: Int32

  private var pending = PendingQueue()
  /// How many requests the kernel holds, their completions not yet taken.
  private(set) var inKernel = 0
  private var batch: SubmissionBatch
  private var events: EventBuffer
  /// Slots whose requests end without the kernel: refused at submission, or cancelled.
  private var ended: [Ending] = []
  private var firstEnded = 0

  private enum Ending {
    case refused(UInt32, errno: Int32)
    case cancelled(UInt32)
  }

  /// - Parameter event: the eventfd that the kernel is to count completions on.
  init(kernel: K, table: RequestTable<Attachment>, queueDepth: Int, event: Int32) {
    self.kernel = kernel
    self.table = table
    self.queueDepth = queueDepth
    self.event = event
    batch = SubmissionBatch(capacity: queueDepth)
    events = EventBuffer(capacity: min(queueDepth, 128))
  }

  /// Where the slots are that are neither free nor on their way in.
  var accounts: (pending: Int, inKernel: Int, arrived: Int) {
    (pending.count, inKernel, events.count + ended.count - firstEnded)
  }

  /// Whether `next` has something to return now.
  var hasCompletions: Bool { !events.isEmpty || firstEnded < ended.count }

  // MARK: In

  /// Takes in what was accepted and cancelled since the last time, in order of arrival.
  mutating func collect() {
    // The cancellations first: what they name was accepted before, and so is either pending
    // already or in the inbox that is emptied next.
    let cancelled = table.cancellations.takeAll()
    var arrived = table.inbox.takeAll()
    while let slot = arrived {
      arrived = table.inbox.after(slot)
      pending.append(slot, in: table)
    }
    var next = cancelled
    while let slot = next {
      next = table.cancellations.after(slot)
      pending.remove(slot, in: table)
      ended.append(.cancelled(slot))
    }
    checkAccounts()
  }

  // MARK: Down

  /// Hands pending requests to the kernel, as many as it has room for, in as few calls as it takes.
  mutating func submit() -> Submission {
    while fillBatch() {
      var done = 0
      while done < batch.count {
        switch batch.submit(from: done, to: kernel) {
        case let taken where taken > 0:
          done += taken
          inKernel += taken
        case -Int(EINTR):
          continue
        case 0, -Int(EAGAIN):
          putBack(from: done)
          return inKernel == 0 ? .stalled : .settled
        case let refusal:
          // The first of the array is at fault, whatever the rest is like.
          ended.append(.refused(slot(ofTag: batch.tag(at: done)), errno: Int32(-refusal)))
          done += 1
        }
      }
    }
    checkAccounts()
    return .settled
  }

  /// Moves pending requests to the batch. `false`: there is none, or no room for any.
  private mutating func fillBatch() -> Bool {
    batch.removeAll()
    var room = queueDepth - inKernel
    var slot = pending.first
    while room > 0, slot != PendingQueue.end {
      guard let request = table[slot].request else {
        preconditionFailure("engine: slot \(slot) is pending without a request")
      }
      guard batch.hasRoom(for: request.operation) else { break }
      let next = pending.after(slot, in: table)
      // A request that somebody is just cancelling stays where it is: `collect` will find it.
      if table.claim(slot) {
        pending.remove(slot, in: table)
        batch.append(request, tag: tag(of: slot), event: event)
        room -= 1
      }
      slot = next
    }
    return batch.count > 0
  }

  /// What the kernel had no room for goes back to the head of the queue, in its order.
  private mutating func putBack(from first: Int) {
    for index in (first..<batch.count).reversed() {
      let slot = slot(ofTag: batch.tag(at: index))
      table.unclaim(slot)
      pending.prepend(slot, in: table)
    }
  }

  // MARK: Up

  /// Looks for completions, unless some that were found before are still to be taken.
  mutating func reap() {
    guard events.isEmpty, inKernel > 0 else { return }
    // A negative answer, -EINTR for one, means that none was taken: the next pass looks again.
    inKernel -= events.refill(from: kernel)
    checkAccounts()
  }

  /// The next completion, in order; `nil` when there is none at hand.
  mutating func next() -> Completion? {
    while let event = events.removeFirst() {
      let slot = slot(ofTag: event.tag)
      if event.result == -Int(EAGAIN) || event.result == -Int(EINTR), retry(slot) { continue }
      return finish(slot, result: event.result)
    }
    guard firstEnded < ended.count else {
      if firstEnded > 0 {
        ended.removeAll(keepingCapacity: true)
        firstEnded = 0
      }
      return nil
    }
    defer { firstEnded += 1 }
    switch ended[firstEnded] {
    case .refused(let slot, let errno):
      return finish(slot, result: -Int(errno))
    case .cancelled(let slot):
      let request = table.retire(slot)
      request.file.release()
      return Completion(
        attachment: request.attachment, result: .failure(.cancelled(request.subject)))
    }
  }

  /// Makes a request wait again whose completion says that nothing was done, though nobody asked
  /// for such an answer: filesystems give it under lock or memory pressure, and when a signal came.
  /// `false`: it has been tried often enough.
  private mutating func retry(_ slot: UInt32) -> Bool {
    guard let retries = table[slot].request?.retries, retries < Self.maximumRetries else {
      return false
    }
    table[slot].request?.retries += 1
    table.unclaim(slot)
    pending.append(slot, in: table)
    return true
  }

  /// - Parameter result: the kernel's: a count of bytes, or a negative errno.
  @inline(__always)
  private mutating func finish(_ slot: UInt32, result: Int) -> Completion {
    let request = table.retire(slot)
    request.file.release()
    return Completion(
      attachment: request.attachment,
      result: result >= 0
        ? .success(result)
        : .failure(AIOError(errno: Int32(-result), request.subject)))
  }

  // MARK: Tags and accounts

  /// What the kernel hands back with a completion: the slot, and the generation to prove it.
  @inline(__always)
  private func tag(of slot: UInt32) -> UInt64 {
    UInt64(slot) | UInt64(table.key(of: slot).generation) << 32
  }

  @inline(__always)
  private func slot(ofTag tag: UInt64) -> UInt32 {
    let slot = UInt32(truncatingIfNeeded: tag)
    precondition(
      table.key(of: slot).generation == UInt32(tag >> 32),
      "engine: the kernel completed a request twice, or one that was never submitted")
    return slot
  }

  /// Every slot is free, on its way in, pending, with the kernel, or ended: never in two places.
  /// (What other threads hold at this moment is counted nowhere, hence no equality here; the tests
  /// of the engine, where there are no other threads, demand it.)
  @inline(__always)
  private func checkAccounts() {
    assert(inKernel >= 0 && inKernel <= queueDepth)
    assert(table.free.count + pending.count + inKernel <= table.capacity)
  }
}
