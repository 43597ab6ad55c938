// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// Writes with long payloads, one after the other.
final class LongPayloadTests: XCTestCase {
  /// Goal: a payload that follows another long one is received where it is written from, and not
  /// copied there: by `readv`, which the kernel counts, and not by `recv`, which it does not.
  func testLongPayloadsAreReceivedInPlace() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile("disk", size: 2 << 20)
    let server = try NBDServer(directory, ["disk"])
    let client = try NBDClient(server)
    let payload = (0..<64 << 10).map { UInt8(truncatingIfNeeded: $0 >> 7) }
    let path = "/proc/\(server.process.processIdentifier)/io"
    func received() throws -> Int {
      let text = try String(contentsOfFile: path, encoding: .utf8)
      let number = try XCTUnwrap(text.firstMatch(of: /rchar: (\d+)/)).1
      return try XCTUnwrap(Int(number))
    }
    try client.write(payload, at: 0)
    let before = try received()
    for number in 1..<20 { try client.write(payload, at: number * payload.count) }
    XCTAssertGreaterThanOrEqual(try received() - before, 19 * payload.count)
    let contents = try directory.contents("disk")
    for number in 0..<20 {
      let range = number * payload.count..<(number + 1) * payload.count
      XCTAssertTrue(Array(contents[range]) == payload, "write \(number)")
    }
    XCTAssertEqual(server.stop(), 0)
  }
}
