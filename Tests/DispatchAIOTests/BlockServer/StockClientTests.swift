// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// The block device server with the clients that people have. Each test skips where its client is
/// not installed.
final class StockClientTests: XCTestCase {
  /// An image with data, holes, and an end that is no whole block.
  private func makeImage(_ directory: TemporaryDirectory, _ name: String) throws -> String {
    let path = directory.path.appending(name).string
    let descriptor = open(path, O_CREAT | O_TRUNC | O_RDWR, 0o600)
    defer { close(descriptor) }
    ftruncate(descriptor, 40 << 20)
    for (offset, count) in [(0, 3 << 20), (10 << 20, 100_000), (20 << 20, 5 << 20)] {
      let bytes = randomBytes(count)
      XCTAssertEqual(pwrite(descriptor, bytes, count, off_t(offset)), count)
    }
    return path
  }

  private func makeDisk(_ directory: TemporaryDirectory, _ name: String, _ size: Int) {
    let path = directory.path.appending(name).string
    _ = FileManager.default.createFile(atPath: path, contents: nil)
    truncate(path, off_t(size))
  }

  private func isSame(_ a: String, _ b: String, count: Int) throws -> Bool {
    try Data(contentsOf: URL(fileURLWithPath: a)).prefix(count)
      == Data(contentsOf: URL(fileURLWithPath: b)).prefix(count)
  }

  @discardableResult
  private func run(
    _ program: String, _ package: String, _ arguments: [String], file: StaticString = #filePath,
    line: UInt = #line
  ) throws -> String {
    let run = try ChildProcess.run(
      ChildProcess.installed(program, package: package), arguments)
    XCTAssertEqual(
      run.status, 0, "\(program) \(arguments): \(run.output) \(run.errors)", file: file, line: line)
    return run.output
  }

