// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import CopyFile

/// What aio-copy makes of permissions, access control lists, attributes, times and owners.
final class MetadataTests: XCTestCase {
  private func copy(_ arguments: String...) throws {
    let run = try ChildProcess.run(ChildProcess.built("aio-copy"), arguments)
    XCTAssertEqual(run.errors, "")
    XCTAssertEqual(run.status, 0)
  }

  private func status(_ path: FilePath) throws -> stat {
    var status = stat()
    guard lstat(path.string, &status) == 0 else { throw Errno(rawValue: errno) }
    return status
  }

  /// The lines of a file's list, without its name and owner.
  private func accessList(_ path: FilePath) throws -> [String] {
    let run = try ChildProcess.run(
      ChildProcess.installed("getfacl", package: "acl"), ["-cpnE", path.string])
    return run.output.split(separator: "\n").map(String.init).filter { !$0.isEmpty }
  }

  private func setAccessList(_ entries: String, _ path: FilePath, _ option: String = "-m") throws {
    let run = try ChildProcess.run(
      ChildProcess.installed("setfacl", package: "acl"), [option, entries, path.string])
    try XCTSkipIf(run.status != 0, "no access control lists here: \(run.errors)")
  }

  // MARK: Lists

  /// Lists as bytes, and the mode that gives nobody more.
  func testAModeThatIsNotWiderThanAList() {
    let none = UInt32.max
    func list(_ entries: [(tag: UInt16, rights: UInt16, id: UInt32)]) -> [UInt8] {
      var bytes: [UInt8] = [2, 0, 0, 0]
      for entry in entries {
        for value in [entry.tag, entry.rights] { bytes += [UInt8(value & 255), UInt8(value >> 8)] }
        bytes += (0..<4).map { UInt8(truncatingIfNeeded: entry.id >> (8 * $0)) }
      }
      return bytes
    }
    let (owner, user, ownGroup, group, mask, other):
      (UInt16, UInt16, UInt16, UInt16, UInt16, UInt16)
    (owner, user, ownGroup, group, mask, other) = (1, 2, 4, 8, 16, 32)
    let table: [([(UInt16, UInt16, UInt32)], mode_t)] = [
      ([(owner, 6, none), (ownGroup, 4, none), (other, 0, none)], 0o640),
      // The group's bits of the mode are the mask's: 6.
      (
        [
          (owner, 6, none), (user, 6, 1), (ownGroup, 0, none), (mask, 6, none), (other, 0, none),
        ], 0o600
      ),
      // The mask takes from the group.
      (
        [
          (owner, 7, none), (user, 7, 1), (ownGroup, 7, none), (mask, 4, none), (other, 4, none),
        ], 0o744
      ),
      // A named user who may do nothing would be anybody.
      (
        [
          (owner, 6, none), (user, 0, 1), (ownGroup, 4, none), (mask, 4, none), (other, 4, none),
        ], 0o600
      ),
      // A named group that may do nothing would be others.
      (
        [
          (owner, 6, none), (ownGroup, 4, none), (group, 0, 1), (mask, 4, none), (other, 4, none),
        ], 0o640
      ),
    ]
    for (entries, mode) in table {
      XCTAssertEqual(AccessList(list(entries))?.plainBits, mode, "\(entries)")
    }
    XCTAssertNil(AccessList([]))
    XCTAssertNil(AccessList([1, 0, 0, 0]))
    XCTAssertNil(AccessList(list([(owner, 6, none)])))
    XCTAssertNil(AccessList(list(table[0].0) + [1]))
  }

