// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// A `pthread_mutex_t` around a value: for short sections, never held across a system call.
///
/// Not `Synchronization.Mutex`, whose waiting the Thread Sanitizer cannot see: it reports races that
/// are none.
///
/// - Safety: `@unchecked Sendable` because the value is touched under the mutex only, and what
///   goes in and comes out is `sending`: nobody else has it.
@safe
final class Lock<Value>: @unchecked Sendable {
  private var value: Value
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>

  init(_ value: sending Value) {
    self.value = value
    unsafe mutex = .allocate(capacity: 1)
    unsafe pthread_mutex_init(mutex, nil)
  }

  deinit {
    unsafe pthread_mutex_destroy(mutex)
    unsafe mutex.deallocate()
  }

  func withLock<Result>(_ body: (inout sending Value) -> sending Result) -> sending Result {
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    return body(&value)
  }

  /// As `withLock`, but `nil` where somebody has the lock: for a child of fork, in which that
  /// somebody may not exist.
  func withLockIfAvailable<Result>(
    _ body: (inout sending Value) -> sending Result
  ) -> sending Result? {
    guard unsafe pthread_mutex_trylock(mutex) == 0 else { return nil }
    defer { unsafe pthread_mutex_unlock(mutex) }
    return body(&value)
  }
}
