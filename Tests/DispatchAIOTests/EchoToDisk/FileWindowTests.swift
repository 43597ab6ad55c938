// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import EchoToDisk

/// What is read of a file, and how much of it at once.
final class FileWindowTests: XCTestCase {
  private func window(_ bytes: some Sequence<UInt8>, _ directory: TemporaryDirectory) throws
    -> (window: FileWindow, asked: Locked<[Int]>)
  {
    let path = directory.path.appending("file")
    try Data(bytes).write(to: URL(fileURLWithPath: path.string))
    let asked = Locked<[Int]>([])
    let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
    let window = FileWindow(file, size: Array(bytes).count) { file, offset, memory in
      asked.withLock { $0.append(memory.count) }
      return try FileWindow.systemRead(file, offset, memory)
    }
    return (window, asked)
  }

  /// Goal: a journal of many segments is trimmed, listed and begun without reading more than the
  /// beginning of each. Method: a look at the beginning, and at what is behind it.
  func testABeginningCostsLittle() throws {
    let directory = try temporaryDirectory()
    let (window, asked) = try window(blockContents[..<(4 << 20)], directory)
    XCTAssertEqual(Array(try XCTUnwrap(window.bytes(at: 0, 312))), Array(blockContents[..<312]))
    XCTAssertEqual(asked.withLock { $0.count }, 1)
    XCTAssertLessThanOrEqual(asked.withLock { $0[0] }, 32 << 10)
    XCTAssertNotNil(window.bytes(at: 100_000, 10))
    XCTAssertNotNil(window.bytes(at: 900_000, 10))
    XCTAssertEqual(asked.withLock { $0.count }, 2)
    XCTAssertGreaterThanOrEqual(asked.withLock { $0[1] }, FileWindow.readAhead)
  }

  /// Goal: whatever is asked for is what the file has there. Method: random places and lengths in
  /// files of many sizes.
  func testAnyPlaceAndLength() throws {
    let directory = try temporaryDirectory()
    var generator = SeededGenerator(seed: Seeds.one)
    for size in [0, 1, 4095, 4096, 4097, 16 << 10, (16 << 10) + 1, 1 << 20, 3_000_001] {
      let (window, _) = try window(blockContents[..<size], directory)
      for _ in 0..<50 {
        let offset = Int.random(in: -1...size + 1, using: &generator)
        let most = generator.oneIn(2) ? 5000 : size + 2
        let length = Int.random(in: 0...most, using: &generator)
        if generator.oneIn(10) { window.discard() }
        let bytes = window.bytes(at: offset, length).map { Array($0) }
        let isInside = offset >= 0 && offset + length <= size
        XCTAssertEqual(
          bytes, isInside ? Array(blockContents[offset..<offset + length]) : nil,
          "\(length) at \(offset) of \(size), \(Seeds.replay(Seeds.one))")
      }
    }
  }
}
