// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

/// A value under a `pthread_mutex_t`, for short sections: the library never holds it across a call
/// that can sleep, except `OpenFile.position`, which the loop never takes. It has `package`
/// access because it is the examples' lock, too.
///
/// `Synchronization.Mutex` is not used, because the Thread Sanitizer does not see it synchronize,
/// and reports races that do not exist.
///
/// - Safety: `@unchecked Sendable` because the value is touched under the mutex only, and
///   everything that enters or leaves it is `sending`, so that nothing else refers to it.
@safe
package final class Lock<Value>: @unchecked Sendable {
  /// Behind a pointer, because the runtime would check each access of a class's property for
  /// exclusivity, which the mutex guarantees.
  private let value: UnsafeMutablePointer<Value>
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>

  package init(_ value: sending Value) {
    unsafe self.value = .allocate(capacity: 1)
    unsafe self.value.initialize(to: value)
    unsafe mutex = .allocate(capacity: 1)
    unsafe pthread_mutex_init(mutex, nil)
  }

  deinit {
    unsafe pthread_mutex_destroy(mutex)
    unsafe mutex.deallocate()
    unsafe value.deinitialize(count: 1)
    unsafe value.deallocate()
  }

  /// Calls `body` with the value, under the mutex.
  package func withLock<Result, Failure: Error>(
    _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    return try unsafe body(&value.pointee)
  }

  /// Calls `body` with the value unless the mutex is locked, in which case it returns `nil`. It is
  /// for a child of fork, in which the thread that locked it may not exist.
  func withLockIfAvailable<Result>(
    _ body: (inout sending Value) -> sending Result
  ) -> sending Result? {
    guard unsafe pthread_mutex_trylock(mutex) == 0 else { return nil }
    defer { unsafe pthread_mutex_unlock(mutex) }
    return unsafe body(&value.pointee)
  }
}
