// SPDX-License-Identifier: Apache-2.0

import CKernel
import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

final class FileTests: XCTestCase {
  func testOpening() throws {
    let directory = try temporaryDirectory()
    let file = try directory.open("new", options: [.create, .exclusiveCreate])
    XCTAssertEqual(file.path, directory.path.appending("new"))
    XCTAssertEqual(file.caching, .direct)
    let flags = fcntl(file.fileDescriptor.rawValue, F_GETFL)
    XCTAssertNotEqual(flags & ckernel_o_direct, 0)
    XCTAssertEqual(flags & O_NONBLOCK, 0)
    XCTAssertNotEqual(fcntl(file.fileDescriptor.rawValue, F_GETFD) & FD_CLOEXEC, 0)
    XCTAssertEqual(try file.size(), 0)

    let buffered = try directory.open("new", .readOnly, caching: .buffered)
    XCTAssertEqual(buffered.caching, .buffered)
    XCTAssertEqual(fcntl(buffered.fileDescriptor.rawValue, F_GETFL) & ckernel_o_direct, 0)
    XCTAssertEqual(buffered.alignment, AIOAlignment(.init(memory: 1, offset: 1)))
  }

  func testAdoptingFindsOutHowTheFileWasOpened() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 4096)
    for (options, caching) in [
      (FileDescriptor.OpenOptions(), AIOFile.Caching.buffered),
      (FileDescriptor.OpenOptions(rawValue: ckernel_o_direct), .direct),
    ] {
      let descriptor = try FileDescriptor.open(path, .readOnly, options: options)
      let file = try AIOFile(adopting: descriptor, path: "given name")
      XCTAssertEqual(file.caching, caching)
      XCTAssertEqual(file.path, "given name")
      XCTAssertEqual(file.fileDescriptor, descriptor)
      XCTAssertEqual(try file.size(), 4096)
    }
  }

  func testPreallocation() throws {
    let directory = try temporaryDirectory()
    let file = try directory.open()
    try file.preallocate(0..<1 << 20)
    XCTAssertEqual(try file.size(), 1 << 20)
    var status = stat()
    fstat(file.fileDescriptor.rawValue, &status)
    XCTAssertGreaterThanOrEqual(status.st_blocks, (1 << 20) / 512)
    try file.preallocate(4096..<4096)
    XCTAssertEqual(try directory.contents(), [UInt8](repeating: 0, count: 1 << 20))
  }

  // MARK: Alignment

  func testAlignmentIsTheFiles() throws {
    let directory = try temporaryDirectory()
    let file = try directory.open()
    let alignment = file.alignment
    XCTAssertEqual(alignment.offset & (alignment.offset - 1), 0)
    let context = try AIOContext(queueDepth: 1)
    // As little as the file says is enough.
    let buffer = AIOBuffer(count: 4 * alignment.offset, alignment: max(8, alignment.memory))
    XCTAssertEqual(
      try context.writeAndWait(file, at: Int64(alignment.offset), from: buffer),
      .success(buffer.count))
    try context.closeAndWait()
  }

  func testADiskWithLargeSectors() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 16, sectorSize: 4096)
    let context = try AIOContext(queueDepth: 1)
    let file = try AIOFile.open(disk.path.appending("file"), .readWrite, options: .create)
    XCTAssertEqual(file.alignment.offset, 4096)
    assertRefused(.misaligned) {
      try context.writeAndWait(file, at: 512, from: AIOBuffer(count: 4096))
    }
    assertRefused(.misaligned) {
      try context.writeAndWait(file, at: 0, from: AIOBuffer(count: 512))
    }
    XCTAssertEqual(
      try context.writeAndWait(file, at: 4096, from: AIOBuffer(count: 4096)), .success(4096))
    try context.closeAndWait()
    let closed = Promise<Void>()
    file.close { closed.fulfil(()) }
    try closed.wait()
  }

  func testABlockDevice() throws {
    guard getuid() == 0 else { throw XCTSkip("only root can make a loop device") }
    let directory = try temporaryDirectory()
    let image = try directory.makeFile("image", size: 1 << 20) { UInt8($0 >> 12) }
    let losetup = try ChildProcess.run(
      ChildProcess.installed("losetup", package: "mount"), ["--find", "--show", image.string])
    guard losetup.status == 0 else { throw XCTSkip("no loop device: \(losetup.errors)") }
    let device = losetup.output.trimmingCharacters(in: .whitespacesAndNewlines)
    defer { _ = try? ChildProcess.run("/sbin/losetup", ["--detach", device]) }
    let file = try AIOFile.open(FilePath(device), .readOnly)
    XCTAssertEqual(try file.size(), 1 << 20)
    XCTAssertEqual(file.alignment.offset, 512)
    let context = try AIOContext(queueDepth: 1)
    let buffer = AIOBuffer(count: 4096)
    XCTAssertEqual(try context.readAndWait(file, at: 3 * 4096, into: buffer), .success(4096))
    XCTAssertEqual(buffer.array, [UInt8](repeating: 3, count: 4096))
    try context.closeAndWait()
  }

  func testAMemoryFilesystemDemandsNoAlignment() throws {
    guard let directory = try? TemporaryDirectory(in: "/dev/shm"),
      let file = try? directory.open()
    else { throw XCTSkip("/dev/shm is no tmpfs with direct I/O") }
    XCTAssertEqual(file.alignment, AIOAlignment(.init(memory: 1, offset: 1)))
    let context = try AIOContext(queueDepth: 1)
    let buffer = AIOBuffer([1, 2, 3, 4, 5])
    XCTAssertEqual(try context.writeAndWait(file, at: 7, from: buffer[1...]), .success(4))
    XCTAssertEqual(try directory.contents(), [0, 0, 0, 0, 0, 0, 0, 2, 3, 4, 5])
    try context.closeAndWait()
  }

  func testRounding() {
    let alignment = AIOAlignment(.init(memory: 512, offset: 4096))
    for (count, up, down) in [
      (0, 0, 0), (1, 4096, 0), (4095, 4096, 0), (4096, 4096, 4096), (4097, 8192, 4096),
    ] {
      XCTAssertEqual(alignment.roundUp(count), up)
      XCTAssertEqual(alignment.roundDown(count), down)
    }
  }

  // MARK: Close

  func testAFileClosesWhenItsRequestsHaveCompleted() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 4096) { _ in 7 }
    let context = try AIOContext(queueDepth: 1, pendingLimit: 16)
    let file = try directory.open("file", .readOnly)
    let descriptor = file.fileDescriptor.rawValue
    let buffers = (0..<8).map { _ in AIOBuffer(count: 4096) }
    let results = buffers.map { _ in Promise<Outcome>() }
    let closed = Promise<Void>()
    try context.queue.sync {
      for (buffer, result) in zip(buffers, results) {
        try context.read(file, at: 0, into: buffer) { result.fulfil($0) }
      }
      // Before anything has reached the kernel.
      file.close { closed.fulfil(()) }
      XCTAssertTrue(file.isClosed)
      XCTAssertGreaterThanOrEqual(fcntl(descriptor, F_GETFD), 0, "closed under its requests")
      assertRefused(.fileClosed) { try context.fsync(file) { _ in } }
    }
    for result in results { XCTAssertEqual(try result.wait(), .success(4096)) }
    for buffer in buffers { XCTAssertEqual(buffer.array, [UInt8](repeating: 7, count: 4096)) }
    try closed.wait()
    XCTAssertEqual(fcntl(descriptor, F_GETFD), -1)
    file.close()
    try context.closeAndWait()
  }

  func testADroppedFileClosesToo() throws {
    let directory = try temporaryDirectory()
    var file: AIOFile? = try directory.open()
    let descriptor = try XCTUnwrap(file?.fileDescriptor.rawValue)
    var status = stat()
    XCTAssertEqual(fstat(descriptor, &status), 0)
    let inode = status.st_ino
    file = nil
    XCTAssertTrue(
      eventually { fstat(descriptor, &status) < 0 || status.st_ino != inode }, "never closed")
  }

  /// Threads that use a file while another closes it: accepted, or refused, and closed once.
  func testCloseUnderFire() {
    for _ in 0..<200 {
      let closed = Locked(0)
      let file = OpenFile(descriptor: 99, path: nil, traits: .init()) { _ in
        closed.withLock { $0 += 1 }
      }
      onThreads(3) { thread in
        if thread == 0 { return file.close() }
        for _ in 0..<50 where file.retain() {
          XCTAssertEqual(closed.withLock { $0 }, 0, "closed while held")
          file.release()
        }
      }
      XCTAssertEqual(closed.withLock { $0 }, 1)
    }
  }

  /// What is called back may take its time, and wait for another file's end.
  func testAFileIsClosedWhileAnothersHandlerWaits() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 4096)
    let (first, second) = (try AIOFile.open(path, .readOnly), try AIOFile.open(path, .readOnly))
    let done = Promise<Bool>()
    first.close {
      let closed = DispatchSemaphore(value: 0)
      second.close { closed.signal() }
      done.fulfil(closed.wait(timeout: .now() + 20) == .success)
    }
    XCTAssertTrue(try done.wait())
  }
}
