// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

@testable import DispatchAIO

/// Alignments of any size: nothing says that they are powers of two.
final class AlignmentTests: XCTestCase {
  /// Against the definition, for every count around a few multiples.
  func testRounding() {
    for unit in [1, 2, 3, 7, 512, 520, 3 * 512, 4096, 4104, 1 << 20] {
      let alignment = BlockAlignment(memory: 1, offset: unit)
      for count in [0, unit, 5 * unit, -3 * unit].flatMap({ ($0 - 3)...($0 + 3) }) {
        let (up, down) = (alignment.roundUp(count), alignment.roundDown(count))
        XCTAssertTrue(up % unit == 0 && up >= count && up - count < unit, "\(count) to \(unit)")
        XCTAssertTrue(
          down % unit == 0 && down <= count && count - down < unit, "\(count) to \(unit)")
      }
      XCTAssertEqual(alignment.roundUp(.max), .max)
      XCTAssertEqual(alignment.roundDown(.max) % unit, 0)
      XCTAssertGreaterThan(alignment.roundDown(.max), .max - unit)
      XCTAssertLessThan(alignment.roundDown(.min + unit - 1), .min + unit)
      // A longer request goes on where the first call ended, which has to be aligned.
      let most = alignment.maximumTransfer
      XCTAssertTrue(most % unit == 0 && most > 0x7fff_f000 - unit && most <= 0x7fff_f000, "\(unit)")
    }
    // Larger than what one call moves: no multiple fits, and the least is asked for.
    XCTAssertEqual(BlockAlignment(memory: 1, offset: 1 << 40).maximumTransfer, 1 << 40)
  }

  /// Goal: what is refused as misaligned is what is no multiple, and nothing else, for every
  /// alignment. Method: every offset, length and address below a few multiples, on a file that is
  /// never asked.
  func testRequestChecks() throws {
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 512, alignment: 4096)
    defer { memory.deallocate() }
    for (memoryUnit, unit) in [(1, 1), (4, 8), (1, 3), (3, 1), (6, 10), (5, 8), (4, 7)] {
      var traits = OpenFile.Traits()
      traits.alignment = BlockAlignment(memory: memoryUnit, offset: unit)
      let file = OpenFile(descriptor: 99, path: nil, traits: traits) { _ in }
      let base = Int(bitPattern: memory.baseAddress)
      for offset in 0...21 {
        for length in 0...21 {
          for start in 0...13 {
            let part = UnsafeMutableRawBufferPointer(rebasing: memory[start..<start + length])
            let isAligned =
              offset % unit == 0 && length % unit == 0
              && (length == 0 || (base + start) % memoryUnit == 0)
            let whole = UnsafeMutableRawBufferPointer(rebasing: memory[0..<0])
            for operation in [
              Operation.read(into: .raw(part)), .write(from: .raws([whole, part])),
            ] {
              do throws(AIOError) {
                let checked = try operation.check(file, Int64(offset))
                XCTAssertEqual(checked, length)
                XCTAssertTrue(isAligned, "\(offset) \(length) \(start) of \(traits.alignment)")
              } catch {
                XCTAssertEqual(error.code, .misaligned)
                XCTAssertFalse(isAligned, "\(error)")
              }
            }
          }
        }
      }
      file.close()
    }
  }

  /// The ends of requests near the largest offset.
  func testTheLargestOffset() throws {
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    defer { memory.deallocate() }
    let file = OpenFile(descriptor: 99, path: nil, traits: .init()) { _ in }
    defer { file.close() }
    let operation = Operation.read(into: .raw(memory))
    XCTAssertEqual(try operation.check(file, .max - 4096), 4096)
    for offset in [Int64.max, .max - 4095, -1, .min] {
      assertRefused(.invalidOffset) { try operation.check(file, offset) }
    }
  }
}
