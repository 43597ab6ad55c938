// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// aio-copy as a process.
final class CopyFileTests: XCTestCase {
  private func copy(_ arguments: String...) throws -> ChildProcess {
    try ChildProcess.run(ChildProcess.built("aio-copy"), arguments)
  }

  private func assertCopied(
    _ run: ChildProcess, file: StaticString = #filePath, line: UInt = #line
  ) {
    XCTAssertEqual(run.status, 0, run.errors, file: file, line: line)
    XCTAssertFalse(run.wasSignalled, file: file, line: line)
    XCTAssertEqual(run.output + run.errors, "", file: file, line: line)
  }

  /// Bytes that no shift by a block, and no lost block, leaves as they are.
  private func bytes(_ count: Int) -> Data {
    var (state, data) = (UInt64(count) | 1, Data(capacity: count + 8))
    while data.count < count {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      withUnsafeBytes(of: state) { data.append(contentsOf: $0) }
    }
    return data.prefix(count)
  }

  private func write(_ data: Data, _ path: FilePath) throws {
    try data.write(to: URL(fileURLWithPath: path.string))
  }

  private func read(_ path: FilePath) throws -> Data {
    try Data(contentsOf: URL(fileURLWithPath: path.string))
  }

  private func status(_ path: FilePath) throws -> stat {
    var status = stat()
    guard stat(path.string, &status) == 0 else { throw Errno(rawValue: errno) }
    return status
  }

