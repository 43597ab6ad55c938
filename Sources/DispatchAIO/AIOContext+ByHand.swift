// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// For a program that drives the context by hand.
extension AIOContext {
  /// Runs `body`, and then does as ``process()`` does: what `body` asks for goes down in one
  /// `io_submit`, and costs no block on the queue to see to it. On the context's ``queue`` only, and
  /// not from inside a completion handler.
  ///
  /// - Returns: as ``process()``.
  @discardableResult
  public func process(after body: () -> Void) -> Int {
    loop.turnIsScheduled()
    body()
    return process()
  }

  /// The eventfd on which the kernel counts completions: for a program that waits in an `epoll` of
  /// its own on the context's ``queue``, beside its sockets, and then calls ``process()``, which
  /// saves the hand-overs between Dispatch's threads.
  ///
  /// Watch it, edge-triggered, and do nothing else with it: the context reads and closes it. Not
  /// after ``close(queue:completion:)`` has called back.
  public var completionDescriptor: FileDescriptor {
    FileDescriptor(rawValue: loop.driveByHand())
  }
}
