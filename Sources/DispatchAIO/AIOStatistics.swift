// SPDX-License-Identifier: Apache-2.0

/// How much a context has done, and is doing. From ``AIOContext/statistics``.
///
/// All counts are since the context was made. They are taken at the end of a turn of the loop, each
/// by itself: what happens meanwhile may be in one and not yet in another.
public struct AIOStatistics: Sendable, Hashable {
  /// Requests accepted.
  public var submitted = 0
  /// Requests that succeeded.
  public var completed = 0
  /// Requests that ended with an error.
  public var failed = 0
  /// Requests that were cancelled.
  public var cancelled = 0

  /// Requests that wait for room in the kernel, now.
  public var pending = 0
  /// Requests that the kernel has, now, including those on the sleeping side.
  public var inKernel = 0
  /// Requests on the sleeping side, now: waiting for one of its threads, submitted by one, or being
  /// done by one.
  public var offloaded = 0

  /// Calls of `io_submit(2)` from the loop.
  public var submitCalls = 0
  /// Requests that the kernel took in those calls; divided by ``submitCalls``, the mean batch.
  public var submittedByCalls = 0
  /// The most requests that it took in one call.
  public var largestBatch = 0
  /// The longest that one such call took: for how long the loop could do nothing else.
  public var longestSubmit = Duration.zero
  /// Turns of the loop.
  public var turns = 0
  /// Turns that began because the kernel had counted a completion on the eventfd.
  public var wakeups = 0
  /// Times the loop waited for a completion itself, rather than go to sleep at once: see
  /// ``AIOContext/Options/polling``.
  public var waits = 0
  /// How many of those waits one came in.
  public var waitHits = 0
  /// Blocks sent to other queues with completions.
  public var queueHops = 0

  /// Attempts that the kernel would have slept over, and that were made again on the sleeping side.
  public var nowaitRefusals = 0
  /// Attempts made by the sleeping side.
  public var offloadSubmits = 0
  /// Attempts made again because the kernel said, unasked, that nothing was done.
  public var retries = 0
  /// Short transfers that ``AIOContext/readFully(_:at:into:queue:completion:)-(_,_,AIOBuffer,_,_)``
  /// and its like went on with.
  public var continuations = 0
}
