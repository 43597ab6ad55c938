// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// The state of the request of a task, by which a cancellation of the task finds the request: two
/// words of the call's own frame, so that nothing is allocated for a cancellation that does not
/// happen.
struct CancellationState: ~Copyable, Sendable {
  /// The request's ID; 0 if it has not been accepted, 1 if the task has been cancelled.
  private let word = Atomic<UInt64>(0)
  /// The request's waiter, retained; 0 if it does not wait for a slot.
  private let waiter = Atomic<UInt>(0)

  var isCancelled: Bool {
    @inline(__always) borrowing get { word.load(ordering: .relaxed) == 1 }
  }

  /// Records that the request has been accepted.
  @inline(__always)
  borrowing func accepted(_ id: RequestID, by loop: Loop) {
    if word.exchange(id.word, ordering: .acquiringAndReleasing) == 1 { _ = loop.cancel(id) }
  }

  /// Records that the request has a waiter, which waits for a slot or has one.
  borrowing func waits(_ waiter: Waiter, for loop: Loop) {
    // Released by `deinit`, which runs after the last possible cancellation.
    let pointer = unsafe Unmanaged.passRetained(waiter).toOpaque()
    self.waiter.store(UInt(bitPattern: pointer), ordering: .sequentiallyConsistent)
    if word.load(ordering: .sequentiallyConsistent) == 1 { loop.cancel(waiter) }
  }

  /// Cancels the request; one that has not been accepted is cancelled when it is.
  borrowing func cancel(on loop: Loop) {
    if let id = RequestID(word: word.exchange(1, ordering: .sequentiallyConsistent)) {
      _ = loop.cancel(id)
    }
    let pointer = waiter.load(ordering: .sequentiallyConsistent)
    if let pointer = unsafe UnsafeRawPointer(bitPattern: pointer) {
      // Retained by `waits`, and released by `deinit` only.
      loop.cancel(unsafe Unmanaged<Waiter>.fromOpaque(pointer).takeUnretainedValue())
    }
  }

  deinit {
    if let pointer = unsafe UnsafeRawPointer(bitPattern: waiter.load(ordering: .acquiring)) {
      // Retained by `waits`.
      unsafe Unmanaged<Waiter>.fromOpaque(pointer).release()
    }
  }
}
