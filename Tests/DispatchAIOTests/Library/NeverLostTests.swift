// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Whatever the kernel answers, each request completes once: on the real kernel, with faults.
final class NeverLostTests: XCTestCase {
  // MARK: Faults, injected by strace

  /// A random load, with data checking, whose system calls are made to fail.
  func testInjectedFaults() throws {
    try requireKernelAIO("nothing is submitted")
    for (fault, errno) in [
      // At the beginning and then every so often; the probe of whether there is AIO comes first.
      ("io_submit:error=EAGAIN:when=3+2", nil), ("io_submit:error=EAGAIN:when=3+7", nil),
      ("io_submit:error=EINTR:when=2+3", nil),
      ("io_submit:error=EBADF:when=4+9", EBADF),
      // What kernel AIO does not have, a system call does.
      ("io_submit:error=EINVAL:when=5+11", nil),
      ("io_submit:retval=0:when=3+4", nil),
    ] as [(String, Int32?)] {
      let log = try run("workload", fault)
      XCTAssertTrue(
        log.run.output.contains("wrong 0"), "\(fault): wrong data: \(log.run.output)")
      if let errno {
        // The request at fault fails, and no other.
        XCTAssertTrue(
          log.run.output.contains("[\"\(errno)\":"), "\(fault): \(log.run.output)")
      } else {
        XCTAssertTrue(
          log.run.output.contains(" failed 0 wrong 0"), "\(fault): \(log.run.output)")
      }
    }
  }

  /// The loop takes completions out of the ring by itself; only to wait for one it asks the kernel.
  func testInjectedFaultsWhileWaiting() throws {
    try requireKernelAIO("nobody waits in the kernel")
    for fault in [
      "io_getevents:error=EINTR:when=2+2", "io_getevents:error=EAGAIN:when=3+5",
      "io_getevents:error=EINVAL:when=3+3", "io_getevents:error=ENOSYS:when=2+",
    ] {
      let log = try run("scan", fault)
      XCTAssertEqual(log.run.output, "completed 1000 failed 0\n", fault)
    }
  }

  private func run(_ command: String, _ fault: String) throws -> SystemCallLog {
    let directory = try temporaryDirectory()
    let log = try SystemCallLog(
      tracing: "io_submit,io_getevents", options: ["-e", "inject=\(fault)"],
      ChildProcess.built("dispatch-aio-probe"), [command, directory.path.string],
      in: directory, environment: ["PROBE_REQUESTS": "1500"])
    XCTAssertEqual(log.run.status, 0, "\(fault): \(log.run.output)\(log.run.errors)")
    XCTAssertGreaterThan(log.calls(with: "(INJECTED)").count, 20, "\(fault): not injected")
    return log
  }

  /// A kernel that never has room while nothing is in flight is asked again by a timer, not in a
  /// spin.
  func testARefusingKernelIsNotAskedInASpin() throws {
    try requireKernelAIO("nothing is submitted")
    let directory = try temporaryDirectory()
    // strace counts each thread's calls by itself: from the third to the three hundredth. Should
    // Dispatch give the queue another thread meanwhile, it has two that succeed.
    let log = try SystemCallLog(
      tracing: "io_submit",
      options: ["-ttt", "-e", "inject=io_submit:error=EAGAIN:when=3..300"],
      ChildProcess.built("dispatch-aio-probe"), ["verbs", directory.path.string], in: directory)
    XCTAssertEqual(log.run.status, 0, log.run.errors)
    // Each line begins with the time in seconds.
    let asked = log.calls(with: "(INJECTED)").compactMap { call in
      Double(call.prefix { $0 != " " })
    }
    XCTAssertGreaterThanOrEqual(asked.count, 6)
    let milliseconds = ((asked.last ?? 0) - (asked.first ?? 0)) * 1000
    XCTAssertLessThanOrEqual(
      Double(asked.count), milliseconds + 2, "asked more than once in a millisecond")
    XCTAssertTrue(log.run.output.contains("PREAD success(4096)"), log.run.output)
  }

  // MARK: No AIO

