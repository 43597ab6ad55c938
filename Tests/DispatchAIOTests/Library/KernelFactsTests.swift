// SPDX-License-Identifier: Apache-2.0

import CKernel
import CLibAIO
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// What the library relies on, asked of the real kernel without the library in between: where one
/// of these fails, the ground has moved.
final class KernelFactsTests: XCTestCase {
  /// A context of the kernel's, driven by hand.
  private final class Bare {
    let kernel: LinuxKernel
    let event: Int32

    init(queueDepth: Int = 8) throws {
      kernel = try LinuxKernel(room: queueDepth)
      event = ckernel_event_create()
    }

    deinit {
      kernel.destroy()
      close(event)
    }

    func block(
      _ command: Command, _ descriptor: Int32, _ memory: UnsafeMutableRawPointer? = nil,
      _ count: Int = 0, at offset: Int64 = 0, flags: Int32 = 0
    ) -> ControlBlock {
      var block = ControlBlock(command, descriptor, tag: 0, event: event)
      block.setTransfer(memory, count, at: offset, flags: UInt32(bitPattern: flags))
      return block
    }

    /// What `io_submit` answers.
    func submit(_ blocks: [ControlBlock]) -> Int {
      var blocks = blocks
      return blocks.withUnsafeMutableBufferPointer { buffer in
        var pointers = buffer.indices.map { Optional(buffer.baseAddress! + $0) }
        return kernel.submit(&pointers, count: pointers.count)
      }
    }

    /// Waits for completions, and returns their results.
    func results(_ count: Int) -> [Int] {
      var results: [Int] = []
      var events = [CompletionEvent](repeating: CompletionEvent(), count: 16)
      XCTAssertTrue(
        eventually {
          let got = kernel.reap(into: &events, capacity: events.count, waiting: 0)
          results += events.prefix(max(0, got)).map { Int($0.result) }
          return results.count >= count
        })
      return results
    }
  }

