// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// `list` and `replay` beside a daemon that writes.
final class FollowTests: XCTestCase {
  /// A command that follows a journal. It is killed with the object.
  private final class Follower {
    let process = Process()
    private let file: FilePath

    init(_ directory: TemporaryDirectory, _ arguments: [String]) throws {
      file = directory.path.appending("output\(ServerProcess.nextNumber())")
      _ = FileManager.default.createFile(atPath: file.string, contents: nil)
      process.executableURL = URL(fileURLWithPath: try ChildProcess.built("echo-to-disk"))
      process.arguments = arguments
      process.standardInput = FileHandle.nullDevice
      process.standardOutput = try FileHandle(forWritingTo: URL(fileURLWithPath: file.string))
      process.standardError = FileHandle.nullDevice
      try process.run()
    }

    deinit { if process.isRunning { kill(process.processIdentifier, SIGKILL) } }

    var output: [UInt8] {
      [UInt8]((try? Data(contentsOf: URL(fileURLWithPath: file.string))) ?? Data())
    }

    func waitForEnd(line: UInt = #line) -> Int32 {
      XCTAssertTrue(eventually(within: 60) { !process.isRunning }, "it goes on", line: line)
      return process.isRunning ? -1 : process.terminationStatus
    }
  }

  private func replay(
    _ directory: TemporaryDirectory, _ data: FilePath, _ connection: Int
  ) throws -> Follower {
    try Follower(
      directory, ["replay", data.string, "--connection", "\(connection)", "--follow"])
  }

