// SPDX-License-Identifier: Apache-2.0

import Dispatch
import XCTest

@testable import DispatchAIO

/// What the kernel answers about a descriptor that is to be watched reaches the caller, and the
/// epoll set is closed after its poll has ended.
final class EpollTests: XCTestCase {
  /// Goal: each error of epoll_ctl(2) is typed, and leaves nothing behind. Method: strace lets
  /// every call about the pipe fail.
  func testErrors() throws {
    for (name, number, code, words) in [
      ("ENOSPC", ENOSPC, "descriptorLimit", "fs.epoll.max_user_watches"),
      ("ENOMEM", ENOMEM, "system", "Cannot allocate memory"),
      ("EPERM", EPERM, "unsupportedFile", "always ready"),
      ("EBADF", EBADF, "system", "Bad file descriptor"),
      ("EEXIST", EEXIST, "exists", "cancel that one first"),
    ] {
      let directory = try temporaryDirectory()
      let log = try SystemCallLog(
        tracing: "epoll_ctl",
        options: [
          "-P", directory.path.appending("pipe").string, "-e", "inject=epoll_ctl:error=\(name)",
        ], ChildProcess.built("dispatch-aio-probe"), ["watch-pipe", directory.path.string],
        in: directory)
      let lines = log.run.output.split(separator: "\n").map(String.init)
      XCTAssertEqual(lines.count, 4, log.run.output + log.run.errors)
      for (line, what) in zip(lines, ["source", "second", "poll"]) {
        XCTAssertTrue(line.hasPrefix("\(what): \(code) \(number) "), line)
        XCTAssertTrue(line.contains(words), line)
      }
      XCTAssertEqual(lines.last, "closed")
    }
  }

  /// A second source of a kind is refused without asking the kernel, and a poll that the context's
  /// end cancels says so.
  func testWithoutFaults() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["watch-pipe", directory.path.string])
    let lines = run.output.split(separator: "\n").map(String.init)
    XCTAssertEqual(lines.count, 5, run.output + run.errors)
    XCTAssertEqual(lines.first, "source: made")
    XCTAssertTrue(lines.dropFirst().first?.hasPrefix("second: exists \(EEXIST) ") == true)
    XCTAssertTrue(lines.dropFirst(3).first?.contains("context has been closed") == true, run.output)
    XCTAssertEqual(lines.last, "closed")
  }

  /// Goal: polls and sources of a context that is busy with events while another thread closes it
  /// end all the same: a turn in between must not take the context for idle.
  func testClosingWhileTurnsRun() {
    onThreads(4) { thread in
      for round in 0..<40 {
        var ends: [Int32] = [0, 0]
        let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
        guard socketpair(AF_UNIX, type, 0, &ends) == 0, let context = try? AIOContext(queueDepth: 1)
        else { return XCTFail("no sockets, or no context") }
        let (near, far) = (ends[0], ends[1])
        let (isBusy, ended) = (DispatchSemaphore(value: 0), DispatchGroup())
        for _ in 0..<3 { ended.enter() }
        do {
          let source = try context.makeReadSource(fileDescriptor: near)
          source.setEventHandler {
            var byte: UInt8 = 0
            _ = read(near, &byte, 1)
            isBusy.signal()
            // The next turn.
            _ = write(far, "x", 1)
          }
          source.setCancelHandler { ended.leave() }
          source.activate()
          try context.poll(near, for: .priority) { _ in ended.leave() }
        } catch {
          return XCTFail("\(error)")
        }
        _ = write(far, "x", 1)
        for _ in 0..<(1 + round % 5) { isBusy.wait() }
        context.close { ended.leave() }
        guard ended.wait(timeout: .now() + 20) == .success else {
          return XCTFail("thread \(thread), round \(round): something has not ended")
        }
        close(near)
        close(far)
      }
    }
  }

  /// Goal: the epoll set is closed after its poll has ended, as the event of a poll in flight would
  /// never arrive: io_destroy(2), which ends the poll, returns before.
  func testTheSetIsClosedAfterItsPoll() throws {
    try requireKernelAIO("there is no poll")
    let directory = try temporaryDirectory()
    let log = try SystemCallLog(
      tracing: "epoll_create1,io_submit,io_destroy,close",
      ChildProcess.built("dispatch-aio-probe"), ["watch-pipe", directory.path.string],
      in: directory)
    XCTAssertEqual(log.run.output.split(separator: "\n").last, "closed", log.run.errors)
    let poll = try XCTUnwrap(log.calls.lastIndex { $0.contains("IOCB_CMD_POLL") })
    let descriptor = try XCTUnwrap(
      log.calls[poll].firstMatch(of: #/IOCB_CMD_POLL.*?aio_fildes=(\d+)/#)?.1)
    let context = try XCTUnwrap(log.calls[poll].firstMatch(of: #/io_submit\((\w+),/#)?.1)
    let after = log.calls[poll...]
    let destroyed = try XCTUnwrap(after.firstIndex { $0.hasPrefix("io_destroy(\(context))") })
    let closed = try XCTUnwrap(after.firstIndex { $0.hasPrefix("close(\(descriptor))") })
    XCTAssertLessThan(destroyed, closed)
  }
}
