// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// What the README says is so.
final class ReadmeTests: XCTestCase {
  private static let package = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  private func text(_ path: String) throws -> String {
    try String(contentsOf: Self.package.appendingPathComponent(path), encoding: .utf8)
  }

  /// The programs in the README are the ones that are compiled, and as short as they are said to be.
  func testTheProgramsAreThoseThatAreCompiled() throws {
    for (name, lines) in [("FirstWrite", 15), ("OneQueue", 40)] {
      let program = try text("Examples/\(name)/main.swift")
      XCTAssertLessThanOrEqual(program.count { $0 == "\n" }, lines)
      XCTAssertTrue(try text("README.md").contains("```swift\n\(program)```"), name)
    }
  }

  /// So are the five lines that copy a file.
  func testTheCopyIsTheOneThatIsTested() throws {
    let readme = try text("README.md")
    let start = try XCTUnwrap(readme.range(of: "var writer = AIOFileWriter"))
    let end = try XCTUnwrap(readme[start.lowerBound...].range(of: "```"))
    let lines = readme[start.lowerBound..<end.lowerBound].split(separator: "\n")
    XCTAssertEqual(lines.count, 5)
    let tests = try text("Tests/DispatchAIOTests/Concurrency/ChunkTests.swift")
    XCTAssertTrue(
      tests.contains(lines.map { "    \($0)\n" }.joined()), "the README's copy is another")
  }

  func testTheFirstProgramWorks() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      "/bin/sh",
      ["-c", "cd \(directory.path) && exec \(ChildProcess.built("first-write"))"])
    XCTAssertEqual(run.output, "written: success(4096)\ndurable: success(0)\n", run.errors)
    XCTAssertEqual(run.status, 0)
    XCTAssertEqual(
      try directory.contents("first-write.data"), [UInt8](repeating: 0, count: 4096))
  }

  /// A datagram, a timer and a file on one queue.
  func testTheProgramWorks() throws {
    let directory = try temporaryDirectory()
    let file = try directory.makeFile(size: 3 * 4096) { UInt8($0 / 4096 + 1) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try ChildProcess.built("one-queue"))
    process.arguments = [file.string]
    // Line by line, as on a terminal.
    let output = Pipe()
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try process.run()
    defer {
      kill(process.processIdentifier, SIGKILL)
      process.waitUntilExit()
    }
    let socket = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
    defer { close(socket) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(7007).bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        _ = connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    var block = [UInt8](repeating: 0, count: 8192)
    for number in [2, 0, 1] {
      // Until the program has begun to listen, a datagram is refused.
      var count = -1
      XCTAssertTrue(
        eventually {
          send(socket, "\(number)\n", 2, 0)
          var poll = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
          guard Glibc.poll(&poll, 1, 1000) == 1 else { return false }
          count = recv(socket, &block, block.count, 0)
          return count > 0
        })
      XCTAssertEqual(count, 4096)
      XCTAssertEqual(Array(block[..<4096]), [UInt8](repeating: UInt8(number + 1), count: 4096))
    }
  }
}
