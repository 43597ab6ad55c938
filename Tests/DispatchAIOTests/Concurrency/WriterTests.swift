// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

@testable import DispatchAIO

/// What a writer says once a write has failed.
final class WriterTests: XCTestCase {
  private static func assertFails(
    _ writer: inout AIOFileWriter, _ expected: AIOError.Code, _ message: String
  ) async {
    var codes: [AIOError.Code?] = []
    let count = writer.count
    for skipped in [Int64(0), 1, 512, 5000] {
      do throws(AIOError) {
        try await writer.skip(skipped)
        codes.append(nil)
      } catch {
        codes.append(error.code)
      }
    }
    for size in [0, 1, 512, 300_000] {
      do throws(AIOError) {
        try await writer.write(AIOBuffer(count: size))
        codes.append(nil)
      } catch {
        codes.append(error.code)
      }
      do throws(AIOError) {
        try await writer.write([UInt8](repeating: 0, count: size))
        codes.append(nil)
      } catch {
        codes.append(error.code)
      }
    }
    XCTAssertEqual(codes, [AIOError.Code?](repeating: expected, count: codes.count), message)
    XCTAssertEqual(writer.count, count, "\(message): taken after a failure")
  }

  /// Goal: after a failure every call says so, and takes nothing.
  func testEveryCallSaysSo() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 2)
    // Refused from the start.
    let appending = try directory.open("append", .readWrite, options: [.create, .append])
    var refused = AIOFileWriter(appending, on: context)
    await Self.assertFails(&refused, .wrongAccessMode, "appending")
    let end = await refused.finishCode()
    XCTAssertEqual(end, .wrongAccessMode)
    // A write that fails while others are under way.
    for caching in [AIOFile.Caching.direct, .buffered] {
      let unwritable = try directory.open("append", .readOnly, options: [], caching: caching)
      var failing = AIOFileWriter(unwritable, on: context, blockSize: 4096, inFlight: 1)
      var first: AIOError.Code?
      for _ in 0..<4 where first == nil {
        do throws(AIOError) {
          try await failing.write(AIOBuffer(count: 8192))
        } catch {
          first = error.code
        }
      }
      XCTAssertEqual(first, .wrongAccessMode)
      await Self.assertFails(&failing, .wrongAccessMode, "\(caching)")
      let end = await failing.finishCode()
      XCTAssertEqual(end, .wrongAccessMode)
    }
    await context.close()
  }

  private static func writeCancelled(_ file: AIOFile, _ context: AIOContext) async {
    var writer = AIOFileWriter(file, on: context, blockSize: 4096)
    do throws(AIOError) {
      try await writer.write(AIOBuffer(count: 8192))
      XCTFail("written, although cancelled")
    } catch {
      XCTAssertEqual(error.code, .cancelled)
    }
    await Self.assertFails(&writer, .cancelled, "cancelled")
  }

  /// The same for what the writer refuses by itself.
  func testAfterACancellation() async throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 2)
    let file = try directory.open()
    let writing = Task {
      withUnsafeCurrentTask { $0?.cancel() }
      await WriterTests.writeCancelled(file, context)
    }
    await writing.value
    let size = try await file.size()
    XCTAssertEqual(size, 0)
    await context.close()
  }
}

extension AIOFileWriter {
  /// The code of what `finish` throws; `nil` when it does not.
  consuming func finishCode() async -> AIOError.Code? {
    do throws(AIOError) {
      try await finish()
      return nil
    } catch {
      return error.code
    }
  }
}