  func testWithoutKernelAIO() throws {
    try requireKernelAIO("it is not looked for")
    let directory = try temporaryDirectory()
    let probe = try ChildProcess.built("dispatch-aio-probe")
    // What says nothing of kernel AIO, when it comes to the first who asks.
    for fault in ["io_submit:error=EAGAIN:when=1", "io_setup:error=ENOMEM:when=1"] {
      let made = try SystemCallLog(
        tracing: "io_setup,io_submit", options: ["-e", "inject=\(fault)"], probe,
        ["create", directory.path.string], in: directory)
      XCTAssertEqual(made.run.output, "created 4\n", fault)
    }
    for (fault, words) in [
      ("io_setup:error=ENOSYS", "there is no kernel AIO here"),
      ("io_setup:error=EPERM", "forbidden to this process, by a seccomp profile most likely"),
      // What only a request that is completed finds out.
      ("io_submit:error=EPERM", "forbidden to this process"),
      ("io_submit:error=ENOSYS", "there is no kernel AIO here"),
      ("io_getevents:retval=0", "there is no kernel AIO here"),
    ] {
      let refused = try SystemCallLog(
        tracing: "io_setup,io_submit,io_getevents", options: ["-e", "inject=\(fault)"], probe,
        ["create", directory.path.string], in: directory)
      XCTAssertTrue(
        refused.run.output.hasPrefix("unavailable create context: "),
        "\(fault): \(refused.run.output)")
      XCTAssertTrue(refused.run.output.contains(words), "\(fault): \(refused.run.output)")

      // … and what the caller may ask for instead.
      let instead = try SystemCallLog(
        tracing: "io_setup,io_submit,io_getevents,preadv,pwritev,fsync,fdatasync",
        options: ["-e", "inject=\(fault)"], probe, ["threads", directory.path.string],
        in: directory)
      XCTAssertEqual(
        instead.run.output,
        """
        AIO false
        PWRITEV success(12288)
        FSYNC success(0)
        FDSYNC success(0)
        PREAD success(12288)
        bytes 1 1 2 2 0
        EOF success(0)
        asleep true
        waits 0

        """, instead.run.errors)
      XCTAssertEqual(instead.calls(with: "fdatasync(").count, 1)
      try? FileManager.default.removeItem(atPath: directory.path.appending("probe").string)
    }
  }

  /// Goal: the environment chooses threads where kernel AIO works, whatever a context's options
  /// are, and says so where it is misspelt.
  func testTheEnvironmentChoosesThreads() throws {
    let directory = try temporaryDirectory()
    let probe = try ChildProcess.built("dispatch-aio-probe")
    let log = try SystemCallLog(
      tracing: "io_setup,io_submit", probe, ["verbs", directory.path.string], in: directory,
      environment: [KernelChoice.variable: "threads"])
    XCTAssertEqual(log.run.status, 0, log.run.errors)
    XCTAssertTrue(log.run.output.contains("PREAD success(4096)"), log.run.output)
    XCTAssertEqual(log.calls(with: "io_"), [])
    let misspelt = try ChildProcess.run(
      probe, ["create", directory.path.string], environment: [KernelChoice.variable: "Threads"])
    XCTAssertTrue(
      misspelt.output.hasPrefix("invalidOption create context: "), misspelt.output)
    XCTAssertTrue(
      misspelt.output.contains(#"DISPATCH_AIO_KERNEL is "Threads""#), misspelt.output)
    for (value, choice) in [
      (nil, .best), ("", .best), ("threads", .threads), ("aio", .unknown("aio")),
    ] as [(String?, KernelChoice)] {
      XCTAssertEqual(KernelChoice(value), choice)
    }
  }

  func testASmallerDepthWhereThereIsNoRoom() throws {
    try requireKernelAIO("there is no limit of the depth")
    let maximum = try XCTUnwrap(
      Int(
        String(contentsOfFile: "/proc/sys/fs/aio-max-nr", encoding: .ascii)
          .trimmingCharacters(in: .whitespacesAndNewlines)))
    guard maximum <= 65536 else { throw XCTSkip("fs.aio-max-nr is \(maximum): too much to use up") }
    // One takes a share, so that all is too much.
    let other = try AIOContext(queueDepth: 16)
    var options = AIOContext.Options()
    options.minimumQueueDepth = maximum
    assertRefused(.contextLimit) {
      try AIOContext(queueDepth: maximum, pendingLimit: 0, options: options)
    }
    options.minimumQueueDepth = 8
    let context = try AIOContext(queueDepth: maximum, pendingLimit: 0, options: options)
    XCTAssertLessThan(context.queueDepth, maximum)
    XCTAssertGreaterThanOrEqual(context.queueDepth, 8)
    try context.closeAndWait()
    options.minimumQueueDepth = 200
    assertRefused(.invalidOption) { try AIOContext(queueDepth: 100, options: options) }
    withExtendedLifetime(other) {}
  }

  // MARK: Fork, exit, idle threads

  func testAChildOfForkIsTold() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["fork", directory.path.string])
    XCTAssertEqual(run.status, 0, run.errors)
    XCTAssertTrue(run.output.contains("child: read of 4096 bytes at offset 0"), run.output)
    XCTAssertTrue(run.output.contains("a kernel AIO context is not inherited"), run.output)
    XCTAssertTrue(run.output.contains("child: forked"), run.output)
    XCTAssertTrue(run.output.contains("child: another: forked"), run.output)
    XCTAssertFalse(run.output.contains("child: completed"), run.output)
    XCTAssertFalse(run.output.contains("child: accepted"), run.output)
    // The parent goes on.
    XCTAssertTrue(run.output.hasSuffix("parent success(0)\n"), run.output)
  }

