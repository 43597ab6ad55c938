// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What is done to the entries of a directory, and files that are replaced as a whole.
final class DirectoryEntryTests: XCTestCase {
  func testEntries() async throws {
    let directory = try temporaryDirectory()
    let root = try AIODirectory.open(directory.path)
    try await root.makeDirectory("sub")
    try await root.makeDirectory("sub/deeper", permissions: .ownerReadWriteExecute)
    _ = try directory.makeFile("sub/a", size: 100)
    symlink("a", directory.path.appending("sub/link").string)
    mkfifo(directory.path.appending("sub/pipe").string, 0o600)

    let entries = try await root.entries("sub")
    XCTAssertEqual(
      Dictionary(uniqueKeysWithValues: entries.map { ($0.name.string, $0.kind) }),
      ["a": .regular, "deeper": .directory, "link": .symbolicLink, "pipe": .pipe])
    let top = try await root.entries()
    XCTAssertEqual(top.map(\.name), ["sub"])

    var status = try await root.status(of: "sub/a")
    XCTAssertEqual([Int(status.size), status.linkCount], [100, 1])
    XCTAssertEqual(status.kind, .regular)
    XCTAssertEqual(status.permissions, .ownerReadWrite)
    XCTAssertEqual(status.inode, entries.first { $0.name == "a" }?.inode)
    status = try await root.status(of: "sub/link")
    XCTAssertEqual(status.kind, .symbolicLink)
    status = try await root.status(of: "sub/link", followsLink: true)
    XCTAssertEqual(status.kind, .regular)
    status = try await root.status(of: "sub/deeper")
    XCTAssertEqual(status.permissions, .ownerReadWriteExecute)

    try await root.rename("sub/a", to: "sub/deeper/b")
    _ = try directory.makeFile("sub/c", size: 5)
    await refused(.exists) { try await root.rename("sub/c", to: "sub/deeper/b", replaces: false) }
    try await root.rename("sub/c", to: "sub/deeper/b")
    XCTAssertEqual(try directory.contents("sub/deeper/b").count, 5)
    let sub = try AIODirectory.open(directory.path.appending("sub"))
    try await sub.rename("deeper/b", to: "b", in: root)
    try await root.sync()
    try await root.sync("sub")
    try await root.unlink("b")
    await refused(.notFound) { try await root.unlink("b") }
    await refused(.system) { try await root.removeDirectory("sub") }
    try await root.removeDirectory("sub/deeper")
    let left = try await root.entries("sub")
    XCTAssertEqual(Set(left.map(\.name.string)), ["link", "pipe"])
  }

  /// More entries than one call of the kernel gives.
  func testManyEntries() throws {
    let directory = try temporaryDirectory()
    for number in 0..<3000 {
      let path = directory.path.appending("entry-\(number)")
      try FileDescriptor.open(path, .writeOnly, options: .create, permissions: .ownerReadWrite)
        .close()
    }
    let root = try AIODirectory.open(directory.path)
    let names = try root.entries().map(\.name.string)
    XCTAssertEqual(Set(names), Set((0..<3000).map { "entry-\($0)" }))
    XCTAssertEqual(names.count, 3000)
  }

  /// No path leaves the directory, whichever call it is given to.
  func testNoCallLeavesTheDirectory() throws {
    let directory = try temporaryDirectory()
    try FileManager.default.createDirectory(
      atPath: directory.path.appending("inside").string, withIntermediateDirectories: false)
    _ = try directory.makeFile("secret", size: 10)
    symlink("..", directory.path.appending("inside/out").string)
    symlink("/etc", directory.path.appending("inside/etc").string)
    let inside = try AIODirectory.open(directory.path.appending("inside"))
    for path in ["../secret", "out/secret", "etc/passwd", "/etc/passwd"] as [FilePath] {
      for (name, call) in [
        ("unlink", { try inside.unlink(path) }), ("status", { _ = try inside.status(of: path) }),
        ("mkdir", { try inside.makeDirectory(path) }),
        ("rename", { try inside.rename(path, to: "x") }),
        ("rename to", { try inside.rename("etc", to: path) }),
        ("rmdir", { try inside.removeDirectory(path) }),
        ("list", { _ = try inside.entries(path.removingLastComponent()) }),
        ("sync", { try inside.sync(path.removingLastComponent()) }),
        ("replace", { _ = try AIOReplacement.begin(path, beneath: inside) }),
      ] as [(String, () throws -> Void)] {
        let error = try XCTUnwrap(assertRefused(.system, call), "\(name) of \(path)")
        XCTAssertEqual(error.errno?.rawValue, EXDEV, "\(name) of \(path): \(error)")
      }
    }
    for path in ["..", ".", "", "a/.."] as [FilePath] {
      let error = try XCTUnwrap(assertRefused(.system) { try inside.unlink(path) })
      XCTAssertTrue("\(error)".contains("does not end with the name"), "\(error)")
    }
    XCTAssertEqual(try directory.contents("secret").count, 10)
  }

