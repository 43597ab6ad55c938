// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// aio-copy of files, from and to places, that are not what they seem.
final class OddFileTests: XCTestCase {
  private func copy(_ arguments: String...) throws -> ChildProcess {
    try ChildProcess.run(ChildProcess.built("aio-copy"), arguments)
  }

  /// Runs a line of the shell, with aio-copy as `$copy`, in a directory.
  private func shell(_ line: String, in directory: TemporaryDirectory) throws -> ChildProcess {
    try ChildProcess.run(
      "/bin/sh", ["-c", "cd \"$directory\" || exit\n\(line)"],
      environment: [
        "copy": ChildProcess.built("aio-copy"), "directory": directory.path.string,
      ])
  }

  private func names(_ path: FilePath) throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: path.string).sorted()
  }

  private func read(_ path: String) throws -> Data {
    try Data(contentsOf: URL(fileURLWithPath: path))
  }

  // MARK: Sizes that are not the number of bytes

  func testFilesThatDoNotTellTheirSize() throws {
    let directory = try temporaryDirectory()
    let target = directory.path.appending("copy").string
    // Size 0, and bytes; size 4096, and fewer; the right size, without direct I/O.
    let candidates = [
      "/proc/version", "/proc/filesystems", "/sys/kernel/mm/transparent_hugepage/enabled",
      "/sys/fs/cgroup/cgroup.controllers", "/proc/config.gz", "/sys/kernel/notes",
    ]
    let sources = candidates.filter { access($0, R_OK) == 0 }
    try XCTSkipIf(sources.isEmpty, "no /proc and no /sys")
    for source in sources {
      let run = try copy(source, target, "--force", "--verify")
      XCTAssertEqual(run.status, 0, "\(source): \(run.errors)")
      let data = try read(target)
      XCTAssertEqual(data, try read(source), source)
      XCTAssertFalse(data.isEmpty, source)
      XCTAssertEqual(try names(directory.path), ["copy"])
    }
  }

  func testFilesThatCannotBeRead() throws {
    let directory = try temporaryDirectory()
    for source in ["/proc/self/mem", "/proc/1/mem"] where access(source, F_OK) == 0 {
      let run = try copy(source, directory.path.appending("copy").string)
      XCTAssertEqual(run.status, 1)
      let reasons = ["Input/output error", "Permission denied"]
      XCTAssertTrue(
        reasons.contains { run.errors == "aio-copy: \(source): \($0)\n" }, run.errors)
      XCTAssertEqual(try names(directory.path), [])
    }
  }

  // MARK: Standard descriptors

  /// Neither the source nor the copy takes the place of one that is closed, and what cannot be said
  /// is not in the copy.
  func testClosedStandardDescriptors() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 300_001)
    for closed in ["<&- >&- 2>&-", ">&-", "2>&-", "<&-", ">/dev/full 2>/dev/full"] {
      for options in ["", "--verify --fsync", "--preserve"] {
        let run = try shell("\"$copy\" source new \(options) \(closed)", in: directory)
        XCTAssertEqual(run.status, 0, "\(options) \(closed): \(run.errors)")
        XCTAssertEqual(try read(directory.path.appending("new").string), try read(source.string))
        // Nor is the error of one that fails.
        let again = try shell("\"$copy\" source new \(options) \(closed)", in: directory)
        XCTAssertEqual(again.status, 1)
        XCTAssertEqual(try read(directory.path.appending("new").string), try read(source.string))
        XCTAssertEqual(try names(directory.path), ["new", "source"])
        unlink(directory.path.appending("new").string)
      }
    }
  }

  // MARK: Names

  /// Names are bytes. What is not UTF-8 stays as it is, and what works a terminal is escaped.
  func testNamesThatAreNotText() throws {
    let directory = try temporaryDirectory()
    let run = try shell(
      #"""
      a=$(printf 'a\377') b=$(printf '\303b') && mkdir "$b" && printf one >"$a" &&
      "$copy" "$a" "$(printf 'c\376')" && cmp "$a" "$(printf 'c\376')" &&
      "$copy" "$a" "$b" && cmp "$a" "$b/$a" &&
      "$copy" "$b/$a" "$b/new" --fsync --verify && cmp "$a" "$b/new" &&
      "$copy" "$b/$a" "$b/new" --force && rm "$a" "$b/$a" "$b/new" "$(printf 'c\376')" && ls -A "$b"
      """#, in: directory)
    XCTAssertEqual(run.status, 0, run.errors)
    XCTAssertEqual(run.output, "")
    // The directory alone is left; nothing under another name.
    XCTAssertEqual(try shell("ls -A | wc -l", in: directory).output.trimmed, "1")

    let missing = try shell(
      #""$copy" "$(printf 'no\377\033[31m\nroot: it is fine')" new"#, in: directory)
    XCTAssertEqual(missing.status, 1)
    XCTAssertEqual(
      missing.errors,
      "aio-copy: no\\xFF\\u{1B}[31m\\nroot: it is fine: No such file or directory\n")
    let option = try shell(#""$copy" a b "$(printf -- '--x\033[31m')""#, in: directory)
    XCTAssertEqual(option.status, 64)
    XCTAssertFalse(option.errors.contains("\u{1B}"), option.errors)
  }

  // MARK: Directories in which names can only be added

  func testAnAppendOnlyDirectory() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 5000).string
    let target = directory.path.appending("target")
    try FileManager.default.createDirectory(
      atPath: target.string, withIntermediateDirectories: false)
    let chattr = try ChildProcess.installed("chattr", package: "e2fsprogs")
    let set = try ChildProcess.run(chattr, ["+a", target.string])
    try XCTSkipIf(set.status != 0, "chattr +a: \(set.errors)")
    defer { _ = try? ChildProcess.run(chattr, ["-a", target.string]) }
    // The copy is there, and nothing else.
    XCTAssertEqual(try copy(source, target.string).errors, "")
    XCTAssertEqual(try names(target), ["source"])
    XCTAssertEqual(try read(target.appending("source").string), try read(source))
    XCTAssertEqual(try copy(source, target.appending("new").string, "--force").errors, "")
    XCTAssertEqual(try names(target), ["new", "source"])
    // Nothing can be replaced there, which is said before anything is copied.
    let refused = try copy(source, target.string, "--force")
    XCTAssertEqual(refused.status, 1)
    XCTAssertEqual(
      refused.errors,
      "aio-copy: \(target)/source cannot be replaced: its directory is append-only (chattr +a)\n")
    XCTAssertEqual(try names(target), ["new", "source"])
  }

  // MARK: Many small extents

  /// As many extents as make the copy go through the page cache, with holes of several sizes.
  func testManySmallExtents() throws {
    let directory = try temporaryDirectory()
    let (source, copy) = (directory.path.appending("source"), directory.path.appending("copy"))
    let file = try FileDescriptor.open(
      source, .writeOnly, options: .create, permissions: .ownerReadWrite)
    var end: Int64 = 0
    try file.closeAfter {
      for extent in 0..<600 {
        let gap: Int64 = extent % 100 == 99 ? 3 << 20 : extent % 7 == 0 ? 64 << 10 : 4096
        let bytes = [UInt8](
          repeating: UInt8(extent % 250 + 1), count: extent % 5 == 0 ? 5000 : 4096)
        end += gap
        try file.writeAll(toAbsoluteOffset: end, bytes)
        end = (end + Int64(bytes.count) + 4095) / 4096 * 4096
      }
      XCTAssertEqual(ftruncate(file.rawValue, off_t(end + 12345)), 0)
      XCTAssertEqual(fsync(file.rawValue), 0)
    }
    for options in [[], ["--verify", "--force"], ["--chunk", "4KiB", "--fsync", "--force"]] {
      let run = try ChildProcess.run(
        ChildProcess.built("aio-copy"), [source.string, copy.string] + options)
      XCTAssertEqual(run.status, 0, run.errors)
      XCTAssertEqual(
        try ChildProcess.run("/usr/bin/cmp", [source.string, copy.string]).status, 0, "\(options)")
      let (before, after) = (try status(source), try status(copy))
      XCTAssertEqual(before.st_size, after.st_size)
      XCTAssertEqual(fsyncOf(copy), 0)
      XCTAssertLessThan(try status(copy).st_blocks, before.st_blocks + 1024, "holes were filled")
    }
  }

  private func fsyncOf(_ path: FilePath) -> Int32 {
    let descriptor = open(path.string, O_RDONLY)
    defer { close(descriptor) }
    return fsync(descriptor)
  }

  private func status(_ path: FilePath) throws -> stat {
    var status = stat()
    guard lstat(path.string, &status) == 0 else { throw Errno(rawValue: errno) }
    return status
  }

  // MARK: Interruptions

  private func start(_ command: [String]) throws -> Process {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: command[0])
    process.arguments = Array(command.dropFirst())
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    return process
  }

  /// Where files without a name cannot be had: the temporary one goes with any signal, and with the
  /// terminal.
  func testATemporaryNameGoes() throws {
    let directory = try temporaryDirectory()
    let disk = try PassThrough(in: directory)
    let source = directory.path.appending("source").string
    XCTAssertTrue(FileManager.default.createFile(atPath: source, contents: Data(count: 64 << 20)))
    let command = [
      try ChildProcess.built("aio-copy"), source, disk.path.appending("copy").string, "--chunk",
      "4k", "--queue-depth", "1",
    ]
    let isUnderWay = { [self] in
      (try? names(disk.path))?.contains { $0.hasPrefix(".aio-copy-") } ?? false
    }
    for (number, code) in [(SIGTERM, Int32(143)), (SIGINT, 130), (SIGHUP, 129), (SIGQUIT, 131)] {
      let process = try start(command)
      XCTAssertTrue(eventually(isUnderWay))
      // Ignored, all of them.
      for ignored in [SIGUSR1, SIGUSR2, SIGPIPE] { kill(process.processIdentifier, ignored) }
      kill(process.processIdentifier, number)
      process.waitForEnd()
      XCTAssertEqual(process.terminationReason, .exit)
      XCTAssertEqual(process.terminationStatus, code)
      XCTAssertEqual(try names(disk.path), [])
    }
    // A terminal, which is gone when `script` is: with SIGHUP for whoever is in its foreground.
    let script = try ChildProcess.installed("script", package: "bsdutils")
    let terminal = try start(
      [script, "-qfc", command.map { "'\($0)'" }.joined(separator: " "), "/dev/null"])
    XCTAssertTrue(eventually(isUnderWay))
    kill(terminal.processIdentifier, SIGKILL)
    terminal.waitUntilExit()
    XCTAssertTrue(eventually { (try? names(disk.path)) == [] }, "a hidden file is left")
    // And it is a copy like any other when nothing happens.
    let whole = try ChildProcess.run(command[0], [source, command[2], "--fsync", "--verify"])
    XCTAssertEqual(whole.errors, "")
    XCTAssertEqual(try names(disk.path), ["copy"])
  }
}

/// A filesystem on FUSE, for the life of the value, that has what the one beneath has, except files
/// without a name. Skips the test where it cannot have it.
private final class PassThrough {
  let path: FilePath
  private let process = Process()
  private let directory: TemporaryDirectory

  init(in directory: TemporaryDirectory) throws {
    self.directory = directory
    path = directory.path.appending("through")
    let beneath = directory.path.appending("beneath")
    for path in [path, beneath] {
      try FileManager.default.createDirectory(
        atPath: path.string, withIntermediateDirectories: false)
    }
    process.executableURL = URL(
      fileURLWithPath: try ChildProcess.installed("bindfs", package: "bindfs"))
    process.arguments = ["-f", beneath.string, path.string]
    process.standardError = FileHandle.nullDevice
    try process.run()
    let isMounted = eventually {
      !process.isRunning || Self.device(path) != Self.device(directory.path)
    }
    try XCTSkipIf(!isMounted || !process.isRunning, "bindfs cannot be mounted")
  }

  deinit {
    umount2(path.string, Int32(MNT_DETACH))
    if !eventually(within: 10, { !process.isRunning }) { kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
  }

  private static func device(_ path: FilePath) -> dev_t {
    var status = stat()
    return stat(path.string, &status) == 0 ? status.st_dev : 0
  }
}

extension String {
  fileprivate var trimmed: String { trimmingCharacters(in: .whitespacesAndNewlines) }
}