  private var directory: TemporaryDirectory!
  private var bare: Bare!
  private var file: FileDescriptor!
  private let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 4096)

  override func setUpWithError() throws {
    try XCTSkipUnless(LinuxKernel.isBuilt, "without kernel AIO nobody rests on its facts")
    directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 65536)
    bare = try Bare()
    file = try FileDescriptor.open(
      path, .readWrite, options: .init(rawValue: ckernel_o_direct), permissions: nil)
  }

  override func tearDown() {
    try? file?.close()
    bare = nil
    directory = nil
  }

  deinit { memory.deallocate() }

  // MARK: The page cache and O_DIRECT on one file

  /// RWF_NOWAIT through the page cache refuses what is not there, and begins to read it.
  func testWhatIsRefusedIsReadAhead() throws {
    let buffered = try FileDescriptor.open(directory.path.appending("file"), .readWrite)
    defer { try? buffered.close() }
    let fd = buffered.rawValue
    XCTAssertEqual(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM), 0)
    XCTAssertTrue(
      eventually {
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)
        return ckernel_cached_bytes(fd, 0, 65536) == 0
      })
    let read = bare.block(
      .read, fd, memory.baseAddress, 4096, at: 8192, flags: ckernel_rwf_nowait)
    XCTAssertEqual(bare.submit([read]), 1)
    XCTAssertEqual(bare.results(1), [-Int(EAGAIN)])
    XCTAssertTrue(eventually { ckernel_cached_bytes(fd, 8192, 4096) == 4096 })
    XCTAssertEqual(ckernel_cached_bytes(fd, 0, 65536), 4096, "more than was asked for")
  }

  /// RWF_NOWAIT past the page cache refuses a range of which a page is dirty, and none far from it.
  func testADirectReadOfDirtyPagesIsRefused() throws {
    let path = try directory.makeFile("large", size: 4 << 20)
    let buffered = try FileDescriptor.open(path, .readWrite)
    let direct = try FileDescriptor.open(
      path, .readOnly, options: .init(rawValue: ckernel_o_direct), permissions: nil)
    defer { for each in [buffered, direct] { try? each.close() } }
    XCTAssertEqual(pwrite(buffered.rawValue, "x", 1, 20_000), 1)
    for (offset, answer) in [(16384, -Int(EAGAIN)), (3 << 20, 4096)] as [(Int64, Int)] {
      let read = bare.block(
        .read, direct.rawValue, memory.baseAddress, 4096, at: offset,
        flags: ckernel_rwf_nowait)
      XCTAssertEqual(bare.submit([read]), 1)
      XCTAssertEqual(bare.results(1), [answer], "at \(offset)")
    }
  }

  // MARK: io_submit

  func testWhatSubmissionRefuses() throws {
    let fd = file.rawValue
    let readOnly = try FileDescriptor.open(directory.path.appending("file"), .readOnly)
    let writeOnly = try FileDescriptor.open(directory.path.appending("file"), .writeOnly)
    defer { for each in [readOnly, writeOnly] { try? each.close() } }
    let base = memory.baseAddress
    var noEvent = bare.block(.read, fd, base, 4096)
    noEvent.event = UInt32(bitPattern: fd)
    var unknown = bare.block(.read, fd, base, 4096)
    unknown.opcode = 99
    let vectors = [iovec](repeating: iovec(iov_base: base, iov_len: 512), count: 1025)
    let rows: [(String, ControlBlock, Int32)] = [
      ("no such descriptor", bare.block(.read, 9999, base, 4096), EBADF),
      ("write to read-only", bare.block(.write, readOnly.rawValue, base, 4096), EBADF),
      ("read from write-only", bare.block(.read, writeOnly.rawValue, base, 4096), EBADF),
      ("negative offset", bare.block(.read, fd, base, 4096, at: -4096), EINVAL),
      ("unknown opcode", unknown, EINVAL),
      ("resfd that is no eventfd", noEvent, EINVAL),
      ("sync with a length", bare.block(.fsync, fd, nil, 4096), EINVAL),
      ("sync with an offset", bare.block(.fdatasync, fd, nil, 0, at: 4096), EINVAL),
      ("sync with a buffer", bare.block(.fdatasync, fd, base, 0), EINVAL),
      ("unknown flag", bare.block(.read, fd, base, 4096, flags: 1 << 30), EOPNOTSUPP),
    ]
    for (what, block, errno) in rows {
      XCTAssertEqual(bare.submit([block]), -Int(errno), what)
    }
    vectors.withUnsafeBytes { bytes in
      let vectors = UnsafeMutableRawPointer(mutating: bytes.baseAddress)
      XCTAssertEqual(
        bare.submit([bare.block(.readVector, fd, vectors, 1025)]), -Int(EINVAL), "1025 elements")
    }
  }

  func testWhatSubmissionAcceptsAndTheCompletionRefuses() throws {
    let fd = file.rawValue
    let base = memory.baseAddress!
    let page = mmap(nil, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    defer { munmap(page, 4096) }
    var status = ckernel_status()
    XCTAssertEqual(ckernel_status(fd, 0, &status), 0)
    let alignment = try XCTUnwrap(
      BlockAlignment.of(fd, status, isBlockDevice: false, fileSystem: .local))
    var rows: [(String, ControlBlock, Int)] = [
      ("pointer to nothing", bare.block(.read, fd, page, 4096), -Int(EFAULT)),
      ("nothing to read", bare.block(.read, fd, base, 0), 0),
      ("nothing to write", bare.block(.write, fd, base, 0), 0),
      ("no elements", bare.block(.readVector, fd, base, 0), 0),
      ("past the end", bare.block(.read, fd, base, 4096, at: 1 << 30), 0),
      ("fsync", bare.block(.fsync, fd), 0),
      ("fdatasync", bare.block(.fdatasync, fd), 0),
    ]
    if alignment.offset > 1 {
      rows += [
        ("misaligned offset", bare.block(.read, fd, base, 4096, at: 1), -Int(EINVAL)),
        ("misaligned length", bare.block(.read, fd, base, 4095), -Int(EINVAL)),
        ("misaligned memory", bare.block(.read, fd, base + 1, 4096), -Int(EINVAL)),
      ]
    }
    for (what, block, result) in rows {
      XCTAssertEqual(bare.submit([block]), 1, what)
      XCTAssertEqual(bare.results(1), [result], what)
    }
  }

  func testABadOneAmongGoodOnes() {
    let good = bare.block(.read, file.rawValue, memory.baseAddress, 4096)
    let bad = bare.block(.read, 9999, memory.baseAddress, 4096)
    XCTAssertEqual(bare.submit([good, bad, good]), 1)
    XCTAssertEqual(bare.submit([bad, good]), -Int(EBADF))
    XCTAssertEqual(bare.submit([good]), 1)
    XCTAssertEqual(bare.results(2), [4096, 4096])
  }

  func testAFullContext() throws {
    // The kernel makes the ring larger than asked; it is full when nothing is reaped.
    let small = try Bare(queueDepth: 1)
    let block = small.block(.read, file.rawValue, memory.baseAddress, 4096)
    var taken = 0
    var answer = 0
    repeat {
      answer = small.submit([block, block])
      taken += max(0, answer)
    } while answer == 2
    XCTAssertTrue(answer == 1 || answer == -Int(EAGAIN), "\(answer)")
    XCTAssertGreaterThanOrEqual(taken, 1)
    XCTAssertEqual(small.results(taken).count, taken)
    XCTAssertEqual(small.submit([block]), 1)
    XCTAssertEqual(small.results(1), [4096])
  }

  func testBlocksAndVectorsAreCopied() throws {
    var vectors = [iovec(iov_base: memory.baseAddress, iov_len: 4096)]
    vectors.withUnsafeMutableBytes { bytes in
      XCTAssertEqual(
        bare.submit([bare.block(.readVector, file.rawValue, bytes.baseAddress, 1, at: 4096)]), 1)
      bytes.initializeMemory(as: UInt8.self, repeating: 0xff)
    }
    XCTAssertEqual(bare.results(1), [4096])
    XCTAssertEqual(memory[17], 17)
  }

  // MARK: Completions

  func testTheEventIsInTheRingBeforeItIsCounted() {
    let block = bare.block(.read, file.rawValue, memory.baseAddress, 4096)
    for _ in 0..<100 {
      XCTAssertEqual(bare.submit([block]), 1)
      XCTAssertTrue(eventually { ckernel_event_drain(bare.event) == 1 })
      var event = CompletionEvent()
      XCTAssertEqual(bare.kernel.reap(into: &event, capacity: 1, waiting: 0), 1)
    }
    XCTAssertEqual(ckernel_event_drain(bare.event), 0)
  }

  func testAnEmptyRingAnswersZero() {
    var event = CompletionEvent()
    XCTAssertEqual(bare.kernel.reap(into: &event, capacity: 1, waiting: 0), 0)
  }

  func testTheEventDescriptorIsNonBlockingAndCloseOnExec() {
    XCTAssertEqual(fcntl(bare.event, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC)
    XCTAssertEqual(fcntl(bare.event, F_GETFL) & O_NONBLOCK, O_NONBLOCK)
  }

  // MARK: Cancel, close

  func testTheKernelCancelsNoFileRequest() {
    var context: io_context_t?
    XCTAssertEqual(io_setup(4, &context), 0)
    defer { io_destroy(context) }
    var block = iocb()
    io_prep_pread(&block, file.rawValue, memory.baseAddress, 4096, 0)
    withUnsafeMutablePointer(to: &block) { block in
      var pointer: UnsafeMutablePointer<iocb>? = block
      var event = io_event()
      XCTAssertEqual(io_submit(context, 1, &pointer), 1)
      XCTAssertEqual(io_cancel(context, block, &event), -EINVAL)
      XCTAssertTrue(eventually { io_getevents(context, 0, 1, &event, nil) == 1 })
      XCTAssertEqual(io_cancel(context, block, &event), -EINVAL)
    }
  }

  func testClosingADescriptorInFlight() throws {
    let other = try FileDescriptor.open(
      directory.path.appending("file"), .readOnly, options: .init(rawValue: ckernel_o_direct),
      permissions: nil)
    let block = bare.block(.read, other.rawValue, memory.baseAddress, 4096, at: 4096)
    XCTAssertEqual(bare.submit([block, block, block, block]), 4)
    try other.close()
    XCTAssertEqual(bare.results(4), [4096, 4096, 4096, 4096])
    XCTAssertEqual(bare.submit([block]), -Int(EBADF))
  }

  func testContextsAreCounted() throws {
    func inUse() throws -> Int {
      let text = try String(contentsOfFile: "/proc/sys/fs/aio-nr", encoding: .ascii)
      return try XCTUnwrap(Int(text.trimmingCharacters(in: .whitespacesAndNewlines)))
    }
    // Others on this machine may come and go; unless they go meanwhile, this one's share is there.
    XCTAssertTrue(
      try eventually {
        let before = try inUse()
        let more = try Bare(queueDepth: 100)
        return try withExtendedLifetime(more) { try inUse() } >= before + 100
      })
  }
}
