// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CEngines
import Dispatch
import DispatchAIO
import Foundation
import Histogram
import SystemPackage

struct Stall: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "How long does an append keep the loop?",
    discussion: """
      A timer of 1 ms on the loop's queue, beside 4 KiB appends to a file without room reserved, \
      with an fdatasync always in flight. In turn: this library, and the same loop submitting \
      plainly, as other users of Linux AIO do. Told are the longest io_submit on the loop, how late \
      the timer was, and the appends per second.
      """)

  @Option(help: ArgumentHelp("A file to make, and to remove.", valueName: "path"))
  var file: String

  @Option(help: ArgumentHelp("For how long, each run.", valueName: "seconds"))
  var runtime = 10.0

  @Option(help: "How many appends to keep in flight.")
  var iodepth = 4

  @Option(help: "How often to run each.")
  var rounds = 3

  func validate() throws {
    try require("iodepth", iodepth, 1...4096)
    try require("rounds", rounds, 1...1000)
    try require("runtime", runtime, 0.001...86400)
  }

  func run() throws {
    var results: [String: [Result]] = [:]
    for round in 1...rounds {
      for (name, isPlain) in [("dispatch-aio", false), ("plain", true)] {
        ProgressLine.show("round \(round) of \(rounds): \(name)")
        results[name, default: []].append(try Loop(self, isPlain: isPlain).run())
      }
    }
    ProgressLine.clear()
    print(
      """
      4 KiB appends, \(iodepth) in flight, an fdatasync always in flight, \(runtime.text(0)) s, \
      \(rounds) rounds; medians, and the worst of all rounds
      loop          appends/s  longest submit us  timer late by us: 50 %   99.9 %    worst
      """)
    for name in ["dispatch-aio", "plain"] {
      let all = results[name] ?? []
      let rate = median(all.map(\.rate)).rate
      let submit = all.map(\.longestSubmit).max() ?? 0
      print(
        name.padding(toLength: 12, withPad: " ", startingAt: 0),
        pad(rate, 10), pad(submit.text(0), 18), pad(median(all.map(\.late50)).text(0), 23),
        pad(median(all.map(\.late999)).text(0), 8),
        pad((all.map(\.lateWorst).max() ?? 0).text(0), 8))
    }
    let ratios = zip(results["dispatch-aio"] ?? [], results["plain"] ?? []).map {
      $0.rate / $1.rate
    }
    print(
      "appends of the first beside the second: \(median(ratios).text(2)) (median of the rounds)")
  }

  private func pad(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
  }

  struct Result {
    var rate: Double
    /// The longest submission on the loop, in microseconds. The others are in microseconds, too.
    var longestSubmit: Double
    var late50: Double
    var late999: Double
    var lateWorst: Double
  }

  /// - Safety: `@unchecked Sendable` because it is confined to its queue.
  private final class Loop: @unchecked Sendable {
    private let settings: Stall
    private let queue = DispatchQueue(label: "aio-bench.stall")
    private let context: AIOContext
    private let file: AIOFile
    private let done = DispatchSemaphore(value: 0)
    private let buffer = AIOBuffer(count: 4096)
    private var offset: Int64 = 0
    private var appended = 0
    private var inFlight = 0
    private var deadline: UInt64 = 0
    private var failure: (any Error)?
    private var lateness = Histogram<UInt64>(
      lowestDiscernibleValue: 1, highestTrackableValue: 1 << 34,
      numberOfSignificantValueDigits: .three)

    init(_ settings: Stall, isPlain: Bool) throws {
      self.settings = settings
      var options = AIOContext.Options()
      options.submission = isPlain ? .inline : .nonblocking
      context = try AIOContext(queueDepth: settings.iodepth * 2 + 2, queue: queue, options: options)
      file = try AIOFile.open(
        FilePath(settings.file), .readWrite, options: [.create, .truncate])
    }

    func run() throws -> Result {
      // Scheduled anew each time, a millisecond ahead: it fires when the queue is free for it, and
      // nothing is coalesced.
      let timer = DispatchSource.makeTimerSource(flags: .strict, queue: queue)
      nonisolated(unsafe) var due = DispatchTime.now()  // on the queue
      timer.setEventHandler { [self] in
        let now = DispatchTime.now()
        lateness.record(max(1, now.uptimeNanoseconds &- due.uptimeNanoseconds))
        due = .now() + .milliseconds(1)
        timer.schedule(deadline: due, leeway: .nanoseconds(0))
      }
      due = .now() + .milliseconds(1)
      timer.schedule(deadline: due, leeway: .nanoseconds(0))
      timer.activate()
      let began = cengines_now()
      queue.async { [self] in
        deadline = cengines_now() + UInt64(settings.runtime * 1e9)
        for _ in 0..<settings.iodepth { append() }
        sync()
      }
      done.wait()
      let seconds = Double(cengines_now() - began) / 1e9
      queue.sync { timer.cancel() }
      let closed = DispatchSemaphore(value: 0)
      context.close { closed.signal() }
      closed.wait()
      file.close()
      unlink(settings.file)
      if let failure { throw failure }
      func late(_ percentile: Double) -> Double {
        Double(lateness.valueAtPercentile(percentile)) / 1000
      }
      return Result(
        rate: Double(appended) / seconds,
        longestSubmit: context.statistics.longestSubmit / .microseconds(1), late50: late(50),
        late999: late(99.9), lateWorst: late(100))
    }

    private func append() {
      inFlight += 1
      do {
        try context.write(file, at: offset, from: buffer) { [self] result in
          if case .failure(let error) = result { failure = error }
          appended += 1
          finished(then: append)
        }
        offset += 4096
      } catch {
        failure = error
        finished(then: {})
      }
    }

    private func sync() {
      inFlight += 1
      do {
        try context.fdatasync(file) { [self] result in
          if case .failure(let error) = result { failure = error }
          finished(then: sync)
        }
      } catch {
        failure = error
        finished(then: {})
      }
    }

    private func finished(then next: () -> Void) {
      inFlight -= 1
      if failure == nil && cengines_now() < deadline { return next() }
      if inFlight == 0 { done.signal() }
    }
  }
}
