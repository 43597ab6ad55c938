// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import DispatchAIO

/// The servers log by what they read and write files.
final class KernelLineTests: XCTestCase {
  func testTheServersLogTheirKernel() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile("disk", size: 1 << 20)
    let path = directory.path
    let threads = "files by threads, without kernel AIO"
    let own = KernelChoice.ofProcess == .best ? "files by kernel AIO, queue depth " : threads
    for (words, under) in [
      (own, []), (threads, ["/usr/bin/env", "\(KernelChoice.variable)=threads"]),
    ] {
      for (server, arguments) in [
        ("aio-httpd", [path.string]), ("aio-nbd", ["serve", path.appending("disk").string]),
        ("echo-to-disk", ["serve", "--data", path.appending("journal").string]),
      ] {
        let socket = path.appending("socket\(ServerProcess.nextNumber())").string
        let running = try ServerProcess(
          server, arguments + ["--unix", socket], log: path.appending("log"), under: under)
        XCTAssertTrue(running.logged.contains(words), "\(server): \(running.logged)")
      }
    }
  }
}