  private func refused(
    _ code: AIOError.Code, line: UInt = #line, _ body: () async throws -> Void
  ) async {
    do {
      try await body()
      XCTFail("not refused", line: line)
    } catch {
      XCTAssertEqual((error as? AIOError)?.code, code, "\(error)", line: line)
    }
  }

  // MARK: Replacements

  private func names(_ directory: TemporaryDirectory) throws -> [String] {
    try AIODirectory.open(directory.path).entries().map(\.name.string).sorted()
  }

  func testReplacement() async throws {
    for parent in [nil, "/dev/shm"] {
      guard let directory = try? TemporaryDirectory(in: parent) else { continue }
      let context = try AIOContext(queueDepth: 4)
      let path = directory.path.appending("state")
      // Where there is none, and then over the old, whose permissions it takes.
      for (byte, permissions) in [(1, 0o644), (2, 0o640), (3, 0o640)] as [(UInt8, UInt32)] {
        let block = AIOBuffer([UInt8](repeating: byte, count: 4096))
        let other = try? await AIOFile.open(path, .readOnly)
        let count = try await AIOFile.replace(path) { file in
          XCTAssertEqual(try names(directory), byte == 1 ? [] : ["state"], "it has no name yet")
          return try await context.write(file, at: 0, from: [block])
        }
        XCTAssertEqual(count, 4096)
        XCTAssertEqual(try directory.contents("state"), block.array)
        if let other {
          let old = AIOBuffer(count: 4096)
          _ = try await context.read(other, at: 0, into: [old])
          XCTAssertEqual(old.array.first, byte - 1, "who has the old file keeps it")
        }
        let root = try AIODirectory.open(directory.path)
        XCTAssertEqual(try status(root).permissions.rawValue, permissions & ~mask)
        chmod(path.string, 0o640)
      }
      XCTAssertEqual(try names(directory), ["state"])

      // What is thrown within, and a replacement that is dropped or abandoned, changes nothing.
      struct Stop: Error {}
      do {
        try await AIOFile.replace(path) { file in
          try await context.write(file, at: 0, from: [AIOBuffer(count: 4096)])
          throw Stop()
        }
        XCTFail("not thrown")
      } catch is Stop {}
      do {
        _ = try await AIOReplacement.begin(path)
      }
      let abandoned = try await AIOReplacement.begin(path)
      abandoned.abandon()
      await refused(.fileClosed) { try await abandoned.commit() }
      XCTAssertEqual(try directory.contents("state").first, 3)
      XCTAssertEqual(try names(directory), ["state"])

      // One that may not replace, with and without an old file.
      let kept = try await AIOReplacement.begin(path, existing: .keep)
      await refused(.exists) { try await kept.commit() }
      let new = try await AIOReplacement.begin(
        directory.path.appending("new"), existing: .keep, permissions: .ownerReadWrite)
      try await new.commit()
      await refused(.fileClosed) { try await new.commit() }
      XCTAssertFalse(new.file.isClosed, "it stays open")
      XCTAssertEqual(try names(directory), ["new", "state"])
      await context.close()
    }
  }

  /// Blocking calls, which an async function does not get.
  private func status(_ root: AIODirectory) throws -> AIOFile.Status {
    try root.status(of: "state")
  }
  private var mask: UInt32 {
    let mask = umask(0)
    umask(mask)
    return UInt32(mask)
  }

  /// A directory in place of the file is not replaced, and nothing remains.
  func testReplacementThatFails() throws {
    let directory = try temporaryDirectory()
    let root = try AIODirectory.open(directory.path)
    try root.makeDirectory("state")
    let replacement = try AIOReplacement.begin("state", beneath: root)
    assertRefused(.system) { try replacement.commit() }
    XCTAssertEqual(try names(directory), ["state"])
    assertRefused(.notFound) { try AIOReplacement.begin("missing/state", beneath: root) }
    assertRefused(.system) { try AIOReplacement.begin("..", beneath: root) }
  }

  /// The order of the calls is what makes it durable: the bytes, the name, the directory.
  func testTheCallsOfAReplacement() throws {
    let directory = try temporaryDirectory()
    for (old, naming) in [(false, ["linkat"]), (true, ["linkat", "linkat", "renameat"])] {
      let place = try TemporaryDirectory(in: directory.path.string)
      if old { _ = try place.makeFile("state", size: 10) }
      let log = try SystemCallLog(
        tracing: "fsync,linkat,renameat,renameat2,unlinkat",
        ChildProcess.built("dispatch-aio-probe"), ["replace", place.path.string], in: directory)
      XCTAssertEqual(log.run.status, 0, log.run.errors)
      XCTAssertEqual(log.run.output, "replaced\n")
      XCTAssertEqual(try names(place), ["state"])
      // The Thread Sanitizer has a file of its own.
      let calls = log.calls.filter { !$0.hasPrefix("+++") && !$0.contains("tsan.rodata") }
        .map { String($0.prefix { $0 != "(" }) }
      XCTAssertEqual(calls, ["fsync"] + naming + ["fsync"], "\(log.calls)")
    }
  }

