// SPDX-License-Identifier: Apache-2.0

import XCTest

/// What the library asks of the kernel, as strace sees it.
final class SystemCallTests: XCTestCase {
  /// Each verb is the operation that it claims to be, and each completes through the eventfd.
  func testTheVerbsAreWhatTheyClaim() throws {
    try requireKernelAIO("nothing is submitted")
    let directory = try temporaryDirectory()
    let log = try SystemCallLog(
      tracing: "io_setup,io_submit,io_getevents,io_destroy,eventfd2,read,pwritev",
      ChildProcess.built("dispatch-aio-probe"), ["verbs", directory.path.string], in: directory)
    XCTAssertEqual(log.run.status, 0, log.run.errors)

    // The context that the requests go to (there was another, to see whether AIO works), and the
    // eventfd that they name (libdispatch has some of its own).
    let first = try XCTUnwrap(log.calls(with: "IOCB_CMD_PWRITEV,").first)
    let context = try XCTUnwrap(first.split(separator: ",").first)
    let event = try XCTUnwrap(
      first.components(separatedBy: "aio_resfd=").last?.prefix { $0.isNumber })
    // The number may have been another's before.
    let made = log.calls(with: "eventfd2(", "= \(event)")
    XCTAssertTrue(
      !made.isEmpty && made.allSatisfy { $0.contains("eventfd2(0, EFD_CLOEXEC|EFD_NONBLOCK)") },
      "the eventfd is not non-blocking and close-on-exec: \(made)")
    for (operation, result) in [
      ("PWRITEV", 12288), ("PREADV", 12288), ("FSYNC", 0), ("FDSYNC", 0), ("PWRITE", 4096),
      ("PREAD", 4096),
    ] {
      XCTAssertTrue(
        log.run.output.contains("\(operation) success(\(result))"),
        "\(operation): \(log.run.output)")
      // A sync ends with its descriptor: strace shows no more of it.
      let name = "IOCB_CMD_\(operation),"
      // Not the one byte that is read to see whether AIO works: its context may have had the same
      // address, if it was gone before this one was made.
      let submissions = log.calls(with: String(context), ", 1, [", name).filter {
        !$0.contains("aio_nbytes=1,")
      }
      XCTAssertEqual(submissions.count, 1, "io_submit of one \(operation)")
      // strace does not show the flags of a sync: those are counted below.
      if !operation.hasSuffix("SYNC") {
        XCTAssertTrue(
          submissions.allSatisfy { $0.contains("aio_flags=IOCB_FLAG_RESFD, aio_resfd=\(event)}") },
          "\(operation) does not complete through the eventfd \(event): \(submissions)")
      }
    }
    XCTAssertEqual(
      log.calls(with: "io_submit(", ", 3, [").count, 1, "one io_submit for what one turn asks for")
    XCTAssertEqual(log.counted(on: event), 9, "the eventfd counts each of nine requests once")
    let destroy = context.replacingOccurrences(of: "io_submit", with: "io_destroy")
    let address = context.dropFirst("io_submit(".count)
    XCTAssertEqual(
      log.calls(with: destroy).count, log.calls(with: "io_setup(", "[\(address)]").count)

    // The first write is known to extend the file, for which kernel AIO would wait.
    XCTAssertEqual(log.calls(with: "pwritev(").count, 1)
    // What might have to wait goes down with RWF_NOWAIT; syncs, which the kernel does elsewhere, do
    // not.
    for (operation, isNowait) in [
      ("PWRITEV", true), ("PREADV", true), ("FSYNC", false), ("PWRITE", true), ("PREAD", true),
    ] {
      XCTAssertEqual(
        log.calls(with: String(context), "IOCB_CMD_\(operation),", "RWF_NOWAIT").count,
        isNowait ? (operation == "PREAD" ? 2 : 1) : 0, operation)
    }
  }
}
