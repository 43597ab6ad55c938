// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

@testable import DispatchAIO

/// The units in `Examples/Support/systemd`: whether systemd takes them, and whether the servers use
/// no system call that their filter forbids.
final class SystemdTests: XCTestCase {
  private static let units = Compiler.package.appendingPathComponent("Examples/Support/systemd")
  private static let servers = ["aio-httpd", "aio-nbd", "echo-to-disk"]

  private func analyze(_ arguments: String...) throws -> ChildProcess {
    let systemd = try ChildProcess.installed("systemd-analyze", package: "systemd")
    return try ChildProcess.run(systemd, arguments)
  }

  /// A directory with the units, whose programs are those that were built beside the tests.
  private func unitsOfThisBuild() throws -> TemporaryDirectory {
    let directory = try TemporaryDirectory()
    for name in try FileManager.default.contentsOfDirectory(atPath: Self.units.path) {
      var unit = try String(
        contentsOf: Self.units.appendingPathComponent(name), encoding: .utf8)
      for server in Self.servers {
        unit = unit.replacingOccurrences(
          of: "/usr/local/bin/\(server)", with: try ChildProcess.built(server))
      }
      try unit.write(
        toFile: directory.path.appending(name).string, atomically: false, encoding: .utf8)
    }
    return directory
  }

  func testTheUnitsAreValid() throws {
    let directory = try unitsOfThisBuild()
    for server in Self.servers {
      let run = try analyze(
        "verify", "--man=no", directory.path.appending("\(server).service").string)
      XCTAssertEqual(run.status, 0, server)
      XCTAssertEqual(run.errors, "", server)
    }
  }

  /// systemd's own measure of what a service could do to the machine, from 0 to 10, times ten.
  func testTheUnitsAreHardened() throws {
    let directory = try unitsOfThisBuild()
    for server in Self.servers {
      let unit = directory.path.appending("\(server).service").string
      let run = try analyze("security", "--offline=true", "--threshold=20", "--no-pager", unit)
      XCTAssertEqual(run.status, 0, "\(server): \(run.output)\(run.errors)")
    }
  }

  func testTheServersUseWhatTheirFilterAllows() throws {
    try XCTSkipIf(Sanitizer.isBuiltIn, "a sanitizer makes calls of its own")
    let directory = try TemporaryDirectory()
    _ = try directory.makeFile("file", size: 1 << 20)
    let data = directory.path.appending("journal").string
    for (server, arguments, client) in [
      ("aio-httpd", [directory.path.string], ["curl", "-sf", "http://ADDRESS/file"]),
      ("aio-nbd", [directory.path.appending("file").string], ["nbdinfo", "nbd://ADDRESS"]),
      ("echo-to-disk", ["--data", data], ["sh", "-c", "echo hello | nc -N HOST PORT"]),
    ] {
      let used = try calls(of: server, arguments, client, in: directory)
      XCTAssertEqual(
        used.contains("io_submit"), KernelChoice.ofProcess == .best, "\(server): \(used)")
      let filter = try XCTUnwrap(
        String(contentsOf: Self.units.appendingPathComponent("\(server).service"), encoding: .utf8)
          .matches(of: #/(?m)^SystemCallFilter=(.*)$/#).map { String($0.1) })
      XCTAssertEqual(used.subtracting(try allowed(by: filter)), [], server)
    }
  }

  /// The names of the system calls that a server makes while it starts, serves a client, and stops.
  private func calls(
    of server: String, _ arguments: [String], _ client: [String], in directory: TemporaryDirectory
  ) throws -> Set<String> {
    let strace = try ChildProcess.installed("strace", package: "strace")
    let log = directory.path.appending("\(server).strace")
    let process = try ServerProcess(
      server, arguments + ["--port", "0"], log: directory.path.appending("log"),
      under: [strace, "-D", "-f", "-qq", "-o", log.string])
    let command = client.map {
      $0.replacingOccurrences(of: "ADDRESS", with: process.address)
        .replacingOccurrences(of: "HOST", with: "127.0.0.1")
        .replacingOccurrences(of: "PORT", with: String(process.port))
    }
    let run = try ChildProcess.run(
      ChildProcess.installed(command[0], package: "curl, libnbd-bin, netcat-openbsd"),
      Array(command.dropFirst()))
    XCTAssertEqual(run.status, 0, "\(server): \(run.errors)")
    XCTAssertEqual(process.stop(), 0, process.logged)
    let text = try String(contentsOfFile: log.string, encoding: .utf8)
    if text.isEmpty { throw XCTSkip("strace may not trace here") }
    return Set(
      SystemCallLog.parse(text).compactMap { $0.firstMatch(of: #/^(\w+)\(/#)?.1 }.map(String.init))
  }

  /// The system calls that the lines of a filter allow, in their order; and those that systemd may
  /// not know yet, without which the servers work.
  private func allowed(by filter: [String]) throws -> Set<String> {
    // The second is what an strace calls it that does not know it, either.
    var allowed: Set<String> = ["cachestat", "syscall_0x1c3"]
    for line in filter {
      for name in line.drop(while: { $0 == "~" }).split(separator: " ") {
        let calls = try members(of: String(name))
        if line.hasPrefix("~") { allowed.subtract(calls) } else { allowed.formUnion(calls) }
      }
    }
    return allowed
  }

  /// The system calls of a group, as systemd has it, or the one of that name.
  private func members(of name: String) throws -> Set<String> {
    guard name.hasPrefix("@") else { return [name] }
    let run = try analyze("syscall-filter", "--no-pager", name)
    XCTAssertEqual(run.status, 0, run.errors)
    let lines = run.output.split(separator: "\n").dropFirst()
      .map { $0.trimmingCharacters(in: .whitespaces) }.filter { !$0.hasPrefix("#") }
    return try lines.reduce(into: []) { $0.formUnion(try members(of: $1)) }
  }
}