  /// Runs a command of the probe's in a directory where there are no files without a name.
  ///
  /// - Parameter failing: System calls, each with the error that it is made to answer.
  private func replaceByName(
    _ command: String, _ place: TemporaryDirectory, failing: [String] = [],
    in directory: TemporaryDirectory
  ) throws -> SystemCallLog {
    // The second openat of the directory is that of the file without a name.
    let injections = ["openat:error=EOPNOTSUPP:when=2"] + failing
    let log = try SystemCallLog(
      tracing: "openat,linkat,renameat,renameat2,unlinkat",
      options: ["-P", place.path.string] + injections.flatMap { ["-e", "inject=\($0)"] },
      ChildProcess.built("dispatch-aio-probe"), [command, place.path.string], in: directory)
    XCTAssertEqual(log.calls(with: "openat(", "O_TMPFILE", "INJECTED").count, 1, "\(log.calls)")
    return log
  }

  /// Where there is no O_TMPFILE, the file has a temporary name, which goes: to the file, or away.
  func testReplacementWithoutUnnamedFiles() throws {
    let directory = try temporaryDirectory()
    for (failing, left) in [([], ["state"]), (["renameat:error=EIO"], [])] {
      let place = try TemporaryDirectory(in: directory.path.string)
      let log = try replaceByName("replace", place, failing: failing, in: directory)
      XCTAssertEqual(log.calls(with: "renameat(", ".aio-").count, 1, "\(log.calls)")
      XCTAssertEqual(log.run.output, failing.isEmpty ? "replaced\n" : "")
      XCTAssertEqual(try names(place), left)
    }
  }

  /// One that may not replace gives the file its name by a link, as NFS and FUSE have no rename
  /// that keeps what is there, and by such a rename where there are no links.
  func testReplacementOfNothingWithoutUnnamedFiles() throws {
    let directory = try temporaryDirectory()
    for failing in [["renameat2:error=EINVAL"], ["linkat:error=EPERM"]] {
      let place = try TemporaryDirectory(in: directory.path.string)
      for output in ["replaced\n", ""] {
        let log = try replaceByName("replace-none", place, failing: failing, in: directory)
        XCTAssertEqual(log.run.output, output, "\(failing): \(log.calls)")
        if output.isEmpty { XCTAssertTrue(log.run.errors.contains("exists"), log.run.errors) }
        XCTAssertEqual(try names(place), ["state"])
      }
    }
  }

  /// A file that only its owner may read is replaced by one that nobody else can open meanwhile,
  /// although it has a name.
  func testReplacementOfAPrivateFile() throws {
    let directory = try temporaryDirectory()
    for (old, first) in [(0o600, "0600)"), (0o440, "0640)"), (0o777, "0644)")] as [(mode_t, String)]
    {
      let place = try TemporaryDirectory(in: directory.path.string)
      let path = try place.makeFile("state", size: 10).string
      chmod(path, old)
      let log = try replaceByName("replace", place, in: directory)
      XCTAssertEqual(log.run.output, "replaced\n", log.run.errors)
      XCTAssertEqual(log.calls(with: "openat(", ".aio-", first).count, 1, "\(log.calls)")
      let root = try AIODirectory.open(place.path)
      XCTAssertEqual(try status(root).permissions.rawValue, old)
    }
  }

  /// Permissions that cannot be set, or asked for, are a failure: the old file stays.
  func testReplacementThatCannotSetPermissions() throws {
    let directory = try temporaryDirectory()
    for (failing, old, isReplaced) in [
      ("fchmod:error=EIO", 0o666, false), ("fchmod:error=EPERM", 0o600, true),
      ("newfstatat:error=EIO:when=2", 0o600, false),
    ] as [(String, mode_t, Bool)] {
      let place = try TemporaryDirectory(in: directory.path.string)
      let path = try place.makeFile("state", size: 10).string
      chmod(path, old)
      var options = ["-e", "inject=\(failing)"]
      if failing.hasPrefix("newfstatat") { options += ["-P", place.path.string] }
      let log = try SystemCallLog(
        tracing: "fchmod,newfstatat", options: options,
        ChildProcess.built("dispatch-aio-probe"), ["replace", place.path.string], in: directory)
      XCTAssertEqual(log.run.output, isReplaced ? "replaced\n" : "", "\(log.calls)")
      XCTAssertEqual(try names(place), ["state"])
      XCTAssertEqual(try place.contents("state").count, isReplaced ? 0 : 10)
      let root = try AIODirectory.open(place.path)
      XCTAssertEqual(try status(root).permissions.rawValue, old)
    }
  }
}
