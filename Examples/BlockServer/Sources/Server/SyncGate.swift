// SPDX-License-Identifier: Apache-2.0
//
// What the fdatasyncs of an export tell, in all loops.
//
// The kernel reports that writing back the page cache failed once for each open file, and then
// takes the pages for clean: the next fdatasync succeeds, and what was acknowledged is not on the
// disk. So no two fdatasyncs of an export run at a time, one of which might get the error that the
// other should have; and after one has failed that had to write back what went through the page
// cache, all fail, as those of QEMU do. What was written directly is not lost by a failed
// fdatasync: it waits in the device's cache for the next.

import DispatchAIO
import ServerSupport

/// The fdatasyncs of an export, one at a time. Called from any thread.
final class SyncGate: Sendable {
  private struct State {
    var isRunning = false
    /// Called when the running fdatasync has ended.
    var waiting: [@Sendable () -> Void] = []
    /// Whether anything went through the page cache since the last fdatasync that succeeded began.
    var isCacheDirty = false
    /// Whether anything had before the running one began.
    var coversCache = false
    var failure: AIOError?
  }

  private let isBuffered: Bool
  private let state = Lock(State())

  /// - Parameter isBuffered: whether all that is written goes through the page cache.
  init(isBuffered: Bool) {
    self.isBuffered = isBuffered
  }

  /// The failure after which no fdatasync can tell that all is on the disk.
  var failure: AIOError? { state.withLock { $0.failure } }

  /// Notes that bytes go through the page cache; before that, and after it.
  func noteCachedWrite() {
    state.withLock { $0.isCacheDirty = true }
  }

  /// Begins an fdatasync.
  ///
  /// - Parameter ended: called, on any thread, when the one that runs has ended, if one does.
  /// - Returns: whether none does.
  func begin(whenEnded ended: @escaping @Sendable () -> Void) -> Bool {
    state.withLock { state in
      if state.isRunning {
        state.waiting.append(ended)
        return false
      }
      state.isRunning = true
      state.coversCache = state.isCacheDirty || isBuffered
      state.isCacheDirty = false
      return true
    }
  }

  /// Notes that the fdatasync has ended, or was not made.
  ///
  /// - Parameter error: its error; `isRetryable` if it was not made.
  func end(_ error: AIOError?) {
    let waiting = state.withLock { state in
      state.isRunning = false
      if let error {
        if state.coversCache { state.isCacheDirty = true }
        if state.coversCache && !error.isRetryable { state.failure = state.failure ?? error }
      }
      defer { state.waiting = [] }
      return state.waiting
    }
    for ended in waiting { ended() }
  }
}
