// SPDX-License-Identifier: Apache-2.0

import CKernel
import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What the kernel's lookup cache knows is opened in place, and what may wait never is.
final class CachedOpeningTests: XCTestCase {
  private static let calls =
    "openat2,openat,open,statx,newfstatat,fstat,fstatfs,close,fcntl,ioctl,access,faccessat"

  /// Goal: two system calls for a file whose neighbour was opened just before, and none on another
  /// thread, to open it and to close it.
  func testSystemCalls() throws {
    let directory = try temporaryDirectory()
    let log = try SystemCallLog(
      tracing: Self.calls, ChildProcess.built("dispatch-aio-probe"),
      ["open-cached", directory.path.string], in: directory)
    XCTAssertEqual(log.run.output, "done\n", log.run.errors)
    let all = log.steps
    // A thread that starts meanwhile makes calls of its own.
    let steps = all.mapValues { $0.filter { !$0.hasSuffix(" elsewhere") } }
    guard all["open-neighbour-buffered"]?.contains("openat elsewhere") == false else {
      throw XCTSkip("this kernel does not tell mounts apart (STATX_MNT_ID_UNIQUE)")
    }
    let lookUp = ["openat2", "statx", "openat", "statx", "close"]
    XCTAssertEqual(steps["open-looked-up-buffered"], lookUp)
    XCTAssertEqual(steps["open-beneath-looked-up-buffered"], lookUp)
    for caching in ["buffered", "direct"] {
      for what in ["neighbour", "again", "beneath-neighbour", "beneath-link"] {
        XCTAssertEqual(steps["open-\(what)-\(caching)"], ["openat2", "statx"], what)
      }
      for what in ["looked-up", "neighbour", "again", "link", "beneath-link"] {
        let closing = steps["close-\(what)-\(caching)"]
        XCTAssertEqual(closing?.count, 2, what)
        XCTAssertEqual(closing?.last, "close", what)
      }
    }
    // What is missing is known to be, the second time.
    XCTAssertEqual(steps["open-missing-direct"], ["openat2"])
    XCTAssertFalse(steps["close-written"]?.contains("close") == true)
    XCTAssertTrue(all["close-written"]?.contains("close elsewhere") == true)
    XCTAssertEqual(steps["close-unlinked"]?.count, 1, "more than a look at its names")
    XCTAssertTrue(all["close-unlinked"]?.contains("close elsewhere") == true)
  }

  /// Where there is no openat2, or no RESOLVE_CACHED, or a sandbox forbids either, files open all
  /// the same.
  func testOldKernels() throws {
    let directory = try temporaryDirectory()
    for fault in [
      "openat2:error=ENOSYS", "openat2:error=EPERM", "openat2:error=EINVAL",
      "openat2:error=EAGAIN", "statx:error=ENOSYS",
    ] {
      let log = try SystemCallLog(
        tracing: "openat2,statx", options: ["-e", "inject=\(fault)"],
        ChildProcess.built("dispatch-aio-probe"), ["open-cached", directory.path.string],
        in: directory)
      let lines = log.run.output.split(separator: "\n").map(String.init)
      // Beneath a directory the kernel has to stay by itself.
      let expected =
        switch fault {
        case "openat2:error=ENOSYS": "openat2(2), which Linux has from 5.6 on"
        case "statx:error=ENOSYS": "done"
        default: "open of one: "
        }
      XCTAssertTrue(lines.first?.contains(expected) == true, "\(fault): \(log.run.output)")
      XCTAssertEqual(lines.last, "done", fault)
    }
  }

  // MARK: What waits

