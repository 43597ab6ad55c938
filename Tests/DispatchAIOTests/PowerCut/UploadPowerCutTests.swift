// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// aio-httpd: an upload that was answered is there after a power failure, and what is there is
/// whole, whatever was answered.
final class UploadPowerCutTests: XCTestCase {
  func testOnExt4() async throws { try await assertNothingIsLost(UploadWorkload(), on: "ext4") }
  func testOnXFS() async throws { try await assertNothingIsLost(UploadWorkload(), on: "xfs") }
  func testOnBtrfs() async throws { try await assertNothingIsLost(UploadWorkload(), on: "btrfs") }
}

/// Clients that upload files at once, each under few names of its own.
private final class UploadWorkload: PowerCutWorkload {
  let name = "aio-httpd"
  private let logs: TemporaryDirectory
  private var files: NamedFiles?

  init() throws { logs = try TemporaryDirectory() }

  func run(in path: FilePath, on disk: PowerCutDisk, random: inout SeededGenerator) throws {
    let files = self.files ?? NamedFiles(disk)
    self.files = files
    let server = try HTTPServer(
      root: path.appending("www"), ["--writable"], log: logs.path.appending("log"))
    // The directory is not the server's to make durable.
    try synchronize(path)
    let seed = random.next()
    onThreads(3) { number in
      var random = SeededGenerator(seed: seed &+ UInt64(number))
      do {
        let client = try HTTPClient(server)
        for _ in 0..<16 {
          let name = "file\(number).\(Int.random(in: 0..<3, using: &random))"
          let bytes = ArraySlice.random(upTo: 300_000, &random)
          try files.replace(name, by: bytes) { _ in
            try client.send(
              "PUT /\(name) HTTP/1.1\r\nHost: a\r\nContent-Length: \(bytes.count)\r\n\r\n")
            try client.send([UInt8](bytes))
            XCTAssertTrue([201, 204].contains(try client.answer().status))
          }
        }
      } catch {
        XCTFail("client \(number): \(error)")
      }
    }
    server.kill()
  }

  func losses(in path: FilePath, after cut: PowerCutDisk.Cut) throws -> [String] {
    try files?.losses(in: path.appending("www"), after: cut) ?? []
  }
}