  private func names(_ path: FilePath) throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: path.string).sorted()
  }

  // MARK: Copies

  private func copySizes(in directory: TemporaryDirectory) throws {
    let (source, copy) = (directory.path.appending("source"), directory.path.appending("copy"))
    for size in [0, 1, 511, 512, 4096, 4097, 1 << 20 + 3, 5 << 20] {
      let data = bytes(size)
      try write(data, source)
      assertCopied(try self.copy(source.string, copy.string, "--force", "--verify"))
      XCTAssertEqual(try status(copy).st_size, size)
      XCTAssertEqual(try read(copy), data, "\(size) bytes")
    }
    let data = bytes(100_001)
    try write(data, source)
    for options in [["--chunk", "4k", "--queue-depth", "3"], ["--fsync"], ["--queue-depth", "1"]] {
      assertCopied(
        try ChildProcess.run(
          ChildProcess.built("aio-copy"), [source.string, copy.string, "--force"] + options))
      XCTAssertEqual(try read(copy), data, "\(options)")
    }
    XCTAssertEqual(try names(directory.path), ["copy", "source"])
  }

  func testAnySize() throws {
    try copySizes(in: temporaryDirectory())
  }

  func testAnySizeInMemory() throws {
    guard FileManager.default.isWritableFile(atPath: "/dev/shm") else {
      throw XCTSkip("no /dev/shm")
    }
    try copySizes(in: TemporaryDirectory(in: "/dev/shm"))
  }

  func testIntoADirectory() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("name", size: 5000)
    let target = directory.path.appending("target")
    try FileManager.default.createDirectory(
      atPath: target.string, withIntermediateDirectories: false)
    assertCopied(try copy(source.string, target.string))
    XCTAssertEqual(try names(target), ["name"])
    XCTAssertEqual(try read(target.appending("name")), try read(source))
  }

  /// Holes at the beginning, between, and at the end, with data that no alignment suits.
  func testHolesStayHoles() throws {
    let directory = try temporaryDirectory()
    let (source, copy) = (directory.path.appending("source"), directory.path.appending("copy"))
    let size = 64 << 20 + 123
    let file = try FileDescriptor.open(
      source, .writeOnly, options: .create, permissions: .ownerReadWrite)
    try file.closeAfter {
      for offset in [3 << 20 + 17, 20 << 20, 40 << 20 - 1] {
        try file.writeAll(toAbsoluteOffset: Int64(offset), bytes(9000))
      }
      XCTAssertEqual(ftruncate(file.rawValue, size), 0)
      XCTAssertEqual(fsync(file.rawValue), 0)
    }
    guard try status(source).st_blocks < 1024 else { throw XCTSkip("no holes to be had here") }
    assertCopied(try self.copy(source.string, copy.string, "--verify"))
    XCTAssertEqual(try status(copy).st_size, size)
    XCTAssertLessThanOrEqual(try status(copy).st_blocks, try status(source).st_blocks + 64)
    XCTAssertEqual(try read(copy), try read(source))
    // Nothing but a hole.
    XCTAssertEqual(truncate(source.string, 0), 0)
    XCTAssertEqual(truncate(source.string, size), 0)
    assertCopied(try self.copy(source.string, copy.string, "--verify", "--force"))
    XCTAssertEqual(try status(copy).st_size, size)
    XCTAssertLessThan(try status(copy).st_blocks, 64)
  }

  /// Data in smaller blocks than the copy's disk has: the rest of each of those is a hole's zeros,
  /// and nothing of the piece before.
  func testToLargerBlocks() throws {
    let (one, other) = (try temporaryDirectory(), try temporaryDirectory())
    // Blocks of 1 KiB, as mkfs makes them on so small a disk.
    let from = try SmallDisk(in: one, megabytes: 16)
    let to = try SmallDisk(in: other, megabytes: 64, type: "ext4", sectorSize: 4096)
    let source = from.path.appending("source")
    let file = try FileDescriptor.open(
      source, .writeOnly, options: .create, permissions: .ownerReadWrite)
    try file.closeAfter {
      for block in 0..<64 {
        let count = block % 2 == 0 ? 4096 : 1024
        try file.writeAll(toAbsoluteOffset: Int64(block * 8192), bytes(count))
      }
      XCTAssertEqual(fsync(file.rawValue), 0)
    }
    let copy = to.path.appending("copy")
    assertCopied(
      try self.copy(source.string, copy.string, "--queue-depth", "1", "--chunk", "4KiB"))
    XCTAssertEqual(try read(copy), try read(source))
  }

  func testThePermissionsAreKept() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10)
    let copy = directory.path.appending("copy")
    for mode: mode_t in [0o400, 0o755, 0o666, 0o4711] {
      XCTAssertEqual(chmod(source.string, mode), 0)
      assertCopied(try self.copy(source.string, copy.string, "--force"))
      XCTAssertEqual(try status(copy).st_mode & 0o7777, mode)
    }
  }

  // MARK: Refusals

  func testNothingIsOverwrittenUnlessForced() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10)
    let copy = try directory.makeFile("copy", size: 3)
    let refused = try self.copy(source.string, copy.string)
    XCTAssertEqual(refused.status, 1)
    XCTAssertEqual(refused.errors, "aio-copy: \(copy) exists; --force replaces it\n")
    XCTAssertEqual(try read(copy).count, 3)
    assertCopied(try self.copy(source.string, copy.string, "--force"))
    XCTAssertEqual(try read(copy).count, 10)
    XCTAssertEqual(try names(directory.path), ["copy", "source"])
  }

  func testErrors() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10).string
    func path(_ name: String) -> String { directory.path.appending(name).string }
    try FileManager.default.createDirectory(
      atPath: path("directory/source"), withIntermediateDirectories: true)
    XCTAssertEqual(symlink("source", path("link")), 0)
    XCTAssertEqual(symlink("nowhere", path("dangling")), 0)
    XCTAssertEqual(link(source, path("twin")), 0)
    XCTAssertEqual(mkfifo(path("fifo"), 0o600), 0)
    let before = try names(directory.path)
    let table: [(source: String, dest: String, force: Bool, error: String)] = [
      (path("none"), path("new"), false, "\(path("none")): No such file or directory"),
      (path("directory"), path("new"), false, "\(path("directory")): not a regular file"),
      (path("fifo"), path("new"), false, "\(path("fifo")): not a regular file"),
      ("/dev/null", path("new"), false, "/dev/null: not a regular file"),
      ("/proc/self/mem", path("new"), false, "/proc/self/mem: Input/output error"),
      (source + "/", path("new"), false, "\(source)/: Not a directory"),
      (source, source, true, "are the same file"),
      (source, path("link"), true, "are the same file"),
      (source, path("twin"), true, "are the same file"),
      (source, directory.path.string, true, "are the same file"),
      (source, path("dangling"), false, "exists; --force"),
      (source, path("fifo"), true, "not a regular file, and is not replaced"),
      (source, path("directory"), true, "is a directory, and is not replaced"),
      (source, path("none/new"), false, "\(path("none")): No such file or directory"),
      (source, "/proc/new", false, "/proc: its filesystem lets nobody make files there"),
      (source, path("none") + "/", false, "\(path("none"))/: no such directory"),
      (source, path("twin") + "/", true, "\(path("twin"))/: not a directory"),
      (source, path("source/new"), false, "Not a directory"),
    ]
    for row in table {
      let run = try ChildProcess.run(
        ChildProcess.built("aio-copy"), [row.source, row.dest] + (row.force ? ["--force"] : []))
      XCTAssertEqual(run.status, 1, "\(row)")
      XCTAssertTrue(run.errors.hasPrefix("aio-copy: "), run.errors)
      XCTAssertTrue(run.errors.contains(row.error), "\(row): \(run.errors)")
      XCTAssertEqual(run.errors.count { $0 == "\n" }, 1, run.errors)
      XCTAssertEqual(try names(directory.path), before, "\(row)")
    }
    for options in [["--chunk", "5000"], ["--chunk", "0"], ["--queue-depth", "0"], ["--what"]] {
      let run = try ChildProcess.run(
        ChildProcess.built("aio-copy"), [source, path("new")] + options)
      XCTAssertEqual(run.status, 64, run.errors)
      XCTAssertTrue(run.errors.contains(options[0]), run.errors)
    }
  }

  func testNoPermission() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10).string
    let target = directory.path.appending("target").string
    try FileManager.default.createDirectory(atPath: target, withIntermediateDirectories: false)
    func asNobody(_ arguments: [String]) throws -> ChildProcess {
      guard getuid() == 0 else {
        return try ChildProcess.run(ChildProcess.built("aio-copy"), arguments)
      }
      XCTAssertEqual(chmod(directory.path.string, 0o755), 0)
      return try ChildProcess.run(
        ChildProcess.installed("setpriv", package: "util-linux"),
        ["--reuid=65534", "--clear-groups", ChildProcess.built("aio-copy")] + arguments)
    }
    XCTAssertEqual(chmod(target, 0o555), 0)
    XCTAssertEqual(chmod(source, 0o444), 0)
    let noWriting = try asNobody([source, target])
    XCTAssertEqual(noWriting.status, 1)
    XCTAssertEqual(noWriting.errors, "aio-copy: \(target): Permission denied\n")
    XCTAssertEqual(chmod(source, 0o000), 0)
    let noReading = try asNobody([source, target])
    XCTAssertEqual(noReading.status, 1)
    XCTAssertEqual(noReading.errors, "aio-copy: \(source): Permission denied\n")
  }

  func testAFullDiskIsLeftAsItWas() throws {
    let directory = try temporaryDirectory()
    let source = directory.path.appending("source")
    try write(bytes(24 << 20), source)
    let disk = try SmallDisk(in: directory, megabytes: 16)
    let before = try names(disk.path)
    let copy = disk.path.appending("copy")
    let run = try self.copy(source.string, copy.string)
    XCTAssertEqual(run.status, 1)
    XCTAssertEqual(run.errors, "aio-copy: \(copy): no space left on the device for 24MiB\n")
    XCTAssertEqual(try names(disk.path), before)
  }

  // MARK: Interruptions

  /// Whether a process has a file open that has no name, in a directory.
  private func hasUnnamedFile(_ process: Process, in directory: FilePath) -> Bool {
    let descriptors = "/proc/\(process.processIdentifier)/fd"
    let links = (try? FileManager.default.contentsOfDirectory(atPath: descriptors)) ?? []
    return links.contains {
      let target = try? FileManager.default.destinationOfSymbolicLink(
        atPath: "\(descriptors)/\($0)")
      return target.map { $0.hasPrefix(directory.string) && $0.hasSuffix(" (deleted)") } ?? false
    }
  }

  /// Starts a copy that takes a while, and returns when it is under way.
  private func startCopy(in directory: TemporaryDirectory) throws -> Process {
    let source = directory.path.appending("source")
    if access(source.string, F_OK) != 0 { try write(Data(count: 96 << 20), source) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try ChildProcess.built("aio-copy"))
    process.arguments = [
      source.string, directory.path.appending("copy").string, "--chunk", "4k",
      "--queue-depth", "1",
    ]
    process.standardError = FileHandle.nullDevice
    try process.run()
    XCTAssertTrue(
      eventually {
        hasUnnamedFile(process, in: directory.path)
      })
    return process
  }

  func testASignalLeavesNothing() throws {
    let directory = try temporaryDirectory()
    for (signal, code) in [(SIGTERM, Int32(143)), (SIGINT, 130), (SIGHUP, 129), (SIGQUIT, 131)] {
      let process = try startCopy(in: directory)
      kill(process.processIdentifier, signal)
      process.waitForEnd()
      XCTAssertEqual(process.terminationReason, .exit)
      XCTAssertEqual(process.terminationStatus, code)
      XCTAssertEqual(try names(directory.path), ["source"])
    }
  }

  func testAKillLeavesNoHalfFile() throws {
    let directory = try temporaryDirectory()
    let process = try startCopy(in: directory)
    kill(process.processIdentifier, SIGKILL)
    process.waitUntilExit()
    XCTAssertEqual(process.terminationReason, .uncaughtSignal)
    XCTAssertFalse(try names(directory.path).contains("copy"))
  }

  func testASourceThatBecomesShorter() throws {
    let directory = try temporaryDirectory()
    let process = try startCopy(in: directory)
    XCTAssertEqual(truncate(directory.path.appending("source").string, 5000), 0)
    process.waitForEnd()
    XCTAssertEqual(process.terminationStatus, 1)
    XCTAssertEqual(try names(directory.path), ["source"])
  }

  /// Cut where it has no data, so that no read ends before its end.
  func testASourceThatLosesItsHole() throws {
    let directory = try temporaryDirectory()
    let source = directory.path.appending("source")
    try write(Data(count: 96 << 20), source)
    XCTAssertEqual(truncate(source.string, 300 << 20), 0)
    let process = try startCopy(in: directory)
    XCTAssertEqual(truncate(source.string, 97 << 20), 0)
    process.waitForEnd()
    XCTAssertEqual(process.terminationStatus, 1)
    XCTAssertEqual(try names(directory.path), ["source"])
  }

  func testPiecesForWhichThereIsNoMemory() throws {
    try XCTSkipIf(Sanitizer.isBuiltIn, "a sanitizer needs more addresses than there are then")
    let directory = try temporaryDirectory()
    try write(Data(count: 192 << 20), directory.path.appending("source"))
    let run = try ChildProcess.run(
      "/bin/sh",
      [
        "-c", "cd \"$1\" && ulimit -v 400000 && exec \"$2\" source copy --chunk 192M", "sh",
        directory.path.string, ChildProcess.built("aio-copy"),
      ])
    XCTAssertEqual(run.status, 1)
    XCTAssertTrue(
      run.errors.contains("192MiB at once: choose a smaller --chunk or --queue-depth"), run.errors)
  }

  // MARK: Progress

  /// A pipe gets none, which every other test sees; a terminal does, unless it is told not to.
  func testProgressOnATerminal() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 4096).string
    for (options, isShown) in [([String](), true), (["--quiet"], false)] {
      // As posix_openpt(3) and its like do, which Swift does not see: unlock it, ask its number.
      let terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY)
      var (lock, number): (Int32, Int32) = (0, -1)
      guard terminal >= 0, ioctl(terminal, 0x4004_5431, &lock) == 0,  // TIOCSPTLCK
        ioctl(terminal, 0x8004_5430, &number) == 0  // TIOCGPTN
      else { throw XCTSkip("no pseudo terminal to be had") }
      defer { close(terminal) }
      let line = open("/dev/pts/\(number)", O_RDWR | O_NOCTTY)
      let process = Process()
      process.executableURL = URL(fileURLWithPath: try ChildProcess.built("aio-copy"))
      process.arguments =
        [source, directory.path.appending("copy").string, "--force"] + options
      process.standardError = FileHandle(fileDescriptor: line, closeOnDealloc: true)
      try process.run()
      process.waitForEnd()
      XCTAssertEqual(process.terminationStatus, 0)
      XCTAssertEqual(fcntl(terminal, F_SETFL, O_NONBLOCK), 0)
      var buffer = [UInt8](repeating: 0, count: 4096)
      let count = Glibc.read(terminal, &buffer, buffer.count)
      let text = String(decoding: buffer.prefix(max(count, 0)), as: UTF8.self)
      XCTAssertEqual(text.contains("4KiB in "), isShown, text)
      XCTAssertEqual(text.isEmpty, !isShown, text)
    }
  }
}
