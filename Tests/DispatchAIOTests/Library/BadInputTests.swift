// SPDX-License-Identifier: Apache-2.0

import CKernel
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Whatever one can give the library that it cannot do anything sensible with, and the answer:
/// when it comes, its code, and the words that must be in the sentence.
///
/// `swift test --filter BadInputTests` prints the table with the sentences.
final class BadInputTests: XCTestCase {
  /// What an input is met with.
  private enum Answer {
    /// The call throws; nothing was accepted.
    case refused(AIOError.Code, String)
    /// The request was accepted, and completes with an error.
    case failed(AIOError.Code, String)
    /// No error at all: this is what it does.
    case completes(Int)
  }

  private struct Row {
    let input: String
    let answer: Answer
    let attempt: () throws -> Outcome
    let line: UInt

    init(
      _ input: String, _ answer: Answer, line: UInt = #line,
      _ attempt: @escaping () throws -> Outcome
    ) {
      (self.input, self.answer, self.line, self.attempt) = (input, answer, line, attempt)
    }

    /// An attempt whose success is a mistake whatever it returns.
    static func refusing<Value>(
      _ input: String, _ code: AIOError.Code, _ words: String, line: UInt = #line,
      _ attempt: @escaping () throws -> Value
    ) -> Row {
      Row(input, .refused(code, words), line: line) {
        _ = try attempt()
        return .success(0)
      }
    }
  }

  private func check(_ rows: [Row]) {
    for row in rows {
      var answer: String
      do {
        switch (try row.attempt(), row.answer) {
        case (.success(let count), .completes(let expected)):
          XCTAssertEqual(count, expected, row.input, line: row.line)
          answer = "completes with \(count)"
        case (.failure(let error), .failed(let code, let words)):
          compare(error, code, words, row)
          answer = "fails, \(error.code): \(error)"
        case (let outcome, let expected):
          XCTFail("\(row.input): \(outcome) instead of \(expected)", line: row.line)
          answer = "\(outcome)"
        }
      } catch let error as AIOError {
        if case .refused(let code, let words) = row.answer {
          compare(error, code, words, row)
        } else {
          XCTFail("\(row.input): refused: \(error) instead of \(row.answer)", line: row.line)
        }
        answer = "refused, \(error.code): \(error)"
      } catch {
        XCTFail("\(row.input): \(error)", line: row.line)
        answer = "\(error)"
      }
      print("  \(row.input) — \(answer)")
    }
  }

  private func compare(_ error: AIOError, _ code: AIOError.Code, _ words: String, _ row: Row) {
    XCTAssertEqual(error.code, code, "\(row.input): \(error)", line: row.line)
    XCTAssertTrue(
      error.description.contains(words), "\(row.input): no \"\(words)\" in: \(error)",
      line: row.line)
  }

  // MARK: The tables

  func testContexts() throws {
    let other = try AIOContext(queueDepth: 1)
    let maximum = try XCTUnwrap(
      Int(
        String(contentsOfFile: "/proc/sys/fs/aio-max-nr", encoding: .ascii)
          .trimmingCharacters(in: .whitespacesAndNewlines)))
    check([
      .refusing("queue depth 0", .invalidOption, "a queueDepth of 0 was given") {
        try AIOContext(queueDepth: 0)
      },
      .refusing("queue depth -1", .invalidOption, "must be from 1 to 65536") {
        try AIOContext(queueDepth: -1)
      },
      .refusing("queue depth 65537", .invalidOption, "65537") {
        try AIOContext(queueDepth: 65537)
      },
      .refusing("pending limit -1", .invalidOption, "a pendingLimit of -1 was given") {
        try AIOContext(queueDepth: 1, pendingLimit: -1)
      },
      .refusing("pending limit 524289", .invalidOption, "from 0 to 524288") {
        try AIOContext(queueDepth: 1, pendingLimit: 524_289)
      },
      .refusing("a global queue", .invalidOption, "give a serial queue, or none") {
        try AIOContext(queueDepth: 1, queue: .global(qos: .utility))
      },
    ])
    if maximum <= 65536, other.usesKernelAIO {
      // One context exists, so that all of them is more than there are left.
      check([
        .refusing(
          "more than fs.aio-max-nr has left", .contextLimit, "fs.aio-max-nr is \(maximum), "
        ) { try AIOContext(queueDepth: maximum, pendingLimit: 0) }
      ])
    }
    withExtendedLifetime(other) {}
  }

