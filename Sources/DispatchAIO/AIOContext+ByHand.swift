// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// The verbs for a program that waits in an `epoll(7)` of its own, and drives the context by
/// ``process()``. New programs have their sockets in the context's ring instead: see
/// ``AIOContext/makeReadSource(fileDescriptor:)``.
extension AIOContext {
  /// Runs `body`, and then a turn of the loop, as ``process()`` does. The requests that `body`
  /// makes are submitted together in that turn, and no block is put on the queue for them.
  ///
  /// The same rules apply as for ``process()``: on the context's ``queue`` only, and not inside a
  /// completion handler.
  ///
  /// - Parameter body: Makes requests; called once, in this call.
  /// - Returns: The number of completions that were run, or sent to the queues they are for.
  @discardableResult
  public func process(after body: () -> Void) -> Int {
    loop.turnIsScheduled()
    body()
    return process()
  }

  /// The eventfd that counts completions, for a program that waits in an `epoll(7)` of its own on
  /// the context's ``queue``, beside its sockets, and calls ``process()`` after each event.
  ///
  /// Once this has been read, the eventfd counts everything for which a turn is needed:
  /// completions, requests from other threads, results of offload threads, slots for tasks that
  /// wait for one, and the end of the delay after the kernel refused a submission. The program
  /// watches it edge-triggered (`EPOLLET`) and does nothing else with it: the context reads and
  /// closes it. It must not be used after ``close(queue:completion:)`` has called back.
  public var completionDescriptor: FileDescriptor {
    FileDescriptor(rawValue: loop.driveByHand())
  }
}
