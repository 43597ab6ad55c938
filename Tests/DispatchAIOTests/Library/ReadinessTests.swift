// SPDX-License-Identifier: Apache-2.0

import CKernel
import Dispatch
import Foundation
import SystemPackage
import XCTest

@testable import DispatchAIO

/// Sockets and timers in the ring behave as Dispatch's do.
final class ReadinessTests: XCTestCase {
  private let loop = DispatchQueue(label: "test.loop")

  /// Two ends of a stream, non-blocking, closed with the test.
  private func pair() throws -> (Int32, Int32) {
    var ends: [Int32] = [0, 0]
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    XCTAssertEqual(socketpair(AF_UNIX, type, 0, &ends), 0)
    addTeardownBlock { [ends] in for end in ends { close(end) } }
    return (ends[0], ends[1])
  }

  private func put(_ text: String, _ fd: Int32) {
    XCTAssertEqual(write(fd, text, text.utf8.count), text.utf8.count)
  }

  /// Goal: the first source of a context is polled, also if a block of the loop makes it, after
  /// which nothing else happens.
  func testTheFirstSourceMadeOnTheLoop() throws {
    let context = try AIOContext(queueDepth: 2)
    let fired = Promise<Void>()
    let sources = Locked<[AIOTimerSource]>([])
    context.async {
      do {
        let timer = try context.makeTimerSource()
        timer.setEventHandler { fired.fulfil(()) }
        timer.schedule(deadline: .now() + .milliseconds(1))
        timer.activate()
        sources.withLock { $0.append(timer) }
      } catch {
        XCTFail("\(error)")
      }
    }
    try fired.wait()
  }

  /// Closing a context cancels its timers, those that have no deadline as well: one that was never
  /// scheduled, one that has fired, one that is not active; and those only that still exist.
  func testCloseCancelsTimersWithoutADeadline() throws {
    let context = try AIOContext(queueDepth: 2, queue: loop)
    let cancelled = Locked<[String]>([])
    func timer(_ name: String) throws -> AIOTimerSource {
      let timer = try context.makeTimerSource()
      timer.setCancelHandler { cancelled.withLock { $0.append(name) } }
      return timer
    }
    let unscheduled = try timer("unscheduled")
    unscheduled.activate()
    let single = try timer("fired")
    let fired = Promise<Void>()
    single.setEventHandler { fired.fulfil(()) }
    single.schedule(deadline: .now())
    single.activate()
    try fired.wait()
    let inactive = try timer("inactive")
    // More than are kept after they have gone.
    for _ in 0..<200 { _ = try timer("gone") }
    try context.closeAndWait()
    XCTAssertEqual(cancelled.withLock { $0.sorted() }, ["fired", "inactive", "unscheduled"])
    withExtendedLifetime([unscheduled, single, inactive]) {}
  }

  /// A descriptor that was closed under a poll, against the rule: the next poll of the number,
  /// which is another descriptor's, is answered.
  func testADescriptorThatWasClosedUnderAPoll() throws {
    try forEachWay { context, way in
      var ends: [Int32] = [0, 0]
      XCTAssertEqual(pipe(&ends), 0)
      try context.poll(ends[0], for: .readable) { _ in }
      let (mine, other) = try pair()
      // Takes the number, and the place in the table with it, but not in the set.
      XCTAssertEqual(dup2(mine, ends[0]), ends[0])
      let answer = Promise<Result<AIOPollEvents, AIOError>>()
      try context.poll(ends[0], for: .readable) { answer.fulfil($0) }
      put("x", other)
      XCTAssertEqual(try answer.wait().get(), .readable, way)
      close(ends[0])
      close(ends[1])
    }
  }

