// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// AIOFileWriter: what was written before an fdatasync is there after a power failure.
final class WriterPowerCutTests: XCTestCase {
  func testOnExt4() async throws { try await assertNothingIsLost(WriterWorkload(), on: "ext4") }
  func testOnXFS() async throws { try await assertNothingIsLost(WriterWorkload(), on: "xfs") }
  func testOnBtrfs() async throws { try await assertNothingIsLost(WriterWorkload(), on: "btrfs") }

  func testWithoutSync() async throws {
    try await assertSomethingIsLost(WriterWorkload(syncs: false), on: "ext4")
  }
}

/// Files, one after the other, direct and buffered, in pieces of any size.
private final class WriterWorkload: PowerCutWorkload {
  let name: String
  private let syncs: Bool
  private var durable: Acknowledgements<Int>?
  /// The bytes of each file.
  private var files: [ArraySlice<UInt8>] = []

  init(syncs: Bool = true) {
    name = syncs ? "AIOFileWriter and fdatasync" : "AIOFileWriter without fdatasync"
    self.syncs = syncs
  }

  func run(in path: FilePath, on disk: PowerCutDisk, random: inout SeededGenerator) async throws {
    let durable = self.durable ?? Acknowledgements(disk)
    self.durable = durable
    let context = try AIOContext(queueDepth: 8)
    for _ in 0..<40 {
      let number = files.count
      let contents = ArraySlice.random(upTo: 400_000, &random)
      files.append(contents)
      let file = try await AIOFile.open(
        path.appending("file\(number)"), .readWrite, options: .create,
        caching: Bool.random(using: &random) ? .direct : .buffered)
      // The name is durable before the file has any contents.
      try synchronize(path)
      var writer = AIOFileWriter(
        file, on: context, blockSize: random.oneIn(2) ? 4096 : 1 << 16, inFlight: 4)
      var rest = contents
      while !rest.isEmpty {
        let part = rest.prefix(Int.random(in: 1...60_000, using: &random))
        try await writer.write([UInt8](part))
        rest = rest.dropFirst(part.count)
      }
      try await writer.finish()
      if syncs { try await context.fdatasync(file) }
      durable.record(number)
    }
    await context.close()
  }

  func losses(in path: FilePath, after cut: PowerCutDisk.Cut) throws -> [String] {
    try (durable?.promised(at: cut.position) ?? []).compactMap { number in
      let file = path.appending("file\(number)")
      let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: file.string)))
      return bytes[...].isSame(as: files[number])
        ? nil : "file\(number) has \(bytes.count) bytes for \(files[number].count), or others"
    }
  }
}
