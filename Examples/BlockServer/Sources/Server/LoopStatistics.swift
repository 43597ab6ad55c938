// SPDX-License-Identifier: Apache-2.0

/// Counts of a loop since its start.
struct LoopStatistics: Sendable {
  var requests = 0
  var failures = 0
  /// The number of fdatasyncs.
  var syncs = 0
  var bytesReceived = 0
  var bytesSent = 0

  static func += (total: inout LoopStatistics, one: LoopStatistics) {
    total.requests += one.requests
    total.failures += one.failures
    total.syncs += one.syncs
    total.bytesReceived += one.bytesReceived
    total.bytesSent += one.bytesSent
  }
}
