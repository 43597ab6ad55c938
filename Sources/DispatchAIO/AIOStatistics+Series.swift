// SPDX-License-Identifier: Apache-2.0
//
// The statistics as monitoring systems have them: named series of numbers. For the plug for
// swift-metrics, and for the examples' /metrics.

extension AIOStatistics {
  /// A series: what one of the statistics is called, and is.
  package struct Series: Sendable {
    package enum Kind: Sendable {
      /// A total, which only grows.
      case counter
      /// A level, which goes up and down.
      case gauge
    }

    /// The name by the conventions of Prometheus: the unit is in it, and `_total` ends a counter.
    package let name: String
    /// A line that says what it is.
    package let help: String
    package let kind: Kind
    package let value: @Sendable (AIOStatistics) -> Double

    fileprivate init(
      _ kind: Kind, _ name: String, _ help: String,
      _ value: @escaping @Sendable (AIOStatistics) -> Double
    ) {
      (self.kind, self.name, self.help, self.value) = (kind, name, help, value)
    }

    fileprivate init(
      _ kind: Kind, _ name: String, _ help: String,
      _ number: any KeyPath<AIOStatistics, Int> & Sendable
    ) {
      self.init(kind, name, help) { Double($0[keyPath: number]) }
    }
  }

  /// All of them, in the order of their declarations.
  package static let series: [Series] = [
    Series(.counter, "aio_requests_accepted_total", "Requests accepted.", \.accepted),
    Series(.counter, "aio_requests_succeeded_total", "Requests that succeeded.", \.succeeded),
    Series(
      .counter, "aio_requests_failed_total", "Requests that failed, not by cancellation.",
      \.failed),
    Series(
      .counter, "aio_requests_cancelled_total", "Requests that were cancelled.", \.cancelled),
    Series(.gauge, "aio_requests_pending", "Requests that wait to be submitted.", \.pending),
    Series(.gauge, "aio_requests_in_kernel", "Requests that the kernel has.", \.inKernel),
    Series(
      .gauge, "aio_requests_offloaded", "Requests that offload threads have, or are to have.",
      \.offloaded),
    Series(.counter, "aio_submit_calls_total", "Calls of io_submit.", \.submitCalls),
    Series(
      .counter, "aio_submitted_requests_total", "Requests that io_submit accepted.",
      \.submittedRequests),
    Series(
      .gauge, "aio_largest_batch_requests", "Requests of the largest batch so far.",
      \.largestBatch),
    Series(
      .gauge, "aio_longest_submit_seconds", "Duration of the longest io_submit so far."
    ) { $0.longestSubmit / .seconds(1) },
    Series(.counter, "aio_turns_total", "Turns of the loop.", \.turns),
    Series(
      .counter, "aio_wakeups_total", "Times that the completion eventfd woke the queue.",
      \.wakeups),
    Series(.counter, "aio_waits_total", "Times that the loop waited in the ring.", \.waits),
    Series(
      .counter, "aio_wait_hits_total", "Those of the waits that did not end in vain.",
      \.waitHits),
    Series(
      .counter, "aio_queue_hops_total", "Blocks that carried completions to other queues.",
      \.queueHops),
    Series(
      .counter, "aio_nowait_refusals_total", "Attempts that RWF_NOWAIT refused.",
      \.nowaitRefusals),
    Series(
      .counter, "aio_direct_reads_total", "Attempts to read past the page cache.",
      \.directReads),
    Series(
      .counter, "aio_offload_submits_total", "Attempts handed to the offload threads.",
      \.offloadSubmits),
    Series(
      .counter, "aio_retries_total", "Attempts repeated because of EAGAIN or EINTR.", \.retries),
    Series(
      .counter, "aio_continuations_total", "Attempts that resumed a transfer.", \.continuations),
  ]
}
