// SPDX-License-Identifier: Apache-2.0

internal import CKernel

/// Completions that were reaped and have not been taken by the engine.
///
/// - Safety: `@safe` because `events` has `capacity` elements, lives as long as the buffer, and
///   `first..<end` is within it.
@safe
struct EventBuffer: ~Copyable {
  private let capacity: Int
  private let events: UnsafeMutablePointer<CompletionEvent>
  private var first = 0
  private var end = 0
  /// Whether the poll request has completed; reset by the owner.
  var hasPollEvent = false

  init(capacity: Int) {
    self.capacity = capacity
    unsafe events = .allocate(capacity: capacity)
    unsafe events.initialize(repeating: CompletionEvent(), count: capacity)
  }

  deinit {
    unsafe events.deallocate()
  }

  var isEmpty: Bool { first == end }
  var count: Int { end - first }

  /// Fills the buffer, which must be empty.
  ///
  /// - Parameter nanoseconds: The longest wait for the first.
  /// - Returns: The number of completions; or a negative errno, with none.
  @inline(__always)
  mutating func refill<K: Kernel>(from kernel: K, waiting nanoseconds: UInt64) -> Int {
    precondition(isEmpty)
    first = 0
    let answer = unsafe kernel.reap(into: events, capacity: capacity, waiting: nanoseconds)
    precondition(answer <= capacity)
    end = 0
    guard answer > 0 else { return answer }
    for index in 0..<answer {
      let event = unsafe events[index]
      let tag = event.data
      // The requests that end a wait, and the poll request, have no slot.
      if tag >= ReservedTag.timer {
        if tag == ReservedTag.poll { hasPollEvent = true }
        if tag == ReservedTag.timer { kernel.waitTimerFired() }
        continue
      }
      if end != index { unsafe events[end] = event }
      end += 1
    }
    return end
  }

  /// The tag of the completion that `removeFirst` returns after `index` others.
  @inline(__always)
  func tag(at index: Int) -> UInt64 {
    precondition(first + index < end)
    return unsafe events[first + index].data
  }

  /// The next completion: the request's tag and its result, a count or a negative errno.
  @inline(__always)
  mutating func removeFirst() -> (tag: UInt64, result: Int)? {
    guard first < end else { return nil }
    defer { first += 1 }
    return unsafe (events[first].data, Int(events[first].result))
  }
}
