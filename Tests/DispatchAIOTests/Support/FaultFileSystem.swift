// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import SystemPackage
import XCTest

/// A mounted FUSE file system whose files misbehave as the words in their names say, for the life
/// of the value: `Tests/CFaultFS/CFaultFS.c` lists the words. Needs root and `/dev/fuse`; skips the
/// test where it cannot have them.
///
/// It is served by a process of its own. With the end of that process, whatever still hangs ends
/// with an error, and it ends with this process, too.
final class FaultFileSystem {
  let path: FilePath
  private let process = Process()
  private let commands = Pipe()
  /// Removed after the file system has been unmounted.
  private let directory: TemporaryDirectory

  init(in directory: TemporaryDirectory) throws {
    guard getuid() == 0 else { throw XCTSkip("only root can mount a FUSE file system") }
    guard access("/dev/fuse", R_OK | W_OK) == 0 else { throw XCTSkip("there is no /dev/fuse") }
    self.directory = directory
    path = directory.path.appending("fault")
    try FileManager.default.createDirectory(
      atPath: path.string, withIntermediateDirectories: false)
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: try ChildProcess.built("dispatch-aio-probe"))
    process.arguments = ["fault-file-system", path.string]
    process.standardInput = commands
    process.standardOutput = output
    try process.run()
    let answer = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
    guard answer == "mounted\n" else { throw XCTSkip("no FUSE file system: \(answer)") }
  }

  deinit {
    try? commands.fileHandleForWriting.close()
    if !eventually(within: 10, { !process.isRunning }) { kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
    umount2(path.string, Int32(MNT_DETACH))
  }

  subscript(name: String) -> FilePath { path.appending(name) }

  /// Opens the gate: what hangs is answered, and nothing hangs any more.
  func release() {
    // The process reads until it is told to end.
    try? commands.fileHandleForWriting.write(contentsOf: Data("r".utf8))
  }

  /// How many requests of the kernel's hang.
  var hanging: Int {
    guard let descriptor = try? FileDescriptor.open(self["hanging"], .readOnly) else { return 0 }
    defer { try? descriptor.close() }
    var text = [UInt8](repeating: 0, count: 16)
    let count = text.withUnsafeMutableBytes { (try? descriptor.read(into: $0)) ?? 0 }
    return Int(String(decoding: text[..<count], as: UTF8.self)) ?? 0
  }

  /// What a file has at first.
  static func contents(_ range: Range<Int> = 0..<1 << 20) -> [UInt8] {
    range.map { UInt8($0 % 251) }
  }

  /// What a file has now, read around the library, by system calls that may be short.
  func contents(of name: String) throws -> [UInt8] {
    let descriptor = try FileDescriptor.open(self[name], .readOnly)
    defer { try? descriptor.close() }
    var all: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = try part.withUnsafeMutableBytes {
        try descriptor.read(fromAbsoluteOffset: Int64(all.count), into: $0)
      }
      if count == 0 { return all }
      all += part[..<count]
    }
  }
}
