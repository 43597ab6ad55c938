// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import ServerSupport

/// Options that cannot be used: each program says what it was given, and what it takes. As
/// processes.
final class OptionTests: XCTestCase {
  /// The programs, with what each needs besides.
  private func programs(in directory: TemporaryDirectory) throws -> [String: [String]] {
    let file = try directory.makeFile("disk", size: 4096).string
    return [
      "aio-httpd": [directory.path.string, "--port", "0"], "aio-nbd": [file, "--port", "0"],
      "echo-to-disk": ["--data", directory.path.appending("data").string, "--port", "0"],
      "aio-copy": [file, directory.path.appending("copy").string],
    ]
  }

  private func expect(
    _ sentence: String, _ status: Int32, _ program: String, _ arguments: [String],
    line: UInt = #line
  ) throws {
    let run = try ChildProcess.run(ChildProcess.built(program), arguments, seconds: 10)
    let text = "\(program) \(arguments): \(run.errors)"
    XCTAssertFalse(run.wasSignalled, text, line: line)
    XCTAssertEqual(run.status, status, text, line: line)
    XCTAssertTrue(run.errors.contains(sentence), text, line: line)
  }

  /// No number, less than a timer keeps, more than 30 years; and 0, where it is not never.
  func testSeconds() throws {
    let directory = try temporaryDirectory()
    let programs = try programs(in: directory)
    for (program, options, allowsZero) in [
      ("aio-httpd", ["request-timeout", "keep-alive-timeout", "send-timeout"], false),
      ("aio-httpd", ["drain-timeout"], true),
      ("aio-nbd", ["stats-interval", "handshake-limit", "stall-limit"], true),
      ("echo-to-disk", ["idle-timeout", "stats-interval", "drain-timeout"], true),
    ] {
      let range = "seconds, \(allowsZero ? "0, or " : "")0.001 to 1000000000"
      for option in options {
        for given in ["nan", "inf", "-1.0", "1e-10", "2e+09"] + (allowsZero ? [] : ["0.0"]) {
          let number = try XCTUnwrap(Double(given))
          try expect(
            "--\(option) \(number): \(range)\n", 64, program,
            (programs[program] ?? []) + ["--\(option)=\(given)"])
        }
      }
    }
    XCTAssertNoThrow(try require(seconds: 0.001, for: "a"))
    XCTAssertNoThrow(try require(seconds: 1e9, for: "a"))
    XCTAssertNoThrow(try require(seconds: 0, for: "a", allowsZero: true))
  }

  /// What was given is not rounded, so that it does not look like what would have been taken.
  func testSizes() throws {
    let directory = try temporaryDirectory()
    let programs = try programs(in: directory)
    let forms = "a number of bytes, as 4096, 64KiB, 1.5M or 2G"
    for (program, option, given, sentence) in [
      ("aio-copy", "chunk", "4095", "--chunk 4095B: 4KiB to 1GiB, a multiple of 4KiB"),
      ("aio-copy", "chunk", "1025M", "--chunk 1025MiB: 4KiB to 1GiB, a multiple of 4KiB"),
      ("aio-copy", "chunk", "1 MiB", "'1 MiB' is invalid for '--chunk <bytes>': \(forms)"),
      (
        "echo-to-disk", "segment-size", "5000",
        "--segment-size 5000B: 1MiB to 1TiB, a multiple of 4KiB"
      ),
      ("echo-to-disk", "segment-size", "1048577", "--segment-size 1048577B: 1MiB to 1TiB"),
      ("echo-to-disk", "segment-size", "9999999999G", forms),
      ("echo-to-disk", "keep-bytes", "201326591", "--keep-bytes 201326591B: 3 segments or more"),
      ("echo-to-disk", "keep-bytes", "foo", forms),
      ("aio-httpd", "max-head", "24577", "--max-head 24577B: 256B to 24KiB"),
      ("aio-httpd", "max-head", "foo", forms), ("aio-httpd", "max-upload", "foo", forms),
    ] {
      try expect(sentence, 64, program, (programs[program] ?? []) + ["--\(option)", given])
    }
  }

