// SPDX-License-Identifier: Apache-2.0
//
// A kernel AIO context is not inherited by fork: in the child its handle means nothing, its ring
// must not be touched, and no Dispatch queue runs a block any more. So the child is told, before
// anything of that is reached.

internal import Glibc
internal import Synchronization

enum Fork {
  private static let happened = Atomic<Bool>(false)

  /// Registered once: `pthread_atfork(3)` calls it in every child, so that nobody has to ask for
  /// the process's number with every request.
  private static let registration: Int32 = pthread_atfork(nil, nil) {
    Fork.happened.store(true, ordering: .relaxed)
  }

  /// From now on, children know what they are.
  static func watch() { _ = registration }

  /// Whether this process was forked off one that had contexts.
  static var isChild: Bool {
    @inline(__always) get { happened.load(ordering: .relaxed) }
  }
}
