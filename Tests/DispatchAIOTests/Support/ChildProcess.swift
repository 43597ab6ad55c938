// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// A program that a test ran to its end.
struct ChildProcess {
  let status: Int32
  /// Whether a signal ended it, `status` being its number.
  let wasSignalled: Bool
  let output: String
  let errors: String

  /// Runs a program and waits for it. It is killed, with whatever it has started, when it takes
  /// longer than `seconds`.
  static func run(
    _ path: String, _ arguments: [String], seconds: Double = 60,
    environment: [String: String] = [:]
  ) throws -> Self {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: path)
    process.arguments = arguments
    process.environment = ProcessInfo.processInfo.environment.merging(
      // A program that is meant to trap need not explain itself for seconds.
      ["SWIFT_BACKTRACE": "enable=no"], uniquingKeysWith: { $1 }
    ).merging(environment, uniquingKeysWith: { $1 })
    process.standardInput = FileHandle.nullDevice
    let (output, errors) = (Pipe(), Pipe())
    process.standardOutput = output
    process.standardError = errors
    try process.run()
    let watchdog = process.kill(after: seconds)
    defer { watchdog.cancel() }
    // Both at once, so that neither pipe fills up while the other is read.
    let errorText = Locked(Data())
    let errorsRead = DispatchGroup()
    let handle = errors.fileHandleForReading
    DispatchQueue(label: "test.stderr").async(group: errorsRead) {
      let data = handle.readDataToEndOfFile()
      errorText.withLock { $0 = data }
    }
    let outputText = output.fileHandleForReading.readDataToEndOfFile()
    errorsRead.wait()
    process.waitUntilExit()
    return Self(
      status: process.terminationStatus,
      wasSignalled: process.terminationReason == .uncaughtSignal,
      output: String(decoding: outputText, as: UTF8.self),
      errors: errorText.withLock { String(decoding: $0, as: UTF8.self) })
  }

  /// A program of this package, built beside the tests.
  static func built(_ name: String) throws -> String {
    let tests = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
    let program = tests.deletingLastPathComponent().appendingPathComponent(name)
    guard FileManager.default.isExecutableFile(atPath: program.path) else {
      throw XCTSkip("\(program.path) has not been built")
    }
    return program.path
  }

  /// A program of the system's, or a skip that says which package has it.
  static func installed(_ name: String, package: String) throws -> String {
    let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
    for directory in path.split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin"] {
      let program = "\(directory)/\(name)"
      if FileManager.default.isExecutableFile(atPath: program) { return program }
    }
    throw XCTSkip("\(name) is not installed: apt-get install \(package)")
  }
}

extension Process {
  /// Kills the process and what it has started, which would hold its pipes open: Foundation gives
  /// each child a process group of its own.
  func kill() { Glibc.kill(-processIdentifier, SIGKILL) }

  /// Does so after `seconds`, unless the timer is cancelled before.
  func kill(after seconds: Double) -> any DispatchSourceTimer {
    let group = -processIdentifier
    let watchdog = DispatchSource.makeTimerSource()
    watchdog.schedule(deadline: .now() + seconds)
    watchdog.setEventHandler { @Sendable in Glibc.kill(group, SIGKILL) }
    watchdog.activate()
    return watchdog
  }

  /// Waits until the process has ended; when it has not within `seconds`, fails the test and kills
  /// it.
  func waitForEnd(
    seconds: Double = 60, file: StaticString = #filePath, line: UInt = #line
  ) {
    if !eventually(within: seconds, { !isRunning }) {
      let name = executableURL?.lastPathComponent ?? "a process"
      XCTFail("\(name) has not ended within \(seconds) s", file: file, line: line)
      kill()
    }
    waitUntilExit()
  }
}
