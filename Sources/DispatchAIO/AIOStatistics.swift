// SPDX-License-Identifier: Apache-2.0

/// Counts of what a context has done and is doing, from ``AIOContext/statistics``.
///
/// Totals count from when the context was made. The loop publishes all of them together whenever it
/// has delivered what there was, and at the end of each turn, so that what has happened since then
/// is in none of them. A request that waits for a slot is counted once it has one.
public struct AIOStatistics: Sendable, Hashable {
  /// The number of requests accepted.
  public var accepted = 0
  /// The number of requests that succeeded.
  public var succeeded = 0
  /// The number of requests that failed, other than by cancellation.
  public var failed = 0
  /// The number of requests that were cancelled.
  public var cancelled = 0

  /// The number of requests that wait to be submitted now: for room in the kernel, for their file's
  /// share of it, or for the next turn.
  public var pending = 0
  /// The number of requests that the loop has submitted and whose completions it has not reaped
  /// yet.
  public var inKernel = 0
  /// The number of offloaded requests now: they wait for an offload thread, are with one, or were
  /// submitted by one and have not completed. None of them is in ``inKernel``.
  public var offloaded = 0

  /// The number of calls of `io_submit(2)` that the loop made.
  public var submitCalls = 0
  /// The number of requests that the kernel accepted in those calls, without the loop's own for the
  /// readiness of descriptors; divided by ``submitCalls``, it is the mean batch.
  public var submittedRequests = 0
  /// The number of requests in the largest batch that the kernel accepted in one call.
  public var largestBatch = 0
  /// The duration of the longest such call by the wall clock, during which the loop could do
  /// nothing else.
  public var longestSubmit = Duration.zero
  /// The number of turns of the loop, those of ``AIOContext/process()`` included.
  public var turns = 0
  /// The number of times that the completion eventfd woke the queue through its source.
  public var wakeups = 0
  /// The number of times that the loop waited in the completion ring before it gave the queue back:
  /// see ``AIOContext/Options/waiting``.
  public var waits = 0
  /// The number of those waits that ended with a completion, or with something from another thread,
  /// rather than in vain.
  public var waitHits = 0
  /// The number of blocks that carried completions to other queues: one for each queue and batch.
  public var queueHops = 0

  /// The number of attempts with `RWF_NOWAIT` that the kernel refused because it would have had to
  /// sleep, or because the file has no such thing; such a request is offloaded, or read past the
  /// page cache.
  public var nowaitRefusals = 0
  /// The number of attempts to read past the page cache, of files opened
  /// ``AIOFile/Caching/automatic``, those that the kernel refused included.
  public var directReads = 0
  /// The number of attempts handed to the offload threads. Writes that continue each other may
  /// share a system call there.
  public var offloadSubmits = 0
  /// The number of attempts repeated because the kernel answered `EAGAIN` or `EINTR`, though it was
  /// not told to refuse what would sleep.
  public var retries = 0
  /// The number of attempts that resumed a transfer, because an answer was short, or the rest was
  /// more than one system call transfers.
  public var continuations = 0
}
