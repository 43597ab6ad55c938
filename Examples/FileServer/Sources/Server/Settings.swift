// SPDX-License-Identifier: Apache-2.0

/// What the command's options say.
struct Settings: Sendable {
  var loops = 1
  var queueDepth = 128
  var maxConnections = 4096
  /// How long a request's head may take, and a body's next bytes; in nanoseconds, as the others.
  var requestTimeout: UInt64 = 30_000_000_000
  var keepAliveTimeout: UInt64 = 75_000_000_000
  /// How long a client may take to take more.
  var sendTimeout: UInt64 = 60_000_000_000
  var drainTimeout: Duration = .seconds(10)
  var limits = RequestHead.Limits()
  var isWritable = false
  /// The most bytes of an upload.
  var maxUpload: Int64 = 1 << 30
  var openFiles = 64
  /// Lines of the access log in a second and loop; `nil`: all.
  var accessLogRate: Int?
}