  func testFiles() throws {
    let directory = try temporaryDirectory()
    let path = directory.path
    let file = try directory.makeFile(size: 8192)
    symlink("loop", path.appending("loop").string)
    mkfifo(path.appending("fifo").string, 0o600)
    let readOnly = try directory.open("file", .readOnly)
    let closed = try directory.open("file")
    closed.close()
    let writable = try directory.open("file")
    var pipes: [Int32] = [0, 0]
    pipe(&pipes)
    let socket = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    defer { for each in pipes + [socket] { Glibc.close(each) } }

    check([
      .refusing("open: no such file", .notFound, "open of \(path)/none: No such file") {
        try AIOFile.open(path.appending("none"), .readOnly)
      },
      .refusing("open: an empty path", .notFound, "No such file") {
        try AIOFile.open("", .readOnly)
      },
      .refusing("open: a file as a directory", .system, "Not a directory") {
        try AIOFile.open(file.appending("x"), .readOnly)
      },
      .refusing("open: a name too long", .system, "name too long") {
        try AIOFile.open(path.appending(String(repeating: "x", count: 300)), .readOnly)
      },
      .refusing("open: a symlink to itself", .system, "symbolic links") {
        try AIOFile.open(path.appending("loop"), .readOnly)
      },
      .refusing("open: exists, but was to be created", .exists, "File exists") {
        try AIOFile.open(file, .readWrite, options: [.create, .exclusiveCreate])
      },
      .refusing("open: a directory, direct", .unsupportedFile, "it is a directory") {
        try AIOFile.open(path, .readOnly)
      },
      .refusing("open: truncate what is read", .wrongAccessMode, "to truncate is to write") {
        try AIOFile.open(file, .readOnly, options: .truncate)
      },
      .refusing("open: a directory to read", .unsupportedFile, "it is a directory") {
        try AIOFile.open(path, .readOnly, caching: .buffered)
      },
      .refusing("open: a directory to write", .unsupportedFile, "open a file in it") {
        try AIOFile.open(path, .readWrite)
      },
      .refusing("open: a FIFO", .unsupportedFile, "it is a pipe") {
        try AIOFile.open(path.appending("fifo"), .readOnly, caching: .buffered)
      },
      .refusing("open: a FIFO to write", .unsupportedFile, "it is a pipe") {
        try AIOFile.open(path.appending("fifo"), .writeOnly)
      },
      .refusing("open: a terminal", .unsupportedFile, "it is a terminal") {
        try AIOFile.open("/dev/ptmx", .readWrite)
      },
      .refusing("open: a symlink that may not be followed", .unsupportedFile, "a symbolic link") {
        try AIOFile.open(path.appending("loop"), .readOnly, options: .noFollow)
      },
      .refusing("open: a character device", .unsupportedFile, "a character device") {
        try AIOFile.open("/dev/null", .readWrite, caching: .buffered)
      },
      .refusing(
        "open: no direct I/O on this filesystem", .directUnsupported, "caching: .buffered"
      ) { try AIOFile.open("/proc/self/status", .readOnly) },
      .refusing("adopt: no such descriptor", .system, "descriptor 9999: Bad file descriptor") {
        try AIOFile(adopting: FileDescriptor(rawValue: 9999))
      },
      .refusing("adopt: a pipe", .unsupportedFile, "AIOContext.makeReadSource") {
        try AIOFile(adopting: FileDescriptor(rawValue: pipes[0]))
      },
      .refusing("adopt: a socket", .unsupportedFile, "it is a socket") {
        try AIOFile(adopting: FileDescriptor(rawValue: socket))
      },
      .refusing("preallocate: read-only", .wrongAccessMode, "not open for writing") {
        try readOnly.preallocate(0..<4096)
      },
      .refusing("preallocate: negative", .invalidOffset, "must be 0 or more") {
        try writable.preallocate(-4096..<4096)
      },
      .refusing("preallocate: all numbers", .invalidOffset, "at offset -9223372036854775808") {
        try writable.preallocate(Int64.min..<Int64.max)
      },
      .refusing("zero: all numbers", .invalidOffset, "at offset -9223372036854775808") {
        try writable.zero(Int64.min..<Int64.max)
      },
      // More bytes than a number can say.
      .refusing("punch hole: from -1 on", .invalidOffset, "at offset -1") {
        try writable.punchHole(-1..<Int64.max)
      },
      .refusing("collapse: from -1 on", .invalidOffset, "at offset -1") {
        try writable.collapse(-1..<Int64.max)
      },
      .refusing("copy: from -1 on", .invalidOffset, "at offset -1") {
        try writable.copy(-1..<Int64.max, to: writable, at: 0)
      },
      .refusing("clone: from -1 on", .invalidOffset, "at offset -1") {
        try writable.clone(-1..<Int64.max, to: writable, at: 0)
      },
      .refusing("advise: from -1 on", .invalidOffset, "at offset -1") {
        try writable.advise(.willNeed, -1..<Int64.max)
      },
      .refusing("lock: from -1 on", .invalidOffset, "at offset -1") {
        try writable.tryLock(.shared, -1..<Int64.max)
      },
      .refusing("unlock: from -1 on", .invalidOffset, "at offset -1") {
        try writable.unlock(-1..<Int64.max)
      },
      .refusing("open: to read a file without a name", .wrongAccessMode, "opened for writing") {
        try AIOFile.open(path, .readOnly, options: .init(rawValue: ckernel_o_tmpfile))
      },
      .refusing("truncate: negative", .invalidOffset, "a size of -1 bytes; 0 or more can") {
        try writable.truncate(to: -1)
      },
      .refusing("truncate: more than a file can be", .fileSizeLimit, "File too large") {
        try writable.truncate(to: .max)
      },
      .refusing("preallocate: closed", .fileClosed, "has been closed") {
        try closed.preallocate(0..<4096)
      },
      .refusing("preallocate: more than a file can be", .fileSizeLimit, "File too large") {
        try writable.preallocate(0..<(Int64.max - 4096))
      },
      .refusing("size: closed", .fileClosed, "size of \(file): the file has been closed") {
        try closed.size()
      },
    ])
  }