  /// A look-up for which the disk is needed is not made in place.
  func testAColdPath() throws {
    guard getuid() == 0 else { throw XCTSkip("only root can empty the lookup cache") }
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 4096)
    try teach(path)
    XCTAssertTrue(
      eventually {
        try? "2".write(toFile: "/proc/sys/vm/drop_caches", atomically: false, encoding: .ascii)
        return (try? AIOFile.openNow(path, .readOnly)) == nil
      }, "a look-up waited for the disk")
    let context = try AIOContext(queueDepth: 4)
    let opened = Promise<Result<AIOFile, AIOError>>()
    try context.open(path, .readOnly) { opened.fulfil($0) }
    XCTAssertEqual(try opened.wait().get().status.size, 4096)
    XCTAssertNotNil(try AIOFile.openNow(path, .readOnly), "it is in the cache now")
  }

  /// Goal: a file of FUSE is never opened in place, whatever is known: its server may hang.
  func testAFileServedByAProcess() throws {
    let directory = try temporaryDirectory()
    let fault = try FaultFileSystem(in: directory)
    // The file system is known, and the names are in the lookup cache.
    try teach(fault["plain"])
    var status = stat()
    stat(fault["hangopen"].string, &status)
    symlink(fault["hangopen"].string, directory.path.appending("link").string)
    let local = try directory.makeFile(size: 4096)
    try teach(local)
    let root = try AIODirectory.open(fault.path)
    let above = try AIODirectory.open(directory.path)
    for _ in 0..<3 {
      XCTAssertNotNil(try AIOFile.openNow(local, .readOnly))
      XCTAssertNil(try AIOFile.openNow(fault["plain"], .readOnly))
      XCTAssertNil(try AIOFile.openNow(fault["hangopen"], .readOnly))
      XCTAssertNil(try AIOFile.openNow(directory.path.appending("link"), .readOnly))
      XCTAssertNil(try AIOFile.openNow("hangopen", .readOnly, beneath: root))
      XCTAssertNil(try AIOFile.openNow("fault/hangopen", .readOnly, beneath: above))
    }
    XCTAssertEqual(fault.hanging, 0)

    let context = try AIOContext(queueDepth: 4)
    let opened = Promise<Result<AIOFile, AIOError>>()
    try context.open(fault["hangopen"], .readOnly, caching: .buffered) { opened.fulfil($0) }
    XCTAssertTrue(eventually { fault.hanging == 1 })
    let ran = Promise<Bool>()
    context.async { ran.fulfil(true) }
    XCTAssertTrue(try ran.wait())
    // Files elsewhere are opened meanwhile.
    let other = Promise<Result<AIOFile, AIOError>>()
    try context.open(local, .readOnly) { other.fulfil($0) }
    XCTAssertNoThrow(try other.wait().get())
    fault.release()
    XCTAssertEqual(try opened.wait().get().status.size, 1 << 20)
  }

  /// A lease is not waited for in place.
  func testALease() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 4096)
    try teach(path)
    _ = try AIOFile.openNow(path, .readOnly)
    let descriptor = try FileDescriptor.open(path, .readWrite)
    defer { try? descriptor.close() }
    let handler = signal(SIGIO, SIG_IGN)
    defer { signal(SIGIO, handler) }
    let setLease: Int32 = 1024  // F_SETLEASE
    guard fcntl(descriptor.rawValue, setLease, F_WRLCK) == 0 else {
      throw XCTSkip("no lease: \(Errno(rawValue: errno))")
    }
    XCTAssertNil(try AIOFile.openNow(path, .readOnly))
    XCTAssertEqual(fcntl(descriptor.rawValue, setLease, F_UNLCK), 0)
    XCTAssertNotNil(try AIOFile.openNow(path, .readOnly))
  }

  /// Has a file opened by this thread, so that its file system is known.
  private func teach(_ path: FilePath) throws {
    let closed = Promise<Void>()
    try AIOFile.open(path, .readOnly, caching: .buffered).close { closed.fulfil(()) }
    try closed.wait()
  }

  // MARK: What is opened

  /// What the file says of itself is what fstat says, without a call.
  func testStatus() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 12_345)
    link(path.string, directory.path.appending("other").string)
    let files = [
      try AIOFile.open(path, .readOnly), try XCTUnwrap(AIOFile.openNow(path, .readOnly)),
      try AIOFile(adopting: FileDescriptor.open(path, .readWrite)),
    ]
    for file in files {
      var status = stat()
      fstat(file.fileDescriptor.rawValue, &status)
      XCTAssertEqual(file.status.size, 12_345)
      XCTAssertEqual(file.status.inode, UInt64(status.st_ino))
      XCTAssertEqual(file.status.device, UInt64(status.st_dev))
      XCTAssertEqual(file.status.linkCount, 2)
      XCTAssertEqual(file.status.modificationTime.seconds, Int64(status.st_mtim.tv_sec))
      XCTAssertEqual(file.status.modificationTime.nanoseconds, status.st_mtim.tv_nsec)
      XCTAssertEqual(file.status.changeTime.seconds, Int64(status.st_ctim.tv_sec))
      XCTAssertEqual(file.status.changeTime.nanoseconds, status.st_ctim.tv_nsec)
      XCTAssertLessThanOrEqual(file.status.modificationTime, file.status.changeTime)
    }
    XCTAssertEqual(files[0].file.traits.alignment, files[1].file.traits.alignment)
    XCTAssertEqual(files[1].caching, .direct)
  }

  /// Goal: what is no regular file is not opened in place; of a directory in which files were
  /// opened, at most once, as nothing says before that it is no file.
  func testWhatIsNoFile() throws {
    let directory = try temporaryDirectory()
    let fifo = directory.path.appending("fifo")
    mkfifo(fifo.string, 0o600)
    let file = try directory.makeFile(size: 4096)
    try teach(file)
    // Nothing is known of the directory: it is looked at first.
    XCTAssertNil(try AIOFile.openNow(fifo, .readOnly))
    XCTAssertNotNil(try AIOFile.openNow(file, .readOnly))
    XCTAssertNil(try AIOFile.openNow(fifo, .readOnly))
    // A writer finds no reader: the pipe is closed.
    XCTAssertTrue(
      eventually {
        let writer = open(fifo.string, O_WRONLY | O_NONBLOCK)
        if writer >= 0 { close(writer) }
        return writer < 0
      })
    let before = directory.openDescriptors()
    for _ in 0..<10 {
      XCTAssertNil(try AIOFile.openNow(fifo, .readOnly))
      XCTAssertNotNil(try AIOFile.openNow(file, .readOnly))
    }
    XCTAssertTrue(eventually { directory.openDescriptors() == before }, "descriptors are left open")
  }

  /// Every error is the same, whichever way the file was to be opened.
  func testErrors() async throws {
    let directory = try temporaryDirectory()
    let path = directory.path
    _ = try directory.makeFile(size: 4096)
    mkfifo(path.appending("fifo").string, 0o600)
    symlink("loop", path.appending("loop").string)
    symlink("none", path.appending("dangling").string)
    symlink("file", path.appending("link").string)
    symlink("/etc/hostname", path.appending("outside").string)
    let root = try AIODirectory.open(path)
    let context = try AIOContext(queueDepth: 4)
    let names = [
      "none", "none/below", "file/below", "fifo", ".", "loop", "dangling", "link", "outside",
      "../none", "/etc/hostname", String(repeating: "x", count: 300), "",
    ]
    for round in 0..<2 {
      for name in names {
        for options in [FileDescriptor.OpenOptions(), .noFollow, .directory] {
          for beneath in [root, nil] {
            let name =
              beneath == nil && !name.isEmpty ? path.appending(name) : FilePath(name)
            let (expected, here) = (
              Self.words { try AIOFile.open(name, .readOnly, beneath: beneath, options: options) },
              Promise<Result<AIOFile, AIOError>>()
            )
            try context.open(name, .readOnly, beneath: beneath, options: options) {
              here.fulfil($0)
            }
            let called = try here.wait()
            XCTAssertEqual(Self.words { try called.get() }, expected, "\(name), \(round)")
            let awaited: Result<AIOFile, any Error>
            do {
              awaited = .success(
                try await AIOFile.open(name, .readOnly, beneath: beneath, options: options))
            } catch {
              awaited = .failure(error)
            }
            XCTAssertEqual(Self.words { try awaited.get() }, expected, "\(name), \(round)")
          }
        }
      }
    }
  }

  private static func words(_ body: () throws -> AIOFile) -> String {
    do {
      return "\(try body().status.size) bytes"
    } catch {
      return "\((error as? AIOError).map { "\($0.code)" } ?? ""): \(error)"
    }
  }

  // MARK: The callback

  /// The callback runs on the context's queue, or on the one asked for, and never inside the call.
  func testTheCallbacksQueue() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 4096)
    try teach(path)
    let queue = DispatchQueue(label: "test.other")
    let context = try AIOContext(queueDepth: 4)
    for name in [path, directory.path.appending("none")] {
      for target in [nil, queue] {
        for _ in 0..<3 {
          let done = Promise<Bool>()
          context.async {
            let isInside = Locked(true)
            try? context.open(name, .readOnly, queue: target) { _ in
              dispatchPrecondition(condition: .onQueue(target ?? context.queue))
              done.fulfil(isInside.withLock { $0 })
            }
            isInside.withLock { $0 = false }
          }
          // On another queue it may run while the call returns.
          if try done.wait() { XCTAssertNotNil(target, "called back inside the call") }
        }
      }
    }
    // Also once the context has closed.
    try context.closeAndWait()
    let late = Promise<Result<AIOFile, AIOError>>()
    try context.open(path, .readOnly) { late.fulfil($0) }
    XCTAssertNoThrow(try late.wait().get())
  }

  // MARK: Beneath a directory

  func testBeneath() throws {
    let directory = try temporaryDirectory()
    let path = directory.path.appending("root")
    mkdir(path.string, 0o700)
    _ = try directory.makeFile("root/file", size: 42)
    let secret = try directory.makeFile("secret", size: 7)
    symlink("file", path.appending("inside").string)
    symlink(secret.string, path.appending("absolute").string)
    symlink("../secret", path.appending("outside").string)
    symlink("none", path.appending("dangling").string)
    symlink("..", path.appending("up").string)
    let root = try AIODirectory.open(path)
    XCTAssertEqual(root.path, path)
    for _ in 0..<3 {
      for name in ["file", "inside", "./file", "up/root/../root/file"] as [FilePath] {
        let isOutside = name.string.hasPrefix("up")
        for open in [Self.openAndWait, { try AIOFile.open($0, .readOnly, beneath: $1) }] {
          if isOutside {
            XCTAssertEqual(assertRefused(.system) { try open(name, root) }?.errno, .improperLink)
          } else {
            XCTAssertEqual(try open(name, root).status.size, 42)
          }
        }
      }
      for name in ["absolute", "outside", "../secret", "up/secret"] + [secret] {
        for open in [Self.openAndWait, { try AIOFile.open($0, .readOnly, beneath: $1) }] {
          let error = assertRefused(.system) { try open(name, root) }
          XCTAssertEqual(error?.errno, .improperLink, "\(name)")
        }
      }
    }
    // Created beneath, and not through a link.
    let made = try AIOFile.open("made", .readWrite, beneath: root, options: .create)
    XCTAssertEqual(made.caching, .direct)
    XCTAssertTrue(FileManager.default.fileExists(atPath: path.appending("made").string))
    let error = try XCTUnwrap(
      assertRefused(.exists) {
        try AIOFile.open("dangling", .readWrite, beneath: root, options: .create)
      })
    XCTAssertTrue("\(error)".contains("symbolic link"), "\(error)")
    XCTAssertFalse(FileManager.default.fileExists(atPath: path.appending("none").string))
    // What is no directory is none; a descriptor that is adopted.
    XCTAssertEqual(
      assertRefused(.system) { try AIODirectory.open(secret) }?.errno, .notDirectory)
    let descriptor = try FileDescriptor.open(secret, .readOnly)
    defer { try? descriptor.close() }
    assertRefused(.system) { try AIODirectory(adopting: descriptor) }
    let adopted = try AIODirectory(adopting: FileDescriptor.open(path, .readOnly))
    XCTAssertEqual(try AIOFile.open("file", .readOnly, beneath: adopted).status.size, 42)
    // The directory is the one that was opened, also under another name.
    rename(path.string, directory.path.appending("renamed").string)
    XCTAssertEqual(try Self.openAndWait("file", root).status.size, 42)
  }

  private static func openAndWait(_ path: FilePath, _ root: AIODirectory) throws -> AIOFile {
    let context = try AIOContext(queueDepth: 4)
    let opened = Promise<Result<AIOFile, AIOError>>()
    try context.open(path, .readOnly, beneath: root) { opened.fulfil($0) }
    return try opened.wait().get()
  }

  /// A mount beneath is crossed by a thread that may sleep, and never in place.
  func testAMountBeneath() throws {
    guard getuid() == 0 else { throw XCTSkip("only root can mount") }
    let directory = try temporaryDirectory()
    let below = directory.path.appending("below")
    mkdir(below.string, 0o700)
    guard mount("none", below.string, "tmpfs", 0, nil) == 0 else {
      throw XCTSkip("cannot mount tmpfs: \(Errno(rawValue: errno))")
    }
    defer { XCTAssertTrue(eventually { umount(below.string) == 0 }) }
    _ = try directory.makeFile("below/file", size: 42)
    let root = try AIODirectory.open(directory.path)
    let file = try AIOFile.open("below/file", .readOnly, beneath: root, caching: .buffered)
    XCTAssertEqual(file.status.size, 42)
    XCTAssertNil(
      try AIOFile.openNow("below/file", .readOnly, beneath: root, caching: .buffered))
    // By its own path it is like any other.
    XCTAssertNotNil(
      try AIOFile.openNow(below.appending("file"), .readOnly, caching: .buffered))
  }

  /// Goal: a large direct file on ext4 is opened by a thread that may sleep, which reads the map of
  /// its blocks, and is then as any other.
  func testALargeDirectFile() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 2 << 20)
    try teach(path)
    let file = try AIOFile.open(path, .readOnly)
    var mount = ckernel_file_system()
    XCTAssertEqual(ckernel_file_system(file.fileDescriptor.rawValue, &mount), 0)
    XCTAssertEqual(try AIOFile.openNow(path, .readOnly) == nil, mount.magic == 0xef53)
    XCTAssertNotNil(try AIOFile.openNow(path, .readOnly, caching: .buffered))
  }

  /// Goal: files that others make, replace and remove all the time are opened, or not there, and
  /// every descriptor is closed. Under the Thread Sanitizer: what is known is shared rightly.
  func testRaces() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 4096)
    let root = try AIODirectory.open(directory.path)
    try teach(path)
    let before = directory.openDescriptors()
    onThreads(4) { thread in
      for round in 0..<500 {
        let name = "file\(round % 4)"
        if thread == 0 {
          unlink(directory.path.appending(name).string)
          switch round % 3 {
          case 0: mkfifo(directory.path.appending(name).string, 0o600)
          case 1: symlink("file", directory.path.appending(name).string)
          default: link(path.string, directory.path.appending(name).string)
          }
        } else {
          do throws(AIOError) {
            let file = try AIOFile.openNow(
              thread == 1 ? FilePath(name) : directory.path.appending(name), .readOnly,
              beneath: thread == 1 ? root : nil)
            if let file { XCTAssertEqual(file.status.size, 4096) }
            file?.close()
          } catch {
            if error.code != .notFound { XCTFail("\(error)") }
          }
        }
      }
    }
    XCTAssertTrue(eventually { directory.openDescriptors() == before }, "descriptors are left open")
  }
}
