// SPDX-License-Identifier: Apache-2.0

#if Metrics
import DispatchAIOMetrics

func measure(_ path: String) async throws {
  let context = try AIOContext()
  let metrics = try AIOContextMetrics(context, name: "main", every: .seconds(10))
  let file = try await AIOFile.open(.init(path), .readOnly, caching: .automatic)
  var block = AIOUniqueBuffer(count: 4096)
  _ = try await context.traced.read(file, at: 0, into: &block)
  metrics.publish()
}
#endif