  func testSizesAsText() throws {
    for (text, bytes, exactly, rounded) in [
      ("0", 0, "0B", "0B"), ("4095", 4095, "4095B", "4.0KiB"), ("1.5k", 1536, "1536B", "1.5KiB"),
      ("64KB", 65536, "64KiB", "64KiB"), ("1TiB", 1 << 40, "1TiB", "1TiB"),
      ("1.5G", 3 << 29, "1536MiB", "1.5GiB"),
    ] {
      let size = try ByteCount.parse(text)
      XCTAssertEqual(size.bytes, bytes)
      XCTAssertEqual(size.exactly, exactly)
      XCTAssertEqual(size.description, rounded)
    }
    for text in ["", "K", "1..5", "-1", "1 MiB", "1X", "8388608T", "0x10"] {
      XCTAssertThrowsError(try ByteCount.parse(text), text)
    }
  }

  func testPorts() throws {
    let directory = try temporaryDirectory()
    for (program, arguments) in try programs(in: directory) where program != "aio-copy" {
      for port in [99999, 65536, -1] {
        try expect(
          "--port \(port): 0 to 65535", 64, program, arguments.dropLast(2) + ["--port=\(port)"])
      }
    }
  }

  /// Files that are there and of the wrong kind, and one that is not.
  func testFilesOfAnotherKind() throws {
    let directory = try temporaryDirectory()
    let programs = try programs(in: directory)
    let fifo = directory.path.appending("fifo").string
    XCTAssertEqual(mkfifo(fifo, 0o600), 0)
    // The standard output of a child is a pipe.
    for (path, reason) in [
      ("/dev/stdout", "not a regular file"), ("/dev/full", "not a regular file"),
      (fifo, ""), ("no\u{1B}dir/x", "No such file or directory"),
    ] {
      let sentence = "--access-log \(path.escaped): \(reason)"
      for part in [sentence, "or - for standard output"] {
        try expect(part, 1, "aio-httpd", (programs["aio-httpd"] ?? []) + ["--access-log", path])
      }
    }
    for path in [fifo, "/dev/null", directory.path.string] {
      try expect(
        "cannot serve \(path): it is no regular file and no block device", 1, "aio-nbd",
        ["--port", "0", path])
    }
  }

  /// Where the server listens is not where its metrics are.
  func testMetricsAddresses() throws {
    let directory = try temporaryDirectory()
    let note = try directory.makeFile("note", size: 1).string
    let taken = try Listener(.tcp(host: "127.0.0.1", port: 0))
    defer { withExtendedLifetime(taken) {} }
    for (program, arguments) in try programs(in: directory) where program != "aio-copy" {
      for (address, reason) in [
        ("unix:\(note)", "\(note): a file of that name is there, and it is no socket"),
        ("unix:", "'': a socket's path has 1 to 107 bytes"), (taken.name, "\(taken.name): Address"),
      ] {
        try expect(
          "--metrics: cannot listen on \(reason)", 1, program, arguments + ["--metrics", address])
      }
    }
  }

  /// A server that cannot listen leaves nothing: no journal, and no socket of its own.
  func testAnAddressInUseLeavesNothing() throws {
    let directory = try temporaryDirectory()
    let taken = try Listener(.tcp(host: "127.0.0.1", port: 0))
    defer { withExtendedLifetime(taken) {} }
    let port = try XCTUnwrap(taken.name.split(separator: ":").last)
    let data = directory.path.appending("data").string
    let socket = directory.path.appending("socket").string
    for options in [["--port", "\(port)"], ["--unix", socket, "--metrics", taken.name]] {
      try expect(
        "cannot listen on \(taken.name): Address already in use; choose another port", 1,
        "echo-to-disk", ["--data", data] + options)
      XCTAssertEqual(
        try FileManager.default.contentsOfDirectory(atPath: directory.path.string), [])
    }
  }
}
