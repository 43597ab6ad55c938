// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// What the compiler says to those who touch a buffer in flight.
final class OwnershipTests: XCTestCase {
  func testWhatDoesNotCompile() throws {
    // What compiles, so that the rest does not fail for another reason.
    for code in [
      """
      var b = AIOUniqueBuffer(count: 4096)
      _ = try await context.read(file, at: 0, into: &b)
      try await context.write(file, at: 0, from: b)
      b.withUnsafeMutableBytes { $0[0] = 1 }
      _ = b.shared()
      """
    ] {
      XCTAssertEqual(try errors(in: code), "", code)
    }
    for (code, error) in [
      (
        "let b = AIOUniqueBuffer(count: 512); _ = try await context.read(file, at: 0, into: &b)",
        "cannot pass immutable value as inout argument"
      ),
      (
        """
        var b = AIOUniqueBuffer(count: 512)
        let copy = b
        _ = try await context.read(file, at: 0, into: &b)
        _ = copy.count
        """, "used after consume"
      ),
      (
        """
        let b = AIOUniqueBuffer(count: 512)
        let given = b.shared()
        try await context.write(file, at: 0, from: b)
        _ = given
        """, "used after consume"
      ),
      (
        """
        var b = AIOUniqueBuffer(count: 512)
        var span = b.mutableBytes
        _ = try await context.read(file, at: 0, into: &b)
        _ = span.byteCount
        span = b.mutableBytes
        """, "overlapping accesses to 'b'"
      ),
      (
        """
        var b = AIOUniqueBuffer(count: 512)
        let read = Task { try await context.read(file, at: 0, into: &b) }
        b.withUnsafeMutableBytes { $0[0] = 1 }
        _ = try await read.value
        """, "error:"
      ),
      (
        """
        var writer = AIOFileWriter(file, on: context)
        try await writer.finish()
        try await writer.write([1])
        """, "used after consume"
      ),
      (
        """
        var writer = AIOFileWriter(file, on: context)
        try await writer.finish()
        try await writer.skip(0)
        """, "used after consume"
      ),
      (
        """
        let writer = AIOFileWriter(file, on: context)
        try await writer.finish()
        try await writer.finish()
        """, "consumed more than once"
      ),
    ] {
      let errors = try errors(in: code)
      XCTAssertTrue(errors.contains(error), "\(code)\n\(errors)")
    }
  }

  /// The compiler's errors, for a function with this body.
  private func errors(in body: String) throws -> String {
    let directory = try TemporaryDirectory()
    let source = directory.path.appending("main.swift").string
    try """
    import DispatchAIO
    func body(_ context: AIOContext, _ file: AIOFile) async throws {
    \(body)
    }
    """.write(toFile: source, atomically: false, encoding: .utf8)
    return try Compiler.diagnostics([source]).filter { $0.contains("error:") }
      .joined(separator: "\n")
  }
}
