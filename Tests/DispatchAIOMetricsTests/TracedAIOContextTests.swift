// SPDX-License-Identifier: Apache-2.0

#if Metrics
import DispatchAIOMetrics
import InMemoryTracing
import SystemPackage
import Tracing
import XCTest

final class TracedAIOContextTests: XCTestCase {
  /// The attributes of a span as text.
  private func attributes(_ span: FinishedInMemorySpan) -> [String: String] {
    var result: [String: String] = [:]
    for name in ["file.path", "aio.offset", "aio.length", "aio.transferred", "error.type"] {
      switch span.attributes.get(name)?.toSpanAttribute() {
      case .int64(let number): result[name] = "\(number)"
      case .string(let text): result[name] = text
      case nil: break
      case let other: result[name] = "\(String(describing: other))"
      }
    }
    XCTAssertEqual(span.attributes.count, result.count, "there are others")
    return result
  }

  func testEachRequestHasASpan() async throws {
    let tracer = InMemoryTracer()
    let context = try AIOContext(queueDepth: 8)
    let temporary = try TemporaryFile()
    let traced = context.traced(by: tracer)
    var buffer = AIOUniqueBuffer(count: 8192)
    try await traced.write(temporary.file, at: 4096, from: buffer, range: 0..<4096)
    _ = try await traced.read(temporary.file, at: 0, into: &buffer)
    let buffers = [AIOBuffer(count: 100), AIOBuffer(count: 28)]
    try await traced.write(temporary.file, at: 0, from: buffers)
    _ = try await traced.read(temporary.file, at: 8100, into: buffers)
    try await traced.fsync(temporary.file)
    try await traced.fdatasync(temporary.file)
    let spans = tracer.finishedSpans
    XCTAssertEqual(
      spans.map(\.operationName),
      ["aio.write", "aio.read", "aio.write", "aio.read", "aio.fsync", "aio.fdatasync"])
    let path = temporary.path.string
    XCTAssertEqual(
      attributes(spans[0]),
      ["file.path": path, "aio.offset": "4096", "aio.length": "4096", "aio.transferred": "4096"])
    XCTAssertEqual(
      attributes(spans[1]),
      ["file.path": path, "aio.offset": "0", "aio.length": "8192", "aio.transferred": "8192"])
    XCTAssertEqual(attributes(spans[2])["aio.transferred"], "128")
    XCTAssertEqual(
      attributes(spans[3]),
      ["file.path": path, "aio.offset": "8100", "aio.length": "128", "aio.transferred": "92"])
    XCTAssertEqual(attributes(spans[4]), ["file.path": path])
    for span in spans { XCTAssertNil(span.status) }
    await context.close()
  }

  /// Options are the context's: what it refuses because of them is refused here.
  func testOptionsReachTheRequest() async throws {
    let context = try AIOContext(queueDepth: 8)
    let temporary = try TemporaryFile()
    let traced = context.traced(by: InMemoryTracer())
    var buffer = AIOUniqueBuffer(count: 4096)
    var codes: [AIOError.Code] = []
    do {
      try await traced.write(temporary.file, at: 0, from: buffer, options: .atomic)
    } catch { codes.append(error.code) }
    do {
      try await traced.write(temporary.file, at: 0, from: [AIOBuffer(count: 1)], options: .atomic)
    } catch { codes.append(error.code) }
    // The file is buffered.
    XCTAssertEqual(codes, [.notSupported, .notSupported])
    try await traced.write(temporary.file, at: 0, from: buffer, options: .dataSync)
    let count = try await traced.read(temporary.file, at: 0, into: &buffer, options: .uncached)
    XCTAssertEqual(count, 4096)
    await context.close()
  }

  func testASpanIsAChildOfTheTasks() async throws {
    let tracer = InMemoryTracer()
    let context = try AIOContext(queueDepth: 8)
    let temporary = try TemporaryFile()
    try await tracer.withSpan("request") { _ in
      try await context.traced(by: tracer).fsync(temporary.file)
    }
    let spans = tracer.finishedSpans
    XCTAssertEqual(spans.map(\.operationName), ["aio.fsync", "request"])
    XCTAssertEqual(spans[0].parentSpanID, spans[1].spanID)
    await context.close()
  }

  func testAnErrorIsTheSpans() async throws {
    let tracer = InMemoryTracer()
    let context = try AIOContext(queueDepth: 8)
    let temporary = try TemporaryFile()
    do {
      try await context.traced(by: tracer).write(
        temporary.file, at: -1, from: AIOUniqueBuffer(count: 512))
      XCTFail("written")
    } catch {
      XCTAssertEqual(error.code, .invalidOffset)
    }
    let span = try XCTUnwrap(tracer.finishedSpans.first)
    XCTAssertEqual(attributes(span)["error.type"], "invalidOffset")
    XCTAssertEqual(attributes(span)["aio.transferred"], "0")
    XCTAssertEqual(span.status?.code, .error)
    XCTAssertEqual(span.errors.map { ($0.error as? AIOError)?.code }, [.invalidOffset])
    await context.close()
  }

  func testCancellationReachesTheRequest() async throws {
    let tracer = InMemoryTracer()
    let context = try AIOContext(queueDepth: 8)
    let temporary = try TemporaryFile()
    let task = Task {
      withUnsafeCurrentTask { $0?.cancel() }
      try await context.traced(by: tracer).fsync(temporary.file)
    }
    let result = await task.result
    XCTAssertThrowsError(try result.get()) {
      XCTAssertEqual(($0 as? AIOError)?.code, .cancelled)
    }
    XCTAssertEqual(tracer.finishedSpans.first.map { attributes($0)["error.type"] }, "cancelled")
    await context.close()
  }
}
#endif
