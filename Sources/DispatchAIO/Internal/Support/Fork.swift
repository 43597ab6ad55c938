// SPDX-License-Identifier: Apache-2.0
//
// Detection of forked children. A kernel AIO context is not inherited by fork: in the child its
// handle is invalid, its ring must not be touched, and no Dispatch queue runs a block. So every
// entry into the library checks first whether it runs in a child.

internal import PlatformLibc
internal import Synchronization

enum Fork {
  private static let happened = Atomic<Bool>(false)

  /// The registration of a handler that `pthread_atfork(3)` runs in every child, which is cheaper
  /// than a `getpid(2)` for every request.
  private static let registration: Int32 = pthread_atfork(nil, nil) {
    Fork.happened.store(true, ordering: .relaxed)
  }

  /// Makes sure that `isChild` is set in the children of this process from now on.
  static func watch() { _ = registration }

  /// Whether this process was forked off one that had contexts.
  static var isChild: Bool {
    @inline(__always) get { happened.load(ordering: .relaxed) }
  }
}
