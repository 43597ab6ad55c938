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

/// Copies under few names, so that most replace one.
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
      let contents = ArraySlice.random(upTo: 1_500_000, &random)
      try Data(contents).write(to: URL(fileURLWithPath: source.string))
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