  /// Runs what a test does both with the kernel's AIO poll and without: a context without kernel
  /// AIO polls through a DispatchSource.
  private func forEachWay(_ body: (AIOContext, String) throws -> Void) throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    try body(context, "AIO poll")
    try context.closeAndWait()
    let other = try withoutAIOPoll()
    try body(other, "DispatchSource")
    try other.closeAndWait()
  }

  private func withoutAIOPoll() throws -> AIOContext {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    loop.sync { context.loop.pollsByDispatch = true }
    return context
  }

  /// Goal: the first descriptor of a context is watched also if a handler of its loop brings it,
  /// after which no turn comes by itself.
  func testTheFirstDescriptorComesFromAHandler() throws {
    try forEachWay { context, way in
      for isSource in [false, true] {
        let fresh = try AIOContext(queueDepth: 1)
        if way != "AIO poll" { fresh.queue.sync { fresh.loop.pollsByDispatch = true } }
        let (near, _) = try pair()
        let done = Promise<Void>()
        fresh.async {
          do {
            guard isSource else {
              try fresh.poll(near, for: .writable) { _ in done.fulfil(()) }
              return
            }
            let source = try fresh.makeWriteSource(fileDescriptor: near)
            source.setEventHandler {
              source.cancel()
              done.fulfil(())
            }
            source.activate()
          } catch {
            XCTFail("\(error)")
          }
        }
        try done.wait(seconds: 10)
        try fresh.closeAndWait()
      }
    }
  }

  func testASourceIsLevelTriggered() throws {
    try forEachWay { context, way in
      let (near, far) = try pair()
      let source = try context.makeReadSource(fileDescriptor: near)
      let (text, sizes, done) = (Locked(""), Locked<[UInt]>([]), Promise<Void>())
      source.setEventHandler {
        sizes.withLock { $0.append(source.data) }
        var byte: UInt8 = 0
        XCTAssertEqual(read(near, &byte, 1), 1)
        dispatchPrecondition(condition: .onQueue(context.queue))
        if text.withLock({
          $0.append(Character(UnicodeScalar(byte)))
          return $0.count == 3
        }) {
          done.fulfil(())
        }
      }
      put("abc", far)
      source.activate()
      try done.wait()
      XCTAssertEqual(text.withLock { $0 }, "abc", way)
      XCTAssertEqual(sizes.withLock { $0 }, [3, 2, 1], way)
      source.cancel()
    }
  }

  func testNothingHappensBeforeActivationNorWhileSuspended() throws {
    try forEachWay { context, way in
      let (near, far) = try pair()
      let source = try context.makeReadSource(fileDescriptor: near)
      let (count, registered) = (Locked(0), Promise<Void>())
      source.setEventHandler { [unowned source] in
        var bytes = [UInt8](repeating: 0, count: 10)
        _ = read(near, &bytes, 10)
        count.withLock { $0 += 1 }
        // No other event before it is resumed.
        source.suspend()
      }
      source.setRegistrationHandler { registered.fulfil(()) }
      put("a", far)
      try settle(context)
      XCTAssertEqual(count.withLock { $0 }, 0, way)
      source.activate()
      try registered.wait()
      XCTAssertTrue(eventually { count.withLock { $0 } == 1 }, way)
      put("b", far)
      try settle(context)
      XCTAssertEqual(count.withLock { $0 }, 1, way)
      source.resume()
      XCTAssertTrue(eventually { count.withLock { $0 } == 2 }, way)
      source.cancel()
    }
  }

  /// A source that is resumed before its activation is activated, but for what undoes a suspension.
  func testResumingBeforeActivation() throws {
    try forEachWay { context, way in
      for suspensions in 0..<3 {
        let (near, far) = try pair()
        let source = try context.makeReadSource(fileDescriptor: near)
        let delivered = Locked(false)
        source.setEventHandler { [unowned source] in
          delivered.withLock { $0 = true }
          source.cancel()
        }
        put("a", far)
        for _ in 0..<suspensions { source.suspend() }
        for _ in 0..<suspensions { source.resume() }
        try settle(context)
        XCTAssertFalse(delivered.withLock { $0 }, way)
        if suspensions == 2 { source.activate() } else { source.resume() }
        XCTAssertTrue(eventually { delivered.withLock { $0 } }, "\(way), \(suspensions)")
      }
    }
  }

  /// Turns enough for whatever would happen.
  private func settle(_ context: AIOContext) throws {
    for _ in 0..<20 {
      let done = Promise<Void>()
      context.async { done.fulfil(()) }
      try done.wait()
    }
  }

  func testOneDescriptorBothWays() throws {
    try forEachWay { context, way in
      let (near, far) = try pair()
      let reader = try context.makeReadSource(fileDescriptor: near)
      let writer = try context.makeWriteSource(fileDescriptor: near)
      assertRefused(.exists) { try context.makeReadSource(fileDescriptor: near) }
      let (readable, writable) = (Locked(0), Promise<Void>())
      reader.setEventHandler {
        var byte: UInt8 = 0
        _ = read(near, &byte, 1)
        readable.withLock { $0 += 1 }
      }
      writer.setEventHandler {
        writer.cancel()
        writable.fulfil(())
      }
      reader.activate()
      writer.activate()
      try writable.wait()
      XCTAssertEqual(readable.withLock { $0 }, 0, way)
      put("x", far)
      XCTAssertTrue(eventually { readable.withLock { $0 } == 1 }, way)
      // Its place is free.
      try context.makeWriteSource(fileDescriptor: near).cancel()
      reader.cancel()
    }
  }

  func testAHangUpIsReadability() throws {
    try forEachWay { context, way in
      let (near, far) = try pair()
      let source = try context.makeReadSource(fileDescriptor: near)
      let ended = Promise<Int>()
      source.setEventHandler {
        XCTAssertEqual(source.data, 0, way)
        var byte: UInt8 = 0
        ended.fulfil(read(near, &byte, 1))
        source.cancel()
      }
      source.activate()
      shutdown(far, Int32(SHUT_RDWR))
      XCTAssertEqual(try ended.wait(), 0, way)
    }
  }

  /// A peer that hangs up while nobody listens does not keep the loop busy.
  func testAHangUpOfASuspendedSource() throws {
    try forEachWay { context, way in
      let (near, far) = try pair()
      let source = try context.makeReadSource(fileDescriptor: near)
      let ended = Promise<Void>()
      source.setEventHandler {
        source.cancel()
        ended.fulfil(())
      }
      source.activate()
      source.suspend()
      shutdown(far, Int32(SHUT_RDWR))
      try settle(context)
      let before = context.statistics.turns
      // Within this time a loop that is kept busy has thousands of turns.
      XCTAssertFalse(eventually(within: 0.2) { context.statistics.turns > before + 20 }, way)
      source.resume()
      try ended.wait()
    }
  }

  func testCancelling() throws {
    try forEachWay { context, way in
      let (near, far) = try pair()
      let source = try context.makeReadSource(fileDescriptor: near)
      let (events, cancelled) = (Locked(0), Promise<Int>())
      source.setEventHandler { events.withLock { $0 += 1 } }
      source.setCancelHandler { cancelled.fulfil(events.withLock { $0 }) }
      source.activate()
      XCTAssertFalse(source.isCancelled)
      put("x", far)
      XCTAssertTrue(eventually { events.withLock { $0 } > 3 })
      loop.sync { source.cancel() }
      let atEnd = events.withLock { $0 }
      XCTAssertTrue(source.isCancelled)
      source.cancel()
      XCTAssertEqual(try cancelled.wait(), atEnd, way)
      try settle(context)
      XCTAssertEqual(events.withLock { $0 }, atEnd, "\(way): an event after the cancellation")
    }
  }

  func testClosingCancels() throws {
    for isDropped in [false, true] {
      let (near, far) = try pair()
      var context: AIOContext? = try AIOContext(queueDepth: 4, queue: loop)
      let cancelled = (0..<3).map { _ in Promise<Void>() }
      let polled = Promise<AIOError.Code?>()
      let sources = [
        try context!.makeReadSource(fileDescriptor: near),
        try context!.makeReadSource(fileDescriptor: far), try context!.makeTimerSource(),
      ]
      for (source, cancelled) in zip(sources, cancelled) {
        source.setCancelHandler { cancelled.fulfil(()) }
      }
      sources[0].activate()
      (sources[2] as? AIOTimerSource)?.schedule(deadline: .now() + 1000)
      sources[2].activate()
      try context!.poll(near, for: .priority) { result in
        if case .failure(let error) = result { polled.fulfil(error.code) }
      }
      if isDropped {
        context = nil
      } else {
        try context!.closeAndWait()
        assertRefused(.contextClosed) { try context!.makeReadSource(fileDescriptor: near) }
      }
      for cancelled in cancelled { try cancelled.wait() }
      XCTAssertEqual(try polled.wait(), .contextClosed)
      XCTAssertTrue(sources.allSatisfy(\.isCancelled))
    }
  }

  func testBadInput() throws {
    let directory = try temporaryDirectory()
    let path = try directory.makeFile(size: 10)
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let file = try FileDescriptor.open(path, .readOnly)
    let error = assertRefused(.unsupportedFile) {
      try context.makeReadSource(fileDescriptor: file.rawValue)
    }
    XCTAssertTrue(error?.description.contains("always ready") ?? false, "\(error as Any)")
    try file.close()
    XCTAssertEqual(
      assertRefused(.system) { try context.makeWriteSource(fileDescriptor: -1) }?.errno,
      .badFileDescriptor)
    assertRefused(.system) { try context.poll(file.rawValue, for: .readable) { _ in } }
    try context.closeAndWait()
  }

  /// A handler that is released may end the last reference to something that cancels another
  /// source.
  func testAReleasedHandlerMayCancel() throws {
    final class Owner: Sendable {
      let source: AIOSource
      init(_ source: AIOSource) { self.source = source }
      deinit { source.cancel() }
    }
    for way in ["cancelled", "replaced", "closed"] {
      let context = try AIOContext(queueDepth: 4, queue: loop)
      let (near, far) = try pair()
      let first = try context.makeReadSource(fileDescriptor: near)
      let second = try context.makeReadSource(fileDescriptor: far)
      let cancelled = Promise<Void>()
      second.setCancelHandler { cancelled.fulfil(()) }
      second.activate()
      var owner: Owner? = Owner(second)
      first.setEventHandler { [owner] in withExtendedLifetime(owner) {} }
      owner = nil
      first.activate()
      switch way {
      case "cancelled": first.cancel()
      case "replaced": first.setEventHandler(nil)
      default: break
      }
      if way != "closed" { try cancelled.wait() }
      try context.closeAndWait()
      if way == "closed" { try cancelled.wait() }
    }
  }

  // MARK: Timers

  /// A timer that nobody has any more ends while its stale entry is dropped, and what its handler
  /// holds may cancel a source.
  func testATimerThatIsGoneMayCancel() throws {
    final class Owner: Sendable {
      let source: AIOSource
      init(_ source: AIOSource) { self.source = source }
      deinit { source.cancel() }
    }
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let source = try context.makeReadSource(fileDescriptor: pair().0)
    let cancelled = Promise<Void>()
    source.setCancelHandler { cancelled.fulfil(()) }
    source.activate()
    var timer: AIOTimerSource? = try context.makeTimerSource()
    timer?.setEventHandler { [owner = Owner(source)] in withExtendedLifetime(owner) {} }
    timer?.activate()
    timer?.schedule(deadline: .now() + .milliseconds(1))
    timer?.suspend()
    timer = nil
    // Its entry's time comes before this one's.
    let fired = Promise<Void>()
    let other = try context.makeTimerSource()
    other.setEventHandler { fired.fulfil(()) }
    other.schedule(deadline: .now() + .milliseconds(2))
    other.activate()
    try fired.wait()
    try cancelled.wait()
    try context.closeAndWait()
  }

  func testTimers() throws {
    try forEachWay { context, way in
      let order = Locked<[String]>([])
      let done = Promise<Void>()
      let began = DispatchTime.now()
      func timer(_ name: String, _ milliseconds: Int) throws -> AIOTimerSource {
        let timer = try context.makeTimerSource()
        timer.schedule(deadline: began + .milliseconds(milliseconds))
        timer.setEventHandler {
          XCTAssertGreaterThanOrEqual(
            DispatchTime.now(), began + .milliseconds(milliseconds), "\(way): \(name) is early")
          XCTAssertEqual(timer.data, 1)
          order.withLock { $0.append(name) }
          if name == "last" { done.fulfil(()) }
        }
        timer.activate()
        return timer
      }
      // On the queue of the handlers, so that none runs before the last change.
      let timers = try context.queue.sync {
        let timers = [
          try timer("last", 40), try timer("first", 5), try timer("second", 15),
          try timer("never", 20), try timer("moved", 1),
        ]
        timers[3].cancel()
        timers[4].schedule(deadline: began + .milliseconds(30))
        return timers
      }
      try done.wait()
      XCTAssertEqual(order.withLock { $0 }, ["first", "second", "moved", "last"], way)
      for timer in timers { timer.cancel() }
    }
  }

  func testARepeatingTimer() throws {
    try forEachWay { context, way in
      let timer = try context.makeTimerSource()
      let (fired, done) = (Locked<UInt>(0), Promise<Void>())
      let began = DispatchTime.now()
      timer.setEventHandler { [unowned timer] in
        let count = fired.withLock {
          $0 += timer.data
          return $0
        }
        if count >= 20, !timer.isCancelled {
          timer.cancel()
          done.fulfil(())
        }
      }
      timer.schedule(deadline: began + .milliseconds(2), repeating: .milliseconds(2))
      timer.activate()
      try done.wait()
      let took = DispatchTime.now().uptimeNanoseconds - began.uptimeNanoseconds
      XCTAssertGreaterThanOrEqual(took, 40_000_000, "\(way): twenty in \(took) ns")
    }
  }

  /// A timer that was cancelled is forgotten: it wakes nobody, however often it would have fired.
  func testACancelledTimerWakesNobody() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let fired = Promise<Void>()
    let timer = try context.makeTimerSource()
    timer.setEventHandler {
      timer.cancel()
      fired.fulfil(())
    }
    timer.schedule(deadline: .now(), repeating: .milliseconds(1))
    timer.activate()
    try fired.wait()
    // The timerfd may fire once for what it was set to before.
    XCTAssertTrue(eventually { timer.isCancelled })
    try settle(context)
    let before = context.statistics.turns
    XCTAssertFalse(
      eventually(within: 0.3) { context.statistics.turns > before + 3 },
      "\(context.statistics.turns - before) turns for a timer that was cancelled")
    try context.closeAndWait()
  }

  /// What a suspended timer has missed, it tells when it is resumed.
  func testASuspendedTimer() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let timer = try context.makeTimerSource()
    let fired = Promise<UInt>()
    timer.setEventHandler { [unowned timer] in
      fired.fulfil(timer.data)
      timer.cancel()
    }
    timer.suspend()
    timer.activate()
    let began = DispatchTime.now()
    timer.schedule(deadline: began, repeating: .milliseconds(1))
    XCTAssertTrue(eventually { DispatchTime.now() > began + .milliseconds(20) })
    timer.resume()
    XCTAssertGreaterThanOrEqual(try fired.wait(), 20)
    try context.closeAndWait()
  }

  /// Goal: an event that is due, and that the handler before it suspends or schedules anew, is
  /// delivered once the timer runs, or when it falls due anew.
  /// Method: two timers that have become due before the next turn, in this order.
  func testATimerThatIsDueAndChanged() throws {
    try forEachWay { context, way in
      for isSuspended in [true, false] {
        let (first, second) = (try context.makeTimerSource(), try context.makeTimerSource())
        let (ran, fired) = (Promise<Void>(), Locked<[UInt]>([]))
        first.setEventHandler {
          if isSuspended { second.suspend() } else { second.schedule(deadline: .distantFuture) }
          ran.fulfil(())
        }
        second.setEventHandler { [unowned second] in fired.withLock { $0.append(second.data) } }
        context.queue.sync {
          let now = DispatchTime.now()
          for timer in [first, second] {
            timer.schedule(deadline: now)
            timer.activate()
          }
        }
        try ran.wait()
        try settle(context)
        XCTAssertEqual(fired.withLock { $0 }, [], way)
        if isSuspended { second.resume() } else { second.schedule(deadline: .now()) }
        XCTAssertTrue(eventually { fired.withLock { !$0.isEmpty } }, way)
        try settle(context)
        XCTAssertEqual(fired.withLock { $0 }, [1], way)
        for timer in [first, second] { timer.cancel() }
      }
    }
  }

  func testManyTimersAndReschedules() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let fired = Locked(0)
    let timers = try (0..<200).map { _ in try context.makeTimerSource() }
    for timer in timers {
      timer.setEventHandler { fired.withLock { $0 += 1 } }
      timer.activate()
    }
    var generator = SeededGenerator(seed: Seeds.one)
    for _ in 0..<20 {
      for timer in timers {
        timer.schedule(
          deadline: .now() + .milliseconds(.random(in: 1000...100_000, using: &generator)))
      }
    }
    XCTAssertEqual(fired.withLock { $0 }, 0)
    for timer in timers { timer.schedule(deadline: .now()) }
    XCTAssertTrue(eventually { fired.withLock { $0 } == 200 }, "\(Seeds.replay(Seeds.one))")
    try settle(context)
    XCTAssertEqual(fired.withLock { $0 }, 200, "one fired twice")
    try context.closeAndWait()
  }

  // MARK: Polls, blocks and hooks

  func testAPoll() throws {
    try forEachWay { context, way in
      let (near, far) = try pair()
      let writable = Promise<AIOPollEvents>()
      try context.poll(near, for: [.readable, .writable]) {
        if case .success(let events) = $0 { writable.fulfil(events) }
      }
      XCTAssertEqual(try writable.wait(), .writable, way)
      let (readable, cancelled) = (Promise<AIOPollEvents>(), Promise<AIOError.Code?>())
      try context.poll(near, for: .readable) {
        if case .success(let events) = $0 { readable.fulfil(events) }
      }
      let poll = try context.poll(near, for: .priority) {
        if case .failure(let error) = $0 { cancelled.fulfil(error.code) }
      }
      XCTAssertEqual(poll.cancel(), .cancelled, way)
      XCTAssertEqual(poll.cancel(), .alreadyCompleted, way)
      XCTAssertEqual(try cancelled.wait(), .cancelled, way)
      put("x", far)
      XCTAssertEqual(try readable.wait(), .readable, way)
    }
  }

  /// Goal: a poll that is being cancelled is at no moment neither waiting nor ended, where a
  /// context that closes would not find it.
  /// Method: no turn runs while this is a block of the queue, so that polls only become more.
  func testACancelledPollIsAlwaysSeen() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (near, _) = try pair()
    let (polls, completed) = (Sanitizer.isBuiltIn ? 5000 : 50_000, Locked(0))
    try loop.sync {
      let watching = DispatchGroup()
      for thread in 0..<4 {
        DispatchQueue(label: "test.watching.\(thread)").async(group: watching) {
          var (count, last) = (0, 0)
          while count < polls {
            count = context.loop.readiness.withLock { state in
              (state.watched[near]?.polls.isEmpty ?? true ? 0 : 1) + state.endedPolls.count
            }
            guard count >= last else { return XCTFail("\(last) polls, and then \(count)") }
            last = count
          }
        }
      }
      for _ in 0..<polls {
        let poll = try context.poll(near, for: .readable) { _ in completed.withLock { $0 += 1 } }
        XCTAssertEqual(poll.cancel(), .cancelled)
      }
      watching.wait()
    }
    try context.closeAndWait()
    XCTAssertEqual(completed.withLock { $0 }, polls)
  }

  /// Goal: a context that is closed with a poll under way ends its turns, and closes, though the
  /// descriptor is ready now and a request keeps the context open. Method: the request's completion
  /// waits for its queue; meanwhile the loop's queue has to run other blocks, in few turns.
  func testClosingWithAPollUnderWay() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 8192)
    let file = try directory.open()
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (near, far) = try pair()
    let (ended, closed) = (Promise<AIOError.Code?>(), Promise<Void>())
    try context.poll(near, for: .readable) {
      if case .failure(let error) = $0 { ended.fulfil(error.code) } else { ended.fulfil(nil) }
    }
    let slow = DispatchQueue(label: "test.slow")
    slow.suspend()
    try context.read(file, at: 0, into: AIOBuffer(count: 4096), queue: slow) { _ in }
    context.close { closed.fulfil(()) }
    XCTAssertEqual(try ended.wait(), .contextClosed)
    put("x", far)
    let turns = context.statistics.turns
    for _ in 0..<200 {
      let ran = Promise<Void>()
      loop.async { ran.fulfil(()) }
      try ran.wait()
    }
    XCTAssertLessThan(context.statistics.turns - turns, 50)
    slow.resume()
    try closed.wait()
  }

  /// Goal: an event that is nobody's does not keep the queue from its other blocks. Method: against
  /// the rule, the descriptor is closed before the poll is cancelled, and a copy of it becomes
  /// ready, which the set reports for as long as it is open.
  func testAnEventOfNobody() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    var ends: [Int32] = [0, 0]
    XCTAssertEqual(pipe(&ends), 0)
    let poll = try context.poll(ends[0], for: .readable) { _ in }
    loop.sync {}
    let copy = dup(ends[0])
    close(ends[0])
    poll.cancel()
    put("x", ends[1])
    for _ in 0..<100 {
      let ran = Promise<Void>()
      loop.async { ran.fulfil(()) }
      try ran.wait()
    }
    close(copy)
    close(ends[1])
    try context.closeAndWait()
  }

  /// Goal: who waits for something to read is not told of urgent data that a poll waits for.
  func testUrgentDataIsNotTheReaders() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (near, far) = try connectedSockets()
    let source = try context.makeReadSource(fileDescriptor: near)
    let runs = Locked<[UInt]>([])
    source.setEventHandler { [unowned source] in runs.withLock { $0.append(source.data) } }
    let registered = Promise<Void>()
    source.setRegistrationHandler { registered.fulfil(()) }
    source.activate()
    try registered.wait()
    let urgent = Promise<AIOPollEvents?>()
    try context.poll(near, for: .priority) { urgent.fulfil(try? $0.get()) }
    XCTAssertEqual(send(far, "!", 1, Int32(MSG_OOB)), 1)
    XCTAssertEqual(try urgent.wait(), .priority)
    // It would have run in the same turn.
    loop.sync {}
    XCTAssertEqual(runs.withLock { $0 }, [])
    let cancelled = Promise<Void>()
    source.setCancelHandler { cancelled.fulfil(()) }
    source.cancel()
    try cancelled.wait()
    try context.closeAndWait()
  }

  /// Two ends of a TCP connection, which urgent data needs.
  private func connectedSockets() throws -> (Int32, Int32) {
    let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    let far = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        XCTAssertEqual(bind(listener, $0, size), 0)
        XCTAssertEqual(listen(listener, 1), 0)
        XCTAssertEqual(getsockname(listener, $0, &size), 0)
        XCTAssertEqual(connect(far, $0, size), 0)
      }
    }
    let near = accept(listener, nil, nil)
    addTeardownBlock { for end in [listener, near, far] { close(end) } }
    return (near, far)
  }

  /// Goal: bits of `epoll(7)` that are none of `poll(2)` change nothing for others. Method: with
  /// EPOLLONESHOT, a source of the same descriptor would run no more.
  func testBitsThatAreNoEvents() throws {
    XCTAssertEqual(AIOPollEvents(rawValue: 1 << 30 | 1), .readable)
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (near, far) = try pair()
    let source = try context.makeReadSource(fileDescriptor: near)
    let runs = Locked(0)
    source.setEventHandler { runs.withLock { $0 += 1 } }
    source.activate()
    try context.poll(near, for: AIOPollEvents(rawValue: 1 << 30 | 2)) { _ in }
    put("x", far)
    XCTAssertTrue(eventually { runs.withLock { $0 } > 2 })
    source.cancel()
    try context.closeAndWait()
  }

  /// A registration handler that is set after the source has been activated runs at once, as
  /// Dispatch's does.
  func testALateRegistrationHandler() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (near, _) = try pair()
    let source = try context.makeReadSource(fileDescriptor: near)
    source.activate()
    let (first, second) = (Promise<Void>(), Promise<Void>())
    source.setRegistrationHandler { [loop] in
      dispatchPrecondition(condition: .onQueue(loop))
      first.fulfil(())
    }
    try first.wait()
    source.setRegistrationHandler { second.fulfil(()) }
    try second.wait()
    source.cancel()
    source.setRegistrationHandler { XCTFail("it was cancelled before") }
    try context.closeAndWait()
  }

  func testAPollOfATask() async throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (near, far) = try pair()
    let writable = try await context.poll(near, for: .writable)
    XCTAssertEqual(writable, .writable)
    let task = Task { try await context.poll(near, for: .readable) }
    put("x", far)
    let readable = try await task.value
    XCTAssertEqual(readable, .readable)
    let cancelled = Task { try await context.poll(near, for: .priority) }
    cancelled.cancel()
    do {
      _ = try await cancelled.value
      XCTFail("not cancelled")
    } catch {
      XCTAssertEqual((error as? AIOError)?.code, .cancelled)
    }
    await context.close()
  }

  /// What a block held is released when the block has run, not when the next one arrives.
  func testABlockIsReleasedOnceItHasRun() throws {
    final class Held: Sendable {}
    let context = try AIOContext(queueDepth: 4, queue: loop)
    var held: Held? = Held()
    weak let witness = held
    let ran = Promise<Void>()
    context.async { [held] in withExtendedLifetime(held) { ran.fulfil(()) } }
    held = nil
    try ran.wait()
    XCTAssertTrue(eventually(within: 5) { witness == nil })
    try context.closeAndWait()
  }

  func testBlocksRunInTheirOrder() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let order = Locked<[Int]>([])
    let done = DispatchGroup()
    for number in 0..<2000 {
      done.enter()
      context.async {
        dispatchPrecondition(condition: .onQueue(context.queue))
        order.withLock { $0.append(number) }
        done.leave()
      }
    }
    XCTAssertEqual(done.wait(timeout: .now() + 30), .success)
    XCTAssertEqual(order.withLock { $0 }, Array(0..<2000))
    try context.closeAndWait()
    // After it has closed, too.
    let late = Promise<Void>()
    context.async { late.fulfil(()) }
    try late.wait()
  }

  /// A hook runs once, behind the handlers of its turn and before what they asked for goes down.
  func testBeforeSubmit() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 4096)
    let file = try directory.open("file", .readOnly)
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (log, done) = (Locked<[String]>([]), Promise<Void>())
    context.async {
      context.beforeSubmit {
        let calls = context.loop.engine.pointee.counts.submitCalls
        log.withLock { $0.append("hook, \(calls) calls") }
      }
      do {
        try context.read(file, at: 0, into: AIOBuffer(count: 512)) { _ in
          log.withLock { $0.append("read") }
          done.fulfil(())
        }
      } catch {
        XCTFail("\(error)")
      }
      log.withLock { $0.append("handler") }
    }
    try done.wait()
    XCTAssertEqual(log.withLock { $0 }, ["handler", "hook, 0 calls", "read"])
    try settle(context)
    XCTAssertEqual(log.withLock { $0.count }, 3, "the hook ran twice")
    // Once it has closed, too.
    let late = Promise<Void>()
    context.close { context.beforeSubmit { late.fulfil(()) } }
    try late.wait()
  }

  /// A hook that asks for another: that runs, too, also where nothing else happens, and the context
  /// closes only after it.
  func testBeforeSubmitInAHook() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (ran, done) = (Locked(0), Promise<Void>())
    @Sendable func hook() {
      let count = ran.withLock {
        $0 += 1
        return $0
      }
      if count == 500 { done.fulfil(()) } else { context.beforeSubmit(hook) }
    }
    loop.async { context.beforeSubmit(hook) }
    try done.wait(seconds: 10)
    XCTAssertEqual(ran.withLock { $0 }, 500)
    try context.closeAndWait()
  }

  // MARK: In bulk

  /// Thousands of sources that are idle take no processor time.
  func testIdleSourcesCostNothing() throws {
    var limit = rlimit()
    getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    addTeardownBlock { [limit] in
      var limit = limit
      setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }
    limit.rlim_cur = limit.rlim_max
    setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    let count = min(5000, (Int(limit.rlim_cur) - 200) / 2)
    let context = try AIOContext(queueDepth: 4, queue: loop)
    var sources: [AIOSource] = []
    for _ in 0..<count {
      var ends: [Int32] = [0, 0]
      guard pipe(&ends) == 0 else { break }
      let (reading, writing) = (ends[0], ends[1])
      let source = try context.makeReadSource(fileDescriptor: reading)
      source.setCancelHandler {
        close(reading)
        close(writing)
      }
      source.activate()
      sources.append(source)
    }
    try settle(context)
    let before = context.statistics.turns
    XCTAssertFalse(eventually(within: 0.3) { context.statistics.turns > before + 2 })
    try context.closeAndWait()
    XCTAssertTrue(sources.allSatisfy(\.isCancelled))
  }

  /// Sources are made, used and cancelled by several threads; nothing is lost, and no event comes
  /// after a cancellation on the queue.
  func testSourcesThatChurn() throws {
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let total = 4 * 1000
    let (handled, closed) = (Locked(0), DispatchGroup())
    for _ in 0..<total { closed.enter() }
    onThreads(4) { _ in
      for _ in 0..<(total / 4) {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0, let source = try? context.makeReadSource(fileDescriptor: ends[0])
        else { return XCTFail("no pipe, or no source") }
        let (reading, writing) = (ends[0], ends[1])
        source.setEventHandler { [unowned source] in
          XCTAssertFalse(source.isCancelled)
          handled.withLock { $0 += 1 }
          source.cancel()
        }
        source.setCancelHandler {
          close(reading)
          close(writing)
          closed.leave()
        }
        source.activate()
        XCTAssertEqual(write(writing, "x", 1), 1)
      }
    }
    XCTAssertEqual(closed.wait(timeout: .now() + 60), .success)
    XCTAssertEqual(handled.withLock { $0 }, total)
    try context.closeAndWait()
  }

  /// Sockets and the disk in one ring: each answer of the disk goes to a socket, whose readiness
  /// brings the next request.
  func testSocketsBesideTheDisk() throws {
    let directory = try temporaryDirectory()
    _ = try directory.makeFile(size: 1 << 20)
    let file = try directory.open("file", .readOnly)
    let context = try AIOContext(queueDepth: 4, queue: loop)
    let (near, far) = try pair()
    let done = Promise<Int>()
    let count = Locked(0)
    let source = try context.makeReadSource(fileDescriptor: near)
    source.setEventHandler {
      var byte: UInt8 = 0
      guard read(near, &byte, 1) == 1 else { return }
      do {
        try context.read(file, at: 4096 * Int64(byte), into: AIOBuffer(count: 4096)) { result in
          XCTAssertEqual(result, .success(4096))
          let number = count.withLock {
            $0 += 1
            return $0
          }
          if number == 500 { return done.fulfil(number) }
          var next = UInt8(truncatingIfNeeded: number)
          XCTAssertEqual(write(far, &next, 1), 1)
        }
      } catch {
        XCTFail("\(error)")
      }
    }
    source.activate()
    put("a", far)
    XCTAssertEqual(try done.wait(), 500)
    if context.usesKernelAIO {
      XCTAssertGreaterThan(context.statistics.waitHits, 50, "it never slept in the ring")
    } else {
      XCTAssertEqual(context.statistics.waits, 0, "it waited in a ring that it does not have")
    }
    try context.closeAndWait()
  }
}
