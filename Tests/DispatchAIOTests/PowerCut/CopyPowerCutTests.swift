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
  /// The copy under a name, by its number among those of that name.
  struct Copy {
    var name: String
    var number: Int
  }

  let name: String
  private let options: [String]
  private var durable: Acknowledgements<Copy>?
  /// What was copied to each name, one after the other.
  private var copies: [String: [ArraySlice<UInt8>]] = [:]

  init(syncs: Bool = true) {
    name = syncs ? "aio-copy --fsync" : "aio-copy without --fsync"
    options = syncs ? ["--fsync"] : []
  }

  func run(in path: FilePath, on disk: PowerCutDisk, random: inout SeededGenerator) throws {
    let durable = Acknowledgements<Copy>(disk)
    self.durable = durable
    let sources = try TemporaryDirectory()
    let source = sources.path.appending("source")
    for _ in 0..<16 {
      let contents = try Self.make(source, &random)
      let name = "copy\(Int.random(in: 0..<5, using: &random))"
      copies[name, default: []].append(contents)
      let number = (copies[name]?.count ?? 0) - 1
      let run = try ChildProcess.run(
        ChildProcess.built("aio-copy"),
        [source.string, path.appending(name).string] + options + (number > 0 ? ["--force"] : []))
      XCTAssertEqual(run.status, 0, run.errors)
      durable.record(Copy(name: name, number: number))
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
    let promised = durable?.promised(at: cut.position) ?? []
    return try copies.compactMap { name, copies in
      let oldest = promised.filter { $0.name == name }.map(\.number).max()
      let file = path.appending(name).string
      guard access(file, F_OK) == 0 else {
        return oldest == nil ? nil : "\(name) is not there"
      }
      let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: file)))
      return copies[(oldest ?? 0)...].contains { bytes[...].isSame(as: $0) }
        ? nil : "\(name) has \(bytes.count) bytes, and is none of the last copies"
    }
  }
}