  func testRequests() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 8192)
    let context = try AIOContext(queueDepth: 4, pendingLimit: 0)
    let file = try directory.open("file")
    let readOnly = try directory.open("file", .readOnly)
    let writeOnly = try directory.open("file", .writeOnly)
    let buffered = try directory.open("file", caching: .buffered)
    let closed = try directory.open("file")
    closed.close()
    let buffer = AIOBuffer(count: 4096)
    let empty = AIOBuffer(count: 0)
    let end = try AIOContext(queueDepth: 1)
    try end.closeAndWait()
    let page = mmap(nil, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
    defer { munmap(page, 4096) }
    // Never looked at: the length alone is refused.
    let huge = UnsafeMutableRawBufferPointer(start: page, count: .max)

    func read(
      _ file: AIOFile, at offset: Int64 = 0, _ buffer: AIOBuffer
    ) -> () throws -> Outcome {
      { try context.readAndWait(file, at: offset, into: buffer) }
    }
    func write(
      _ file: AIOFile, at offset: Int64 = 0, _ buffer: AIOBuffer
    ) -> () throws -> Outcome {
      { try context.writeAndWait(file, at: offset, from: buffer) }
    }
    func wait(
      _ request: @escaping (@escaping AIOCompletion) throws -> Void
    ) -> () throws -> Outcome {
      { try context.outcome(request) }
    }

    check([
      // Offsets and lengths
      Row(
        "read: negative offset", .refused(.invalidOffset, "at offset -512"),
        read(buffered, at: -512, buffer)),
      Row(
        "write: negative offset", .refused(.invalidOffset, "must be 0 or more"),
        write(buffered, at: -1, buffer)),
      Row(
        "read: an end past the largest offset", .refused(.invalidOffset, "largest offset"),
        read(buffered, at: .max - 100, buffer)),
      Row(
        "write: far past what the filesystem can hold", .failed(.fileSizeLimit, "too large"),
        write(buffered, at: .max - 8191, buffer)),
      Row(
        "vectored read: more bytes than a number can say", .refused(.tooLarge, "use fewer"),
        wait { try context.read(buffered, at: 0, into: [huge, huge], completion: $0) }),
      Row(
        "vectored write: more bytes than a number can say", .refused(.tooLarge, "use fewer"),
        wait {
          try context.write(
            buffered, at: 0, from: [.init(huge), .init(huge)], completion: $0)
        }),
      Row("read: nothing", .completes(0), read(file, empty)),
      Row("write: nothing", .completes(0), write(file, empty)),
      Row(
        "vectored read: no buffers", .completes(0),
        wait { try context.read(file, at: 0, into: [AIOBuffer](), completion: $0) }),
      Row(
        "vectored write: no buffers", .completes(0),
        wait { try context.write(file, at: 0, from: [AIOBuffer](), completion: $0) }),
      Row(
        "vectored read: 1025 buffers", .refused(.tooManyBuffers, "1025 buffers were given"),
        wait {
          try context.read(
            file, at: 0, into: [AIOBuffer](repeating: buffer, count: 1025), completion: $0)
        }),
      Row(
        "vectored write: 1025 buffers", .refused(.tooManyBuffers, "at most 1024"),
        wait {
          try context.write(
            file, at: 0, from: [AIOBuffer](repeating: empty, count: 1025), completion: $0)
        }),
      // Access and life of the file
      Row(
        "read: file open for writing only", .refused(.wrongAccessMode, "open for reading"),
        read(writeOnly, buffer)),
      Row(
        "write: file open for reading only", .refused(.wrongAccessMode, "open for writing"),
        write(readOnly, buffer)),
      Row("read: closed file", .refused(.fileClosed, "open it again"), read(closed, buffer)),
      Row(
        "write: closed file", .refused(.fileClosed, "write of 4096 bytes at offset 0 of \(path)"),
        write(closed, buffer)),
      Row(
        "fsync: closed file", .refused(.fileClosed, "fsync of \(path)"),
        wait { try context.fsync(closed, completion: $0) }),
      Row(
        "fdatasync: closed file", .refused(.fileClosed, "has been closed"),
        wait { try context.fdatasync(closed, completion: $0) }),
      Row(
        "fsync: file open for reading only", .completes(0),
        wait { try context.fsync(readOnly, completion: $0) }),
      // Options that the file does not have
      Row(
        "write: untorn, on a disk that has none",
        .refused(.notSupported, "AIOFile.atomicWriteUnit"),
        wait { try context.write(file, at: 0, from: buffer, options: .atomic, completion: $0) }),
      Row(
        "write: untorn, through the page cache", .refused(.notSupported, "caching: .direct"),
        wait { try context.write(buffered, at: 0, from: buffer, options: .atomic, completion: $0) }),
      Row(
        "append: untorn", .refused(.notSupported, "write at an offset"),
        wait { try context.append(file, from: buffer, options: .atomic, completion: $0) }),
      Row(
        "append: file open for reading only", .refused(.wrongAccessMode, "append of 4096 bytes of"),
        wait { try context.append(readOnly, from: buffer, completion: $0) }),
      Row(
        "append: misaligned length", .refused(.misaligned, "length 100 is not a multiple"),
        wait { try context.append(file, from: AIOBuffer(count: 100), completion: $0) }),
      Row(
        "append: nothing", .completes(8192),
        wait {
          try context.append(file, from: empty, completion: $0)
        }),
      // The end of the file
      Row(
        "read: across the end", .completes(4096),
        read(file, at: 4096, AIOBuffer(count: 8192))),
      Row("read: at the end", .completes(0), read(file, at: 8192, buffer)),
      Row("read: far past the end", .completes(0), read(file, at: 1 << 40, buffer)),
      // Memory that is not there
      Row(
        "read: into memory that is not there", .failed(.system, "Bad address (errno 14)"),
        wait {
          try context.read(
            file, at: 0, into: UnsafeMutableRawBufferPointer(start: page, count: 4096),
            completion: $0)
        }),
      Row(
        "write: from memory that is not there", .failed(.system, "Bad address"),
        wait {
          try context.write(
            file, at: 0, from: UnsafeRawBufferPointer(start: page, count: 4096), completion: $0)
        }),
      // The life of the context
      Row("read: closed context", .refused(.contextClosed, "make a new one")) {
        try end.readAndWait(file, at: 0, into: buffer)
      },
      Row("fdatasync: closed context", .refused(.contextClosed, "has been closed")) {
        try end.outcome { try end.fdatasync(file, completion: $0) }
      },
      Row("one request too many", .refused(.full, "all 4 requests")) {
        try context.queue.sync {
          for _ in 0..<4 { try context.fdatasync(file) { _ in } }
          try context.fdatasync(file) { _ in XCTFail("a refused request completed") }
          return .success(0)
        }
      },
    ])
    try context.closeAndWait()
  }

  func testAlignment() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 65536)
    let context = try AIOContext(queueDepth: 4)
    let file = try directory.open("file")
    let (unit, memory) = (file.alignment.offset, file.alignment.memory)
    guard unit > 1 && memory > 1 else {
      throw XCTSkip("\(directory.path) demands no alignment; set TMPDIR")
    }
    let buffer = AIOBuffer(count: 4 * unit, alignment: max(unit, memory))
    func read(at offset: Int, _ buffers: [AIOBuffer]) -> () throws -> Outcome {
      {
        try context.outcome {
          try context.read(file, at: Int64(offset), into: buffers, completion: $0)
        }
      }
    }
    check([
      Row("read: misaligned offset", .refused(.misaligned, "offset 1 is not a multiple of \(unit)"))
      {
        try context.readAndWait(file, at: 1, into: buffer)
      },
      Row("write: misaligned offset", .refused(.misaligned, "AIOFile.alignment")) {
        try context.writeAndWait(file, at: Int64(unit / 2), from: buffer)
      },
      Row(
        "read: misaligned length",
        .refused(.misaligned, "length \(unit - 1) is not a multiple of \(unit)")
      ) { try context.readAndWait(file, at: 0, into: buffer[..<(unit - 1)]) },
      Row("write: misaligned length", .refused(.misaligned, "caching: .buffered")) {
        try context.writeAndWait(file, at: 0, from: buffer[..<(unit + 1)])
      },
      Row("read: misaligned memory", .refused(.misaligned, "is not a multiple of \(memory)")) {
        try context.readAndWait(file, at: 0, into: buffer[1..<(unit + 1)])
      },
      Row("write: misaligned memory", .refused(.misaligned, "memory address 0x")) {
        try context.writeAndWait(file, at: 0, from: buffer[1..<(unit + 1)])
      },
      Row(
        "vectored read: misaligned offset", .refused(.misaligned, "offset 3 is"),
        read(at: 3, [buffer, buffer])),
      Row(
        "vectored read: one misaligned length", .refused(.misaligned, "length 7 of buffer 1 is"),
        read(at: 0, [buffer, buffer[..<7], buffer])),
      Row(
        "vectored read: one misaligned address",
        .refused(.misaligned, "of buffer 2 is not a multiple of"),
        read(at: 0, [buffer, buffer, buffer[1..<(unit + 1)]])),
    ])
    // The same is fine on a buffered file.
    let buffered = try directory.open("file", caching: .buffered)
    XCTAssertEqual(try context.readAndWait(buffered, at: 1, into: buffer[1..<100]), .success(99))
    try context.closeAndWait()
  }

  func testCancelling() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 1)
    let other = try AIOContext(queueDepth: 1)
    let file = try directory.open()
    let promise = Promise<Outcome>()
    let request = try context.fsync(file) { promise.fulfil($0) }
    _ = try promise.wait()
    XCTAssertEqual(context.cancel(request), .alreadyCompleted, "a stale handle")
    XCTAssertEqual(other.cancel(request), .alreadyCompleted, "another context's handle")
    try context.closeAndWait()
    XCTAssertEqual(context.cancel(request), .alreadyCompleted, "a closed context's handle")
  }

  /// An interval of any length: no error, and no trap. (One that is no time traps: MisuseTests.)
  func testTimers() throws {
    let context = try AIOContext(queueDepth: 1)
    let timer = try context.makeTimerSource()
    for interval in [Double.leastNonzeroMagnitude, 1e-10, 1e300, .infinity] {
      timer.schedule(deadline: .distantFuture, repeating: interval)
    }
    timer.cancel()
    try context.closeAndWait()
  }

  // MARK: The world's limits

  func testFileSizeLimit() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["file-size-limit", directory.path.string])
    // Within the limit; across it, as much as fits; beyond it.
    XCTAssertEqual(
      run.output, "0 8192\n4096 fileSizeLimit 4096\n8192 fileSizeLimit 0\n", run.errors)
  }

  func testFullDisk() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 8)
    let context = try AIOContext(queueDepth: 4)
    let file = try AIOFile.open(disk.path.appending("file"), .readWrite, options: .create)
    let buffer = AIOBuffer(count: 1 << 20)
    var written: Int64 = 0
    var last = Outcome.success(0)
    while case .success(let count) = last, written < 64 << 20 {
      written += Int64(count)
      last = try context.writeAndWait(file, at: written & ~4095, from: buffer)
    }
    XCTAssertEqual(last.code, .noSpace)
    guard case .failure(let error) = last else { return }
    XCTAssertEqual(error.errno, .noSpace)
    XCTAssertTrue(error.description.contains("free some space"), "\(error)")
    // Nothing else is hurt.
    XCTAssertEqual(
      try context.readAndWait(file, at: 0, into: buffer[..<4096]), .success(4096))
    try context.closeAndWait()
    let closed = Promise<Void>()
    file.close { closed.fulfil(()) }
    try closed.wait()
  }
}