  func testQemuImgConvertsInAndOut() throws {
    let directory = try temporaryDirectory()
    let image = try makeImage(directory, "image")
    makeDisk(directory, "disk", 40 << 20)
    let server = try NBDServer(directory, ["disk", "image"])
    try run(
      "qemu-img", "qemu-utils",
      ["convert", "-U", "-n", "-f", "raw", "-O", "raw", image, server.uri()])
    let out = directory.path.appending("out").string
    try run(
      "qemu-img", "qemu-utils", ["convert", "-f", "raw", "-O", "raw", server.uri(), out])
    XCTAssertTrue(try isSame(image, out, count: 40 << 20))
    let compared = try run(
      "qemu-img", "qemu-utils",
      ["compare", "-f", "raw", "-F", "raw", server.uri("image"), server.uri()])
    XCTAssertTrue(compared.contains("identical"), compared)
    let map = try run(
      "qemu-img", "qemu-utils", ["map", "-f", "raw", "--output=json", server.uri()])
    XCTAssertTrue(map.contains("\"zero\": true"), map)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// QEMU's programs and the server keep out of each other's way, by QEMU's own locks.
  func testQemuLocks() throws {
    let nbd = try ChildProcess.installed("qemu-nbd", package: "qemu-utils")
    let io = try ChildProcess.installed("qemu-io", package: "qemu-utils")
    let image = try ChildProcess.installed("qemu-img", package: "qemu-utils")
    let directory = try temporaryDirectory()
    makeDisk(directory, "disk", 1 << 20)
    let path = directory.path.appending("disk").string
    let out = directory.path.appending("out").string
    func uses(_ expected: [Bool], line: UInt = #line) throws {
      for (index, (program, arguments)) in [
        (io, ["-f", "raw", "-c", "write 0 4k", path]),
        (image, ["resize", "-f", "raw", path, "1M"]),
        (image, ["convert", "-f", "raw", "-O", "raw", path, out]),
        (io, ["-r", "-f", "raw", "-c", "read 0 4k", path]),
      ].enumerated() {
        let run = try ChildProcess.run(program, arguments)
        XCTAssertEqual(run.status == 0, expected[index], "\(arguments) \(run.errors)", line: line)
        if run.status != 0 { XCTAssertTrue(run.errors.contains("lock"), run.errors, line: line) }
      }
    }
    // What writes is alone; who only reads and does not mind that somebody writes may.
    var server = try NBDServer(directory, ["disk"])
    try uses([false, false, false, true])
    XCTAssertEqual(server.stop(), 0)
    server = try NBDServer(directory, ["disk"], ["--read-only"])
    try uses([false, false, true, true])
    XCTAssertEqual(server.stop(), 0)
    try uses([true, true, true, true])
    // And the other way round.
    let socket = directory.path.appending("qemu").string
    for (options, writes, reads) in [([], false, false), (["--read-only"], true, true)] {
      let process = Process()
      process.executableURL = URL(fileURLWithPath: nbd)
      process.arguments = ["-f", "raw", "--persistent", "--socket", socket, path] + options
      try process.run()
      defer {
        process.terminate()
        process.waitForEnd()
        unlink(socket)
      }
      // The image is locked before the socket is there.
      XCTAssertTrue(eventually { access(socket, F_OK) == 0 })
      for (options, isServed) in [([], writes), (["--read-only"], reads)] {
        do {
          let server = try NBDServer(directory, ["disk"], options)
          XCTAssertTrue(isServed, "\(options)")
          XCTAssertEqual(server.stop(), 0)
        } catch let error as NBDServer.Failure {
          XCTAssertFalse(isServed, "\(options)")
          XCTAssertTrue(error.description.contains("is in use, by QEMU"), error.description)
        }
      }
    }
  }

  func testQemuIO() throws {
    let directory = try temporaryDirectory()
    makeDisk(directory, "disk", (16 << 20) + 100)
    let server = try NBDServer(directory, ["disk"])
    let commands = [
      "write -P 1 0 1M", "write -P 2 100 1000", "write -f -P 3 4096 4096", "read -P 1 0 100",
      "read -P 2 100 1000", "read -P 1 1100 2996", "read -P 3 4096 4096", "write -z 200 5000",
      "read -P 0 200 5000", "read -P 3 5200 2992", "read -P 1 8192 1000", "discard 512k 64k",
      "write -zu 600k 100k",
      "read -P 0 600k 100k", "aio_write -P 9 2M 1M", "aio_write -P 8 3M 64k", "aio_flush",
      "read -P 9 2M 1M", "read -P 8 3M 64k", "flush",
    ]
    let output = try run(
      "qemu-io", "qemu-utils", ["-f", "raw"] + commands.flatMap { ["-c", $0] } + [server.uri()])
    XCTAssertFalse(output.contains("failed"), output)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  func testNBDInfo() throws {
    let directory = try temporaryDirectory()
    _ = try makeImage(directory, "image")
    let server = try NBDServer(directory, ["disk=image", "other=image"], ["--read-only"])
    let list = try run("nbdinfo", "libnbd-bin", ["--list", server.uri("")])
    for expected in [
      "export=\"disk\"", "export=\"other\"", "base:allocation", "is_read_only: true",
      "can_multi_conn: true", "can_df: true", "can_fua: true", "block_size_maximum: 33554432",
    ] { XCTAssertTrue(list.contains(expected), "\(expected): \(list)") }
    XCTAssertEqual(
      try run("nbdinfo", "libnbd-bin", ["--size", server.uri()]), "\(40 << 20)\n")
    let map = try run("nbdinfo", "libnbd-bin", ["--map", server.uri()])
    let lines = map.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
    guard lines.count > 1 else { throw XCTSkip("this filesystem tells of no holes") }
    XCTAssertEqual(
      lines.map { $0[0] + " " + $0[3] },
      [
        "0 data", "3145728 hole,zero", "10485760 data", "10588160 hole,zero", "20971520 data",
        "26214400 hole,zero",
      ])
    // Started by the client, as by systemd.
    makeDisk(directory, "alone", 40 << 20)
    let alone = directory.path.appending("alone").string
    let started = try run(
      "nbdinfo", "libnbd-bin",
      ["--size", "[", try ChildProcess.built("aio-nbd"), "serve", alone, "]"])
    XCTAssertEqual(started, "\(40 << 20)\n")
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  func testNBDCopyBothWaysOverManyConnections() throws {
    let directory = try temporaryDirectory()
    let image = try makeImage(directory, "image")
    makeDisk(directory, "disk", 40 << 20)
    let server = try NBDServer(directory, ["disk", "image"], ["--loops", "2"])
    let connections = ["--connections=8", "--threads=4"]
    try run("nbdcopy", "libnbd-bin", connections + ["--flush", image, server.uri()])
    let out = directory.path.appending("out").string
    try run("nbdcopy", "libnbd-bin", connections + [server.uri(), out])
    XCTAssertTrue(try isSame(image, out, count: 40 << 20))
    // From export to export.
    makeDisk(directory, "copy", 40 << 20)
    let second = try NBDServer(directory, ["disk=copy"])
    try run("nbdcopy", "libnbd-bin", connections + [server.uri("image"), second.uri()])
    XCTAssertTrue(try isSame(image, directory.path.appending("copy").string, count: 40 << 20))
    XCTAssertEqual(second.stop(), 0, second.logged)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  func testFioVerifies() throws {
    let fio = try ChildProcess.installed("fio", package: "fio")
    guard try ChildProcess.run(fio, ["--enghelp"]).output.contains("nbd") else {
      throw XCTSkip("this fio has no nbd engine")
    }
    let directory = try temporaryDirectory()
    makeDisk(directory, "disk", 64 << 20)
    let server = try NBDServer(directory, ["disk"])
    for parameters in [
      ["--bs=4k", "--iodepth=32", "--fsync=32"],
      ["--bsrange=512-256k", "--bs_unaligned=1", "--iodepth=8"],
    ] {
      let run = try ChildProcess.run(
        fio,
        [
          "--name=verify", "--ioengine=nbd", "--uri=\(server.uri())", "--rw=randwrite",
          "--size=16m", "--verify_state_save=0", "--verify=crc32c", "--verify_fatal=1",
          "--do_verify=1", "--randseed=1",
        ] + parameters)
      XCTAssertEqual(run.status, 0, "\(parameters) \(run.output) \(run.errors)")
    }
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  func testNBDClientLists() throws {
    let client = try ChildProcess.installed("nbd-client", package: "nbd-client")
    let directory = try temporaryDirectory()
    makeDisk(directory, "disk", 4096)
    let server = try NBDServer(directory, ["disk", "second=disk"], ["--read-only"])
    let run = try ChildProcess.run(client, ["-unix", server.socket, "-l"])
    XCTAssertEqual(run.status, 0, run.errors)
    XCTAssertTrue(run.output.contains("disk\nsecond\n"), run.output)
    XCTAssertEqual(server.stop(), 0, server.logged)
  }

  /// A filesystem, made, filled and checked through FUSE.
  func testAFilesystemOnNBDFuse() throws {
    let fuse = try ChildProcess.installed("nbdfuse", package: "libnbd-bin")
    let make = try ChildProcess.installed("mkfs.ext4", package: "e2fsprogs")
    let check = try ChildProcess.installed("fsck.ext4", package: "e2fsprogs")
    let write = try ChildProcess.installed("debugfs", package: "e2fsprogs")
    let unmount = try ChildProcess.installed("fusermount3", package: "fuse3")
    guard access("/dev/fuse", R_OK | W_OK) == 0 else { throw XCTSkip("there is no /dev/fuse") }
    let directory = try temporaryDirectory()
    makeDisk(directory, "disk", 64 << 20)
    let image = try makeImage(directory, "image")
    let server = try NBDServer(directory, ["disk"])
    let mount = directory.path.appending("mount").string
    try FileManager.default.createDirectory(atPath: mount, withIntermediateDirectories: false)
    let process = Process()
    process.executableURL = URL(fileURLWithPath: fuse)
    process.arguments = [mount, server.uri()]
    process.standardError = FileHandle.nullDevice
    try process.run()
    let disk = mount + "/nbd"
    guard eventually(within: 10, { access(disk, F_OK) == 0 || !process.isRunning }),
      process.isRunning
    else {
      process.terminate()
      throw XCTSkip("FUSE cannot be mounted here")
    }
    defer {
      _ = try? ChildProcess.run(unmount, ["-u", mount])
      process.waitForEnd()
    }
    for (program, arguments) in [
      (make, ["-q", "-F", disk]), (write, ["-w", "-R", "write \(image) image", disk]),
      (check, ["-f", "-n", disk]),
    ] {
      let run = try ChildProcess.run(program, arguments)
      XCTAssertEqual(run.status, 0, "\(program): \(run.output) \(run.errors)")
    }
    let out = directory.path.appending("out").string
    let run = try ChildProcess.run(write, ["-R", "dump image \(out)", disk])
    XCTAssertEqual(run.status, 0, run.errors)
    XCTAssertTrue(try isSame(image, out, count: 40 << 20))
  }
}
