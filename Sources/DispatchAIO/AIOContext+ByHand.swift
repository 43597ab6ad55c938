// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// A program that waits in an `epoll(7)` of its own drives the context through these.
///
/// They go once the readiness of sockets is a completion of the context's own ring.
extension AIOContext {
  /// Runs `body`, and then a turn of the loop, as ``process()`` does. The requests that `body`
  /// makes go to the kernel in that turn, together, and no block is put on the queue for them.
  ///
  /// The same rules apply as for ``process()``: on the context's ``queue`` only, and not inside a
  /// completion handler.
  ///
  /// - Parameter body: Makes requests; called once, in this call.
  /// - Returns: The number of completions, as ``process()`` does.
  @discardableResult
  public func process(after body: () -> Void) -> Int {
    loop.turnIsScheduled()
    body()
    return process()
  }

  /// The eventfd that counts completions, for a program that waits in an `epoll(7)` of its own on
  /// the context's ``queue``, beside its sockets, and calls ``process()`` after each event.
  ///
  /// Once this has been read, the eventfd tells of everything that a turn has to look at:
  /// completions, requests from other threads, results of offload threads, slots for those that
  /// wait for one, and the end of a pause after the kernel refused a submission. The program
  /// watches it edge-triggered (`EPOLLET`) and does nothing else with it: the context reads and
  /// closes it. It must not be used after ``close(queue:completion:)`` has called back.
  public var completionDescriptor: FileDescriptor {
    FileDescriptor(rawValue: loop.driveByHand())
  }
}
