// SPDX-License-Identifier: Apache-2.0

import SystemPackage

/// A mounted FUSE file system whose files misbehave as the words in their names say, for the life
/// of the value: `Tests/CFaultFS/CFaultFS.c` lists the words. Skips the test where it cannot have
/// one.
final class FaultFileSystem {
  private let served: ServedFileSystem
  var path: FilePath { served.path }

  init(in directory: TemporaryDirectory) throws {
    served = try ServedFileSystem("fault-file-system", named: "fault", in: directory)
  }

  subscript(name: String) -> FilePath { served[name] }

  /// Opens the gate: what hangs is answered, and nothing hangs any more.
  func release() { served.send("r") }

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
