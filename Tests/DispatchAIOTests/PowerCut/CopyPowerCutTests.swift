// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// aio-copy: with `--fsync`, a copy that was reported is there after a power failure, and what is
/// there is whole, whatever was reported.
final class CopyPowerCutTests: XCTestCase {
  func testOnExt4() async throws { try await assertNothingIsLost(CopyWorkload(), on: "ext4") }
  func testOnXFS() async throws { try await assertNothingIsLost(CopyWorkload(), on: "xfs") }
  func testOnBtrfs() async throws { try await assertNothingIsLost(CopyWorkload(), on: "btrfs") }

  func testWithoutSync() async throws {
    try await assertSomethingIsLost(CopyWorkload(syncs: false), on: "ext4")
  }
}

/// Copies under few names, so that most replace one. Some have a hole, some end with it.
private final class CopyWorkload: PowerCutWorkload {
  let name: String
  private let options: [String]
  private var copies: NamedFiles?

  init(syncs: Bool = true) {
    name = syncs ? "aio-copy --fsync" : "aio-copy without --fsync"
    options = syncs ? ["--fsync"] : []
  }

  func run(in path: FilePath, on disk: PowerCutDisk, random: inout SeededGenerator) throws {
    let copies = self.copies ?? NamedFiles(disk)
    self.copies = copies
    let sources = try TemporaryDirectory()
    let source = sources.path.appending("source")
    for _ in 0..<16 {
      let contents = try Self.make(source, &random)
      let name = "copy\(Int.random(in: 0..<5, using: &random))"
      try copies.replace(name, by: contents) { isThere in
        let run = try ChildProcess.run(
          ChildProcess.built("aio-copy"),
          [source.string, path.appending(name).string] + options + (isThere ? ["--force"] : []))
        XCTAssertEqual(run.status, 0, run.errors)
      }
    }
  }

  /// Makes a file; returns its contents.
  private static func make(
    _ path: FilePath, _ random: inout SeededGenerator
  ) throws -> ArraySlice<UInt8> {
    var contents = [UInt8](ArraySlice.random(upTo: 1_500_000, &random))
    var hole = contents.count..<contents.count
    if random.oneIn(2) {
      hole = Int.random(in: 0...contents.count, using: &random)..<contents.count
      if Bool.random(using: &random) { hole = hole.lowerBound / 2..<hole.lowerBound }
    }
    contents.replaceSubrange(hole, with: repeatElement(0, count: hole.count))
    let file = try FileDescriptor.open(
      path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
    try file.closeAfter {
      try file.resize(to: Int64(contents.count))
      try file.writeAll(contents[..<hole.lowerBound])
      try file.writeAll(toAbsoluteOffset: Int64(hole.upperBound), contents[hole.upperBound...])
    }
    return contents[...]
  }

  func losses(in path: FilePath, after cut: PowerCutDisk.Cut) throws -> [String] {
    try copies?.losses(in: path, after: cut) ?? []
  }
}
