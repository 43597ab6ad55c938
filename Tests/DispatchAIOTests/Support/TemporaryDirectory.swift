// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// A directory on a real filesystem, gone when the value is.
final class TemporaryDirectory: Sendable {
  let path: FilePath

  /// - Parameter parent: where to make it; `TMPDIR`, or `/var/tmp`, which is meant to be on a disk.
  init(in parent: String? = nil) throws {
    let parent = parent ?? ProcessInfo.processInfo.environment["TMPDIR"] ?? "/var/tmp"
    var template = Array("\(parent)/dispatch-aio-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
    path = FilePath(platformString: template)
  }

  deinit {
    try? FileManager.default.removeItem(atPath: path.string)
  }

  /// A file of `size` bytes that have been written, each as `byte` says.
  func makeFile(
    _ name: String = "file", size: Int, byte: (Int) -> UInt8 = { UInt8(truncatingIfNeeded: $0) }
  ) throws -> FilePath {
    let file = path.appending(name)
    let descriptor = try FileDescriptor.open(
      file, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
    try descriptor.closeAfter {
      _ = try descriptor.writeAll((0..<size).map(byte))
      fsync(descriptor.rawValue)
    }
    return file
  }

  func contents(_ name: String = "file") throws -> [UInt8] {
    [UInt8](try Data(contentsOf: URL(fileURLWithPath: path.appending(name).string)))
  }

  /// The number of this process's descriptors that are open for what is in the directory.
  func openDescriptors() -> Int {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? []
    return names.count { name in
      let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\(name)")
      return link?.hasPrefix(path.string) ?? false
    }
  }

  /// A new file, open for reading and writing, direct unless told otherwise.
  func open(
    _ name: String = "file", _ mode: FileDescriptor.AccessMode = .readWrite,
    options: FileDescriptor.OpenOptions = .create, caching: AIOFile.Caching = .direct
  ) throws -> AIOFile {
    try AIOFile.open(path.appending(name), mode, options: options, caching: caching)
  }
}

extension XCTestCase {
  /// A temporary directory, or a skip: a directory that does direct I/O is nothing one can count
  /// on.
  func temporaryDirectory() throws -> TemporaryDirectory {
    let directory = try TemporaryDirectory()
    do {
      _ = try directory.open("probe")
      unlink(directory.path.appending("probe").string)
    } catch let error as AIOError where error.code == .directUnsupported {
      throw XCTSkip("\(directory.path) is on a filesystem without direct I/O; set TMPDIR")
    }
    return directory
  }
}
