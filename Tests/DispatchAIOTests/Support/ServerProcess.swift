// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// A process of one of the example servers, as a user runs it. It is killed with the object.
///
/// - Safety: `@unchecked Sendable` because nothing of it changes after `init` but the process,
///   whose methods may be called from any thread.
class ServerProcess: @unchecked Sendable {
  let process = Process()
  /// Where it listens, as it printed it.
  let address: String
  private let log: FilePath

  struct Failure: Error, CustomStringConvertible { let description: String }

  /// Starts a server and waits until it is ready.
  ///
  /// - Parameters:
  ///   - program: its name.
  ///   - log: a file for its standard error; the number in the name is chosen here.
  ///   - under: another program to run it, and that one's arguments.
  init(
    _ program: String, _ arguments: [String], log: FilePath, in directory: FilePath? = nil,
    under: [String] = []
  ) throws {
    self.log = FilePath("\(log.string)\(Self.nextNumber())")
    let command = under + [try ChildProcess.built(program)] + arguments
    process.executableURL = URL(fileURLWithPath: command[0])
    process.arguments = Array(command.dropFirst())
    if let directory { process.currentDirectoryURL = URL(fileURLWithPath: directory.string) }
    let output = Pipe()
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    _ = FileManager.default.createFile(atPath: self.log.string, contents: nil)
    process.standardError = try FileHandle(forWritingTo: URL(fileURLWithPath: self.log.string))
    try process.run()
    let watchdog = process.kill(after: 60)
    defer { watchdog.cancel() }
    var line = Data()
    while let byte = try output.fileHandleForReading.read(upToCount: 1), !byte.isEmpty {
      if byte[0] == UInt8(ascii: "\n") { break }
      line.append(byte)
    }
    let text = String(decoding: line, as: UTF8.self)
    guard text.hasPrefix("listening on ") else {
      process.waitForEnd()
      let errors = (try? String(contentsOfFile: self.log.string, encoding: .utf8)) ?? ""
      throw Failure(description: "no server: \(text) \(errors)")
    }
    address = String(text.dropFirst("listening on ".count))
  }

  /// Distinguishes the files of the servers of one directory.
  static func nextNumber() -> Int {
    numbers.withLock { number in
      number += 1
      return number
    }
  }
  private static let numbers = Locked(0)

  deinit {
    if process.isRunning { kill() }
  }

  /// The port it listens on; 0 where it listens on a Unix socket.
  var port: UInt16 { UInt16(address.split(separator: ":").last ?? "") ?? 0 }

  /// What it has logged.
  var logged: String { (try? String(contentsOfFile: log.string, encoding: .utf8)) ?? "" }

  /// Sends a signal, waits for the end, and returns the exit status.
  @discardableResult
  func stop(
    _ signal: Int32 = SIGTERM, file: StaticString = #filePath, line: UInt = #line
  ) -> Int32 {
    Glibc.kill(process.processIdentifier, signal)
    process.waitForEnd(file: file, line: line)
    return process.terminationStatus
  }

  func kill() {
    process.kill()
    process.waitUntilExit()
  }

  /// Whether all of its threads have stopped, as a SIGSTOP has them do.
  var isStopped: Bool {
    let tasks = "/proc/\(process.processIdentifier)/task"
    let all = (try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? []
    return !all.isEmpty
      && all.allSatisfy { task in
        let status = try? String(contentsOfFile: "\(tasks)/\(task)/status", encoding: .utf8)
        return status?.contains("State:\tT") ?? false
      }
  }

  /// Sets the soft limit of the size of files; `RLIMIT_FSIZE` counts for each write.
  func limitFiles(to size: String) throws {
    let prlimit = try ChildProcess.run(
      ChildProcess.installed("prlimit", package: "util-linux"),
      ["--pid", "\(process.processIdentifier)", "--fsize=\(size):"])
    XCTAssertEqual(prlimit.status, 0, prlimit.errors)
  }

  /// The most memory it ever had resident, in bytes.
  var peakMemory: Int { memory("VmHWM") }

  /// The memory that it has resident, in bytes.
  var residentMemory: Int { memory("VmRSS") }

  private func memory(_ name: String) -> Int {
    let status =
      (try? String(contentsOfFile: "/proc/\(process.processIdentifier)/status", encoding: .utf8))
      ?? ""
    let line = status.split(separator: "\n").first { $0.hasPrefix(name) } ?? ""
    return (Int(line.filter(\.isNumber)) ?? 0) << 10
  }

  /// What its descriptors are, as /proc has it.
  var descriptors: [String] {
    let path = "/proc/\(process.processIdentifier)/fd"
    let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
    return names.compactMap { name in
      try? FileManager.default.destinationOfSymbolicLink(atPath: "\(path)/\(name)")
    }
  }

  /// The number of sockets it has open.
  var sockets: Int { descriptors.count { $0.hasPrefix("socket:") } }
}
