// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import SystemPackage
import XCTest

/// A FUSE file system that a process of `dispatch-aio-probe` serves, mounted for the life of the
/// value. Needs root and `/dev/fuse`; skips the test where it cannot have them.
///
/// With the end of that process, whatever still hangs ends with an error, and it ends with this
/// process, too.
///
/// - Safety: `@unchecked Sendable` because nothing of it changes after `init` but the process,
///   which may be used from any thread.
final class ServedFileSystem: @unchecked Sendable {
  let path: FilePath
  private let process = Process()
  private let commands = Pipe()
  /// Removed after the file system has been unmounted.
  private let directory: TemporaryDirectory

  /// - Parameters:
  ///   - command: the command of `dispatch-aio-probe` that serves it.
  ///   - name: where to mount it in the directory.
  init(_ command: String, named name: String, in directory: TemporaryDirectory) throws {
    guard getuid() == 0 else { throw XCTSkip("only root can mount a FUSE file system") }
    guard access("/dev/fuse", R_OK | W_OK) == 0 else { throw XCTSkip("there is no /dev/fuse") }
    self.directory = directory
    path = directory.path.appending(name)
    try FileManager.default.createDirectory(
      atPath: path.string, withIntermediateDirectories: false)
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: try ChildProcess.built("dispatch-aio-probe"))
    process.arguments = [command, path.string]
    process.standardInput = commands
    process.standardOutput = output
    try process.run()
    let answer = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
    guard answer == "mounted\n" else { throw XCTSkip("no FUSE file system: \(answer)") }
  }

  deinit {
    try? commands.fileHandleForWriting.close()
    if process.isRunning {
      if !eventually(within: 10, { !process.isRunning }) {
        kill(process.processIdentifier, SIGKILL)
      }
      process.waitUntilExit()
    }
    umount2(path.string, Int32(MNT_DETACH))
  }

  subscript(name: String) -> FilePath { path.appending(name) }

  /// Sends the process a signal.
  func signal(_ number: Int32) { kill(process.processIdentifier, number) }

  /// Tells the process something; it reads until it is told to end.
  func send(_ command: String) {
    try? commands.fileHandleForWriting.write(contentsOf: Data(command.utf8))
  }
}
