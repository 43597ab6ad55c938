// SPDX-License-Identifier: Apache-2.0

import XCTest

/// What Dispatch does not tell when it cannot have what it needs: found out when a context is made.
final class DispatchProbeTests: XCTestCase {
  /// Goal: a process with few descriptors left has a context that works, or an error.
  func testFewDescriptors() throws {
    let directory = try temporaryDirectory()
    var created = 0
    for left in 0...14 {
      let run = try ChildProcess.run(
        ChildProcess.built("dispatch-aio-probe"), ["few-descriptors", directory.path.string],
        seconds: 20, environment: ["PROBE_DESCRIPTORS": "\(left)"])
      print("  \(left) left: \(run.output)", terminator: "")
      XCTAssertFalse(run.wasSignalled, "\(left) left: signal \(run.status)")
      if run.output == "created success(4096)\n" {
        created += 1
      } else {
        XCTAssertTrue(run.output.hasPrefix("descriptorLimit "), "\(left) left: \(run.output)")
        XCTAssertTrue(run.output.contains("ulimit -n"), "\(left) left: \(run.output)")
        XCTAssertEqual(created, 0, "more descriptors, and no context")
      }
    }
    XCTAssertGreaterThan(created, 0)
  }

  /// The same when Dispatch has what it needs: a second context needs little, and where it cannot
  /// have it, the first goes on.
  func testFewDescriptorsForASecondContext() throws {
    let directory = try temporaryDirectory()
    var created = 0
    for left in 0...4 {
      let run = try ChildProcess.run(
        ChildProcess.built("dispatch-aio-probe"), ["few-descriptors", directory.path.string],
        seconds: 20, environment: ["PROBE_DESCRIPTORS": "\(left)", "PROBE_CONTEXTS": "2"])
      XCTAssertFalse(run.wasSignalled, "\(left) left: signal \(run.status)")
      let earlier = "earlier success(4096)\nearlier success(4096)\n"
      XCTAssertTrue(run.output.hasSuffix(earlier), "\(left) left: \(run.output)")
      if run.output == "created success(4096)\n" + earlier {
        created += 1
      } else {
        XCTAssertTrue(run.output.hasPrefix("descriptorLimit "), "\(left) left: \(run.output)")
        XCTAssertEqual(created, 0, "more descriptors, and no context")
      }
    }
    XCTAssertGreaterThanOrEqual(created, 2)
  }

  /// Goal: nothing of the library's runs on a global queue of Dispatch, which ends a process that
  /// has no descriptor left while such a queue has threads. Method: their names, also of one that
  /// is made for comparison.
  func testNoGlobalQueues() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["workers", directory.path.string], seconds: 20)
    let steps = "context 0\nsecond context 0\nchannel 0\nglobal "
    XCTAssertTrue(run.output.hasPrefix(steps), run.output)
    // One, or two where Dispatch made another at once.
    XCTAssertFalse(run.output.hasPrefix(steps + "0"), "its thread was not seen")
  }

  /// Goal: where the user's epoll watches are used up, which Dispatch keeps to itself, there is an
  /// error. Method: strace answers epoll_ctl for the kernel.
  func testNoMoreEpollWatches() throws {
    let directory = try temporaryDirectory()
    // From each thread's first call on, the library's own among them; and when Dispatch has started
    // and no more sources get into its epoll set.
    for (command, when) in [("create", "1+"), ("create-late", "2+")] {
      let log = try SystemCallLog(
        tracing: "epoll_ctl", options: ["-e", "inject=epoll_ctl:error=ENOSPC:when=\(when)"],
        ChildProcess.built("dispatch-aio-probe"), [command, directory.path.string], in: directory)
      print("  \(command) \(when): \(log.run.output)", terminator: "")
      XCTAssertFalse(log.run.wasSignalled)
      XCTAssertTrue(log.run.output.hasPrefix("descriptorLimit "), log.run.output)
      XCTAssertTrue(log.run.output.contains("fs.epoll.max_user_watches"), log.run.output)
    }
  }
}