  func testTheGroupDoesNotGetTheMasksRights() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10)
    let copy = directory.path.appending("copy")
    XCTAssertEqual(chmod(source.string, 0o600), 0)
    try setAccessList("u:1:rw", source)
    XCTAssertEqual(try status(source).st_mode & 0o777, 0o660, "the mask is in the mode")
    try self.copy(source.string, copy.string)
    XCTAssertEqual(try accessList(copy), ["user::rw-", "group::---", "other::---"])
    // A list that withholds something from one user, of what others may.
    XCTAssertEqual(chmod(source.string, 0o644), 0)
    try setAccessList("u:1:---", source)
    try self.copy(source.string, copy.string, "--force")
    XCTAssertEqual(try accessList(copy), ["user::rw-", "group::---", "other::---"])
  }

  /// A directory that gives its new files a list: the copy's rights are the source's all the same.
  func testTheDirectorysDefaultListGivesNothing() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10)
    let target = directory.path.appending("target")
    try FileManager.default.createDirectory(
      atPath: target.string, withIntermediateDirectories: false)
    try setAccessList("d:u:1:rwx", target)
    XCTAssertEqual(chmod(source.string, 0o640), 0)
    for options in [[], ["--preserve"]] {
      let copy = target.appending("copy")
      let run = try ChildProcess.run(
        ChildProcess.built("aio-copy"), [source.string, copy.string, "--force"] + options)
      XCTAssertEqual(run.errors, "")
      XCTAssertEqual(try accessList(copy), ["user::rw-", "group::r--", "other::---"], "\(options)")
    }
  }

  func testPreserveKeepsTheList() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10)
    let copy = directory.path.appending("copy")
    try setAccessList("u:1:rw,g:2:r,u:3:---", source)
    try self.copy(source.string, copy.string, "--preserve")
    XCTAssertEqual(try accessList(copy), try accessList(source))
    XCTAssertEqual(try accessList(copy).count, 7)
  }

  // MARK: Times, owner, attributes

  func testPreserveKeepsTimesOwnerAndAttributes() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 5000)
    let copy = directory.path.appending("copy")
    let setfattr = try ChildProcess.installed("setfattr", package: "attr")
    for (name, value) in [("user.one", "1"), ("user.zwei", "a b")] {
      let run = try ChildProcess.run(setfattr, ["-n", name, "-v", value, source.string])
      try XCTSkipIf(run.status != 0, "no extended attributes here: \(run.errors)")
    }
    if getuid() == 0 { XCTAssertEqual(chown(source.string, 12345, 23456), 0) }
    XCTAssertEqual(chmod(source.string, 0o6751), 0)
    let times = [
      timespec(tv_sec: 1_000_000_000, tv_nsec: 5), timespec(tv_sec: 77, tv_nsec: 123_456_789),
    ]
    XCTAssertEqual(utimensat(AT_FDCWD, source.string, times, 0), 0)
    try self.copy(source.string, copy.string, "--preserve", "--verify", "--fsync")
    let (before, after) = (try status(source), try status(copy))
    XCTAssertEqual([after.st_uid, after.st_gid], [before.st_uid, before.st_gid])
    XCTAssertEqual(after.st_mode, before.st_mode)
    XCTAssertEqual(after.st_mtim.tv_sec, 77)
    XCTAssertEqual(after.st_mtim.tv_nsec, 123_456_789)
    XCTAssertEqual(after.st_atim.tv_sec, 1_000_000_000)
    let dump = try ChildProcess.run(
      ChildProcess.installed("getfattr", package: "attr"),
      ["-d", "--absolute-names", "--only-values", copy.string])
    XCTAssertEqual(dump.output, "1a b")
    // Without it: the copier's file, of now; and its set-ID bits would be another's.
    try self.copy(source.string, copy.string, "--force")
    let plain = try status(copy)
    XCTAssertEqual(plain.st_uid, getuid())
    XCTAssertGreaterThan(plain.st_mtim.tv_sec, 1_000_000_000)
    if getuid() == 0 { XCTAssertEqual(plain.st_mode & 0o7777, 0o751) }
    let none = try ChildProcess.run(
      ChildProcess.installed("getfattr", package: "attr"), ["-d", "--absolute-names", copy.string])
    XCTAssertEqual(none.output, "")
  }

  /// The name of an attribute is any bytes.
  func testPreserveKeepsAttributesWhoseNamesAreNotUTF8() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10)
    let copy = directory.path.appending("copy")
    let setfattr = try ChildProcess.installed("setfattr", package: "attr")
    let run = try ChildProcess.run(
      "/bin/sh",
      ["-c", #""$0" -n "$(printf 'user.\377')" -v value "$1""#, setfattr, source.string])
    try XCTSkipIf(run.status != 0, "no extended attributes here: \(run.errors)")
    try self.copy(source.string, copy.string, "--preserve")
    let getfattr = try ChildProcess.installed("getfattr", package: "attr")
    let dump = try ChildProcess.run(
      "/bin/sh",
      [
        "-c", #""$0" -n "$(printf 'user.\377')" --absolute-names --only-values "$1""#, getfattr,
        copy.string,
      ])
    XCTAssertEqual(dump.output, "value", dump.errors)
  }

  /// Who is not root keeps what he may; what the filesystem cannot keep is an error, and no copy.
  func testWhatCannotBeKept() throws {
    let directory = try temporaryDirectory()
    let source = try directory.makeFile("source", size: 10)
    try setAccessList("u:1:rw", source)
    let memory = directory.path.appending("memory")
    try FileManager.default.createDirectory(
      atPath: memory.string, withIntermediateDirectories: false)
    guard mount("ramfs", memory.string, "ramfs", 0, nil) == 0 else {
      throw XCTSkip("cannot mount ramfs, which has no attributes: \(Errno(rawValue: errno))")
    }
    defer { umount2(memory.string, Int32(MNT_DETACH)) }
    let run = try ChildProcess.run(
      ChildProcess.built("aio-copy"), ["--preserve", source.string, memory.string])
    XCTAssertEqual(run.status, 1)
    XCTAssertTrue(run.errors.contains("cannot set its access control list"), run.errors)
    XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: memory.string), [])
    let target = directory.path.appending("target")
    try FileManager.default.createDirectory(
      atPath: target.string, withIntermediateDirectories: false)
    XCTAssertEqual(chmod(directory.path.string, 0o755), 0)
    XCTAssertEqual(chmod(target.string, 0o777), 0)
    XCTAssertEqual(chmod(source.string, 0o4644), 0)
    let nobody = try ChildProcess.run(
      ChildProcess.installed("setpriv", package: "util-linux"),
      [
        "--reuid=65534", "--regid=65534", "--clear-groups", ChildProcess.built("aio-copy"),
        "--preserve",
        source.string, target.string,
      ])
    XCTAssertEqual(nobody.errors, "")
    let kept = try status(target.appending("source"))
    XCTAssertEqual(kept.st_uid, 65534)
    XCTAssertEqual(kept.st_mode & 0o7777, 0o644)
    XCTAssertEqual(kept.st_mtim.tv_sec, try status(source).st_mtim.tv_sec)
  }
}
