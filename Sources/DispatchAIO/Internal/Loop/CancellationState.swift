// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Where the request of a task is, for when the task is cancelled: two words of the call's own
/// frame, so that nothing is allocated for a cancellation that does not happen.
struct CancellationState: ~Copyable, Sendable {
  /// 0: not accepted yet; 1: the task has been cancelled; else the request's ID.
  private let word = Atomic<UInt64>(0)
  /// The request's waiter, retained; 0 if it does not wait for a slot.
  private let waiter = Atomic<UInt>(0)

  var isCancelled: Bool {
    @inline(__always) borrowing get { word.load(ordering: .relaxed) == 1 }
  }

  /// The request has been accepted.
  @inline(__always)
  borrowing func accepted(_ id: RequestID, by loop: Loop) {
    if word.exchange(id.word, ordering: .acquiringAndReleasing) == 1 { _ = loop.cancel(id) }
  }

  /// The request waits for a slot, or has got one.
  borrowing func waits(_ waiter: Waiter, for loop: Loop) {
    // Released by `deinit`, after which nobody cancels any more.
    let pointer = unsafe Unmanaged.passRetained(waiter).toOpaque()
    self.waiter.store(UInt(bitPattern: pointer), ordering: .sequentiallyConsistent)
    if word.load(ordering: .sequentiallyConsistent) == 1 { loop.cancel(waiter) }
  }

  /// The task has been cancelled. What has not been accepted yet is cancelled when it is.
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