  /// From before the connection was there, over several segments, while the first are trimmed.
  func testReplayFollows() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M", "--keep-bytes", "3M"])
    let follower = try replay(directory, data, 1)
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(6_000_000)
    for end in stride(from: 200_000, through: bytes.count, by: 200_000) {
      XCTAssertTrue(client.exchange(Array(bytes[(end - 200_000)..<end]), until: end))
      XCTAssertTrue(eventually(within: 60) { follower.output.count == end }, "\(end)")
    }
    XCTAssertTrue(server.logged.contains("trimmed"), server.logged)
    XCTAssertTrue(follower.process.isRunning)
    client.endInput()
    XCTAssertFalse(client.exchange([], until: bytes.count + 1))
    XCTAssertEqual(follower.waitForEnd(), 0)
    XCTAssertTrue(follower.output == bytes)
    XCTAssertEqual(server.stop(), 0)
  }

  /// A connection whose end is in no journal ends when the next daemon starts.
  func testAServerThatIsKilled() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    var server = try EchoServer(data, ["--segment-size", "1M"])
    let client = try EchoClient(port: server.port)
    let bytes = randomBytes(300_000)
    XCTAssertTrue(client.exchange(bytes, until: bytes.count))
    let follower = try replay(directory, data, 1)
    server.kill()
    XCTAssertTrue(eventually(within: 60) { follower.output.count == bytes.count })
    XCTAssertTrue(follower.process.isRunning)
    server = try EchoServer(data, ["--segment-size", "1M"])
    XCTAssertEqual(follower.waitForEnd(), 0)
    XCTAssertTrue(follower.output == bytes)
    // Others are of the run that is on, and end with it.
    let next = try replay(directory, data, 2)
    XCTAssertTrue(try EchoClient(port: server.port).exchange([1, 2], until: 2))
    XCTAssertEqual(next.waitForEnd(), 0)
    XCTAssertEqual(next.output, [1, 2])
    // One that has not been given yet may be the next run's.
    let later = try replay(directory, data, 3)
    XCTAssertEqual(server.stop(), 0)
    server = try EchoServer(data, ["--segment-size", "1M"])
    XCTAssertTrue(later.process.isRunning)
    XCTAssertTrue(try EchoClient(port: server.port).exchange([3, 4], until: 2))
    XCTAssertEqual(server.stop(), 0)
    XCTAssertEqual(later.waitForEnd(), 0)
    XCTAssertEqual(later.output, [3, 4])
  }

  func testASignalEndsIt() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let client = try EchoClient(port: server.port)
    XCTAssertTrue(client.exchange([1, 2, 3], until: 3))
    let follower = try replay(directory, data, 1)
    XCTAssertTrue(eventually(within: 60) { follower.output == [1, 2, 3] })
    kill(follower.process.processIdentifier, SIGINT)
    XCTAssertEqual(follower.waitForEnd(), SIGINT)
    XCTAssertEqual(server.stop(), 0)
  }

  func testListFollows() throws {
    struct Row: Decodable, Equatable {
      let connection: Int
      let bytes: Int
      let state: String
    }
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let first = try EchoClient(port: server.port)
    XCTAssertTrue(first.exchange([1, 2], until: 2))
    let follower = try Follower(directory, ["list", data.string, "--follow", "--json"])
    let table = try Follower(directory, ["list", data.string, "--follow"])
    func rows() -> [Row] {
      String(decoding: follower.output, as: UTF8.self).split(separator: "\n").compactMap {
        try? JSONDecoder().decode(Row.self, from: Data($0.utf8))
      }
    }
    var expected = [Row(connection: 1, bytes: 2, state: "open")]
    XCTAssertTrue(eventually(within: 60) { rows() == expected }, "\(rows())")
    let bytes = randomBytes(2_000_000)
    XCTAssertTrue(first.exchange(bytes, until: bytes.count + 2))
    first.endInput()
    expected.append(Row(connection: 1, bytes: bytes.count + 2, state: "closed"))
    XCTAssertTrue(eventually(within: 60) { rows() == expected }, "\(rows())")
    // It has sent nothing.
    let second = try EchoClient(port: server.port)
    expected.append(Row(connection: 2, bytes: 0, state: "open"))
    XCTAssertTrue(eventually(within: 60) { rows() == expected }, "\(rows())")
    second.endInput()
    expected.append(Row(connection: 2, bytes: 0, state: "closed"))
    XCTAssertTrue(eventually(within: 60) { rows() == expected }, "\(rows())")
    XCTAssertTrue(
      eventually(within: 60) { table.output.split(separator: UInt8(ascii: "\n")).count == 5 },
      String(decoding: table.output, as: UTF8.self))
    XCTAssertEqual(server.stop(), 0)
    XCTAssertTrue(follower.process.isRunning)
    kill(follower.process.processIdentifier, SIGINT)
    XCTAssertEqual(follower.waitForEnd(), SIGINT)
  }

  /// A line on the terminal, while nobody takes the bytes; and none where there is no terminal.
  func testProgress() throws {
    let directory = try temporaryDirectory()
    let data = directory.path.appending("data")
    let server = try EchoServer(data, ["--segment-size", "1M"])
    let bytes = randomBytes(1_500_000)
    XCTAssertTrue(try EchoClient(port: server.port).exchange(bytes, until: bytes.count))
    XCTAssertEqual(server.stop(), 0)
    var (terminal, end) = (Int32(-1), Int32(-1))
    try XCTSkipIf(openpty(&terminal, &end, nil, nil, nil) != 0, "there is no /dev/ptmx")
    let shown = FileHandle(fileDescriptor: terminal, closeOnDealloc: true)
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: try ChildProcess.built("echo-to-disk"))
    process.arguments = ["replay", data.string, "--connection", "1"]
    process.standardOutput = output
    process.standardError = FileHandle(fileDescriptor: end, closeOnDealloc: true)
    try process.run()
    var text = ""
    while !text.contains("% ") {
      let more = shown.availableData
      if more.isEmpty { break }
      text += String(decoding: more, as: UTF8.self)
    }
    XCTAssertTrue(text.contains(" of 3MiB  "), text)
    XCTAssertEqual([UInt8](output.fileHandleForReading.readDataToEndOfFile()), bytes)
    process.waitForEnd()
    XCTAssertEqual(process.terminationStatus, 0)
    XCTAssertEqual(try EchoServer.command("list", data.string).errors, "")
  }
}
