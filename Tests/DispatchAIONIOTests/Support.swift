// SPDX-License-Identifier: Apache-2.0

#if NIO
import DispatchAIONIO
import Glibc
import NIOCore
import SystemPackage
import XCTest

/// A directory on a real file system, which is removed with the test.
struct TemporaryDirectory {
  let path: FilePath

  init(_ test: XCTestCase, function: String = #function) throws {
    // Not /tmp, which may be a tmpfs.
    let name = "/var/tmp/dispatch-aio-nio-\(getpid())-\(UInt32.random(in: 0 ... .max))"
    path = FilePath(name)
    guard mkdir(name, 0o700) == 0 else { throw Errno(rawValue: errno) }
    test.addTeardownBlock { try? FileManager.default.removeItem(atPath: name) }
  }

  func file(_ name: String, _ bytes: [UInt8]) throws -> FilePath {
    let path = path.appending(name)
    try Data(bytes).write(to: URL(fileURLWithPath: path.string))
    return path
  }
}

/// Bytes of which no two ranges are alike.
func testBytes(_ count: Int) -> [UInt8] {
  var state: UInt64 = 1
  return (0..<count).map { _ in
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return UInt8(truncatingIfNeeded: state >> 56)
  }
}

/// Drops a file from the page cache.
func evict(_ path: FilePath) throws {
  let file = try FileDescriptor.open(path, .readOnly)
  defer { try? file.close() }
  fsync(file.rawValue)
  posix_fadvise(file.rawValue, 0, 0, POSIX_FADV_DONTNEED)
}
#endif
