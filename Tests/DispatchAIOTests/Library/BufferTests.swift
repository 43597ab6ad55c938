// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import DispatchAIO

final class BufferTests: XCTestCase {
  func testMemoryIsAlignedAndZero() {
    for alignment in [1, 8, 512, 4096, 65536] {
      for count in [0, 1, 511, 4096, 100_000] {
        let buffer = AIOBuffer(count: count, alignment: alignment)
        XCTAssertEqual(buffer.count, count)
        buffer.withUnsafeBytes { bytes in
          XCTAssertEqual(Int(bitPattern: bytes.baseAddress) % alignment, 0)
          XCTAssertTrue(bytes.allSatisfy { $0 == 0 })
        }
      }
    }
  }

  func testSlicesShareTheMemory() {
    let buffer = AIOBuffer((0..<100).map { UInt8($0) })
    let middle = buffer[20..<30]
    XCTAssertEqual(middle.array, Array(20..<30))
    XCTAssertEqual(middle[3...].array, Array(23..<30))
    XCTAssertEqual(middle[..<3].array, Array(20..<23))
    XCTAssertEqual(middle[10...].count, 0)
    middle.fill(0xff)
    XCTAssertEqual(
      buffer.array[19...30].map { Int($0) }, [19] + [Int](repeating: 255, count: 10) + [30])
  }

  func testASliceKeepsTheMemory() {
    var buffer: AIOBuffer? = AIOBuffer([UInt8](repeating: 5, count: 4096))
    let slice = buffer![4000...]
    buffer = nil
    // Likely to be handed the same memory, were it freed.
    let other = AIOBuffer(count: 4096)
    XCTAssertEqual(slice.array, [UInt8](repeating: 5, count: 96))
    withExtendedLifetime(other) {}
  }

  func testSpans() {
    var buffer = AIOBuffer(count: 16)
    do {
      var bytes = buffer.mutableBytes
      for index in 0..<16 {
        bytes.storeBytes(of: UInt8(index * 2), toByteOffset: index, as: UInt8.self)
      }
    }
    let bytes = buffer.bytes
    XCTAssertEqual(bytes.byteCount, 16)
    XCTAssertEqual(bytes.unsafeLoad(fromByteOffset: 5, as: UInt8.self), 10)
    XCTAssertEqual(buffer[4..<6].bytes.byteCount, 2)
    XCTAssertEqual(buffer.array, (0..<16).map { UInt8($0 * 2) })
  }
}