  /// The statistics' lock may be held at the fork by a thread that the child does not have.
  func testTheStatisticsInAChildOfFork() throws {
    guard !Sanitizer.isBuiltIn else {
      throw XCTSkip("a sanitizer's own locks stay locked in a child of many threads")
    }
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["fork-statistics", directory.path.string])
    XCTAssertEqual(run.output, "answered 300\n", run.errors)
  }

  /// The epoll set is the parent's, too, and the lock of what is watched may be held at the fork.
  func testAChildOfForkChangesNoSource() throws {
    guard !Sanitizer.isBuiltIn else {
      throw XCTSkip("a sanitizer's own locks stay locked in a child of many threads")
    }
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["fork-sources", directory.path.string])
    XCTAssertEqual(run.output, "children 100\nsource success\npoll success\n", run.errors)
  }

  func testExitWithRequestsInFlight() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      ChildProcess.built("dispatch-aio-probe"), ["exit-in-flight", directory.path.string])
    XCTAssertFalse(run.wasSignalled, run.errors)
    XCTAssertEqual(run.status, 7)
  }

  /// A Dispatch worker that is idle for more than 5 s ends. The requests that it submitted go on:
  /// kernel AIO belongs to the process. (io_uring's would be cancelled.) Method: here the thread
  /// that runs a block of the queue, and with it the turn that submits, ends at once.
  func testThreadsThatEndDisturbNothing() throws {
    try requireKernelAIO("a request has a thread while it lasts")
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 16)
    let path = disk.path.appending("file")
    let file = try AIOFile.open(path, .readWrite, options: .create)
    let context = try AIOContext(queueDepth: 16)
    _ = try context.writeAndWait(file, at: 0, from: AIOBuffer(count: 65536))
    let throttle = try Throttle(disk, readsPerSecond: 1)
    let results = (0..<8).map { _ in Promise<Outcome>() }
    let submitter = Promise<Result<String, any Error>>()
    Thread.detachNewThread {
      let thread = Result {
        try context.queue.sync {
          for (number, result) in results.enumerated() {
            try context.read(file, at: Int64(number * 4096), into: AIOBuffer(count: 4096)) {
              result.fulfil($0)
            }
          }
          _ = context.process()
          return ProcessorWaits.callingThread
        }
      }
      submitter.fulfil(thread)
    }
    let thread = try submitter.wait().get()
    XCTAssertTrue(eventually { access("/proc/self/task/\(thread)", F_OK) != 0 })
    XCTAssertGreaterThan(context.statistics.inKernel, 0, "all were completed before it had ended")
    throttle.lift()
    for result in results { XCTAssertEqual(try result.wait(seconds: 60), .success(4096)) }
    try context.closeAndWait()
    let closed = Promise<Void>()
    file.close { closed.fulfil(()) }
    try closed.wait()
  }

  // MARK: Short transfers

  func testShortTransfersAreFinished() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 1_000_000) { UInt8(truncatingIfNeeded: $0 / 512) }
    let context = try AIOContext(queueDepth: 4)
    for caching in [AIOFile.Caching.direct, .buffered] {
      let file = try AIOFile.open(path, .readOnly, caching: caching)
      let unit = file.alignment.offset
      let buffer = AIOBuffer(count: 1 << 20)
      // To the end of the file, and no further.
      XCTAssertEqual(
        try context.outcome { try context.read(file, at: 0, into: buffer, completion: $0) },
        .success(1_000_000))
      XCTAssertTrue(
        buffer.array.prefix(1_000_000).elementsEqual(
          (0..<1_000_000).map { UInt8(truncatingIfNeeded: $0 / 512) }))
      XCTAssertEqual(
        try context.outcome {
          try context.read(
            file, at: Int64(2_000_000 / unit * unit), into: buffer, completion: $0)
        }, .success(0))
      XCTAssertEqual(
        try context.outcome {
          try context.read(
            file, at: 0, into: [buffer[..<4096], buffer[8192..<16384]], completion: $0)
        }, .success(12288))
    }
    try context.closeAndWait()
  }

  /// More than one request can move: the kernel cuts it short, and the rest follows.
  func testMoreThanOneRequestCanMove() throws {
    let directory = try temporaryDirectory()
    let context = try AIOContext(queueDepth: 4)
    let file = try directory.open()
    try file.preallocate(0..<4 << 30)
    // The same 64 MiB over and over: 1 GiB in 16 elements, times three.
    let piece = AIOBuffer(count: 64 << 20)
    let pieces = [AIOBuffer](repeating: piece, count: 48)
    XCTAssertEqual(
      try context.outcome {
        try context.read(file, at: 0, into: pieces, completion: $0)
      }, .success(3 << 30))
    try context.closeAndWait()
    XCTAssertGreaterThanOrEqual(context.statistics.continuations, 1)
  }

  func testAFullDiskTellsHowFarItGot() throws {
    let directory = try temporaryDirectory()
    let disk = try SmallDisk(in: directory, megabytes: 16)
    let context = try AIOContext(queueDepth: 4)
    for caching in [AIOFile.Caching.direct, .buffered] {
      let path = disk.path.appending("file")
      let file = try AIOFile.open(
        path, .readWrite, options: [.create, .truncate], caching: caching)
      let buffer = AIOBuffer(count: 32 << 20)
      buffer.fill(7)
      let outcome = try context.outcome {
        try context.write(file, at: 0, from: buffer, completion: $0)
      }
      XCTAssertEqual(outcome.code, .noSpace)
      guard case .failure(let error) = outcome else { return }
      XCTAssertGreaterThan(error.transferred, 4 << 20)
      XCTAssertLessThan(error.transferred, 16 << 20)
      XCTAssertTrue(error.description.contains("after \(error.transferred) bytes"), "\(error)")
      // What it says did get through.
      let check = AIOBuffer(count: error.transferred / 4096 * 4096)
      XCTAssertEqual(
        try context.outcome { try context.read(file, at: 0, into: check, completion: $0) },
        .success(check.count))
      XCTAssertTrue(
        check.withUnsafeBytes { memcmp($0.baseAddress!, $0.baseAddress! + 1, $0.count - 1) } == 0)
      let closed = Promise<Void>()
      file.close { closed.fulfil(()) }
      try closed.wait()
      unlink(path.string)
    }
    try context.closeAndWait()
  }

  // MARK: Statistics

  func testStatistics() throws {
    try requireKernelAIO("nothing is submitted")
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 65536)
    let queue = DispatchQueue(label: "test.loop")
    let context = try AIOContext(queueDepth: 4, queue: queue, pendingLimit: 16)
    let file = try directory.open("file", .readWrite)
    XCTAssertEqual(context.statistics, AIOStatistics())
    let page = mmap(nil, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    defer { munmap(page, 4096) }
    let elsewhere = DispatchQueue(label: "test.elsewhere")
    let done = DispatchGroup()
    try queue.sync {
      for block in 0..<8 {
        done.enter()
        let request = try context.read(
          file, at: Int64(block * 4096), into: AIOBuffer(count: 4096), queue: elsewhere
        ) { _ in done.leave() }
        if block == 7 { context.cancel(request) }
      }
      done.enter()
      try context.read(
        file, at: 0, into: UnsafeMutableRawBufferPointer(start: page, count: 4096)
      ) { _ in done.leave() }
      // An append, to an offload thread; and so is the page that is not there.
      done.enter()
      try context.write(file, at: 65536, from: AIOBuffer(count: 4096)) { _ in done.leave() }
    }
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    try context.closeAndWait()
    let statistics = context.statistics
    XCTAssertEqual(statistics.accepted, 10)
    XCTAssertEqual(statistics.succeeded, 8)
    XCTAssertEqual(statistics.failed, 1)
    XCTAssertEqual(statistics.cancelled, 1)
    XCTAssertEqual(statistics.pending, 0)
    XCTAssertEqual(statistics.inKernel, 0)
    XCTAssertEqual(statistics.offloaded, 0)
    XCTAssertEqual(statistics.submittedRequests, 7)
    XCTAssertGreaterThanOrEqual(statistics.submitCalls, 2)
    XCTAssertEqual(statistics.largestBatch, 4)
    XCTAssertGreaterThan(statistics.longestSubmit, .zero)
    // A loaded disk may refuse one of the reads, which then is offloaded.
    XCTAssertEqual(statistics.offloadSubmits, 2 + statistics.nowaitRefusals)
    XCTAssertGreaterThanOrEqual(statistics.turns, 2)
    // A loop that does not wait in the ring is woken, unless it finds a completion before it ends.
    var options = AIOContext.Options()
    options.waiting = .source
    let woken = try AIOContext(queueDepth: 4, options: options)
    XCTAssertTrue(
      try eventually {
        _ = try woken.readAndWait(file, at: 0, into: AIOBuffer(count: 4096))
        return woken.statistics.wakeups > 0
      }, "never woken")
    XCTAssertTrue((1...8).contains(statistics.queueHops), "\(statistics.queueHops)")
  }
}
