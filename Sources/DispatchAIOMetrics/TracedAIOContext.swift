// SPDX-License-Identifier: Apache-2.0

#if Metrics
public import DispatchAIO
internal import SystemPackage
public import Tracing

extension AIOContext {
  /// The verbs with `await`, each with a span of swift-distributed-tracing around it, for requests
  /// that are worth one:
  ///
  /// ```swift
  /// let count = try await context.traced.read(file, at: 0, into: &buffer)
  /// ```
  ///
  /// The spans are those of `InstrumentationSystem.tracer`.
  public var traced: TracedAIOContext { traced(by: InstrumentationSystem.tracer) }

  /// The verbs with `await`, each with a span of a tracer around it: see ``traced``.
  public func traced(by tracer: any Tracer) -> TracedAIOContext {
    TracedAIOContext(context: self, tracer: tracer)
  }
}

/// The verbs of a context with a span around each: from ``DispatchAIO/AIOContext/traced``.
///
/// A span is named `aio.read`, `aio.write`, `aio.fsync` or `aio.fdatasync`, is a child of the
/// task's span, if there is one, and lasts from the call to its return, with what the request
/// waited for. Its attributes:
///
/// - `file.path`: the path of the file, if it has one.
/// - `aio.offset` and `aio.length`: what was asked for, in bytes.
/// - `aio.transferred`: the number of bytes transferred, also before an error.
/// - `error.type`: the name of the error's code, as `noSpace`. The error itself is recorded, and is
///   the span's status.
///
/// The calls do what those of the context do: parameters, results and errors are the same, and
/// so is cancellation. Appends, and reads and writes of any range, have no span.
public struct TracedAIOContext: Sendable {
  /// The context that the requests are made of.
  public let context: AIOContext
  let tracer: any Tracer

  /// Reads from a file: see
  /// ``DispatchAIO/AIOContext/read(_:at:into:range:options:isolation:)``.
  public func read(
    _ file: AIOFile, at offset: Int64, into buffer: inout AIOUniqueBuffer,
    range: Range<Int>? = nil, options: AIOReadOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await transfer("aio.read", file, offset, range?.count ?? buffer.count) {
      () throws(AIOError) in
      try await context.read(
        file, at: offset, into: &buffer, range: range, options: options, isolation: isolation)
    }
  }

  /// Reads from a file into several buffers: see
  /// ``DispatchAIO/AIOContext/read(_:at:into:options:isolation:)``.
  public func read(
    _ file: AIOFile, at offset: Int64, into buffers: [AIOBuffer],
    options: AIOReadOptions = [], isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await transfer("aio.read", file, offset, Self.count(buffers)) { () throws(AIOError) in
      try await context.read(
        file, at: offset, into: buffers, options: options, isolation: isolation)
    }
  }

  /// Writes to a file: see
  /// ``DispatchAIO/AIOContext/write(_:at:from:range:options:isolation:)``.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffer: borrowing AIOUniqueBuffer,
    range: Range<Int>? = nil, options: AIOWriteOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await transfer("aio.write", file, offset, range?.count ?? buffer.count) {
      () throws(AIOError) in
      try await context.write(
        file, at: offset, from: buffer, range: range, options: options, isolation: isolation)
    }
  }

  /// Writes several buffers to a file: see
  /// ``DispatchAIO/AIOContext/write(_:at:from:options:isolation:)``.
  @discardableResult
  public func write(
    _ file: AIOFile, at offset: Int64, from buffers: [AIOBuffer],
    options: AIOWriteOptions = [], isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int {
    try await transfer("aio.write", file, offset, Self.count(buffers)) { () throws(AIOError) in
      try await context.write(
        file, at: offset, from: buffers, options: options, isolation: isolation)
    }
  }

  /// Makes data and metadata of a file durable: see
  /// ``DispatchAIO/AIOContext/fsync(_:isolation:)``.
  public func fsync(
    _ file: AIOFile, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await within(span("aio.fsync", file)) { (_) throws(AIOError) in
      try await context.fsync(file, isolation: isolation)
    }
  }

  /// Makes the data of a file durable: see ``DispatchAIO/AIOContext/fdatasync(_:isolation:)``.
  public func fdatasync(
    _ file: AIOFile, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await within(span("aio.fdatasync", file)) { (_) throws(AIOError) in
      try await context.fdatasync(file, isolation: isolation)
    }
  }

  // MARK: Spans

  private func span(
    _ name: String, _ file: AIOFile, _ offset: Int64? = nil, _ length: Int? = nil
  ) -> any Span {
    let span = tracer.startSpan(name, ofKind: .internal)
    guard span.isRecording else { return span }
    if let path = file.path { span.attributes["file.path"] = path.description }
    if let offset { span.attributes["aio.offset"] = offset }
    if let length { span.attributes["aio.length"] = length }
    return span
  }

  /// Makes a read or a write within a span.
  private func transfer(
    _ name: String, _ file: AIOFile, _ offset: Int64, _ length: Int,
    isolation: isolated (any Actor)? = #isolation, _ body: () async throws(AIOError) -> Int
  ) async throws(AIOError) -> Int {
    try await within(span(name, file, offset, length)) { span throws(AIOError) in
      let count = try await body()
      span.attributes["aio.transferred"] = count
      return count
    }
  }

  /// Makes a request within a span, which gets its error, and ends with it.
  private func within<Value>(
    _ span: any Span, isolation: isolated (any Actor)? = #isolation,
    _ body: (any Span) async throws(AIOError) -> Value
  ) async throws(AIOError) -> Value {
    defer { span.end() }
    do throws(AIOError) {
      return try await body(span)
    } catch {
      span.attributes["aio.transferred"] = error.transferred
      span.attributes["error.type"] = error.code.description
      span.recordError(error)
      span.setStatus(SpanStatus(code: .error, message: error.description))
      throw error
    }
  }

  /// The number of bytes of several buffers; what no number can say, the context refuses.
  private static func count(_ buffers: [AIOBuffer]) -> Int {
    buffers.reduce(0) { $0 &+ $1.count }
  }
}
#endif
