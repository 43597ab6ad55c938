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
      inline, as other users of Linux AIO do. With one in flight also c-offload, two threads in C \
      that do nothing but hand each append over and back, without the timer: the least that an \
      append costs that does not stop its loop. Told are the appends per second, the processor time of \
      all threads for each, the longest io_submit on the loop, and how late the timer was.
      """)

  @Option(help: ArgumentHelp("A file to make, and to remove.", valueName: "path"))
  var file: String

  @Option(help: ArgumentHelp("For how long, each run.", valueName: "seconds"))
  var runtime = 10.0

  @Option(help: ArgumentHelp("How many appends to keep in flight.", valueName: "list"))
  var iodepth = Depths([1, 4, 32])

  @Option(help: "How often to run each.")
  var rounds = 3

  @OptionGroup var limit: QuotaOption

  func validate() throws {
    for depth in iodepth.values { try require("iodepth", depth, 1...4096) }
    try require("rounds", rounds, 1...1000)
    try require("runtime", runtime, 0.001...86400)
  }

  func run() throws { try limit.limiting(compare) }

  private func compare() throws {
    for depth in iodepth.values {
      var results: [String: [Result]] = [:]
      for round in 1...rounds {
        for (name, isInline) in [("dispatch-aio", false), ("inline", true)] {
          ProgressLine.show("\(depth) in flight, round \(round) of \(rounds): \(name)")
          results[name, default: []].append(try Loop(self, depth, isInline: isInline).run())
        }
        if depth == 1 { results["c-offload", default: []].append(try offloadInC()) }
      }
      ProgressLine.clear()
      printTable(depth, results)
    }
  }

  private func printTable(_ depth: Int, _ results: [String: [Result]]) {
    print(
      """
      4 KiB appends, \(depth) in flight, an fdatasync always in flight, \(runtime.text(1)) s, \
      \(rounds) rounds; medians, and the worst of all rounds
      loop          appends/s  cpu us  longest submit us  timer late by us: 50 %   99.9 %    worst
      """)
    for name in ["dispatch-aio", "inline", "c-offload"] {
      guard let all = results[name] else { continue }
      func told(_ value: Double, _ width: Int) -> String {
        pad(value.isNaN ? "-" : value.text(0), width)
      }
      print(
        name.padding(toLength: 12, withPad: " ", startingAt: 0),
        pad(median(all.map(\.rate)).rate, 10), pad(median(all.map(\.processorTime)).text(1), 7),
        told(all.map(\.longestSubmit).max() ?? 0, 18),
        told(median(all.map(\.late50)), 23), told(median(all.map(\.late999)), 8),
        told(all.map(\.lateWorst).max() ?? 0, 8))
    }
    for other in ["inline", "c-offload"] {
      guard let others = results[other] else { continue }
      func ratio(_ what: KeyPath<Result, Double>) -> String {
        let pairs = zip(results["dispatch-aio"] ?? [], others)
        return median(pairs.map { $0[keyPath: what] / $1[keyPath: what] }).text(2)
      }
      print(
        """
        dispatch-aio beside \(other): \(ratio(\.rate)) of its appends, at \
        \(ratio(\.processorTime)) of its processor time for each (medians of the rounds)
        """)
    }
    print()
  }

  /// Appends as the offload pool does, in C; see `cengines_append_offloaded`.
  private func offloadInC() throws -> Result {
    let descriptor = cengines_open(file, 1, 1, 1)
    guard descriptor >= 0 else {
      throw BenchError("\(file): \(String(cString: strerror(-descriptor)))")
    }
    defer {
      close(descriptor)
      unlink(file)
    }
    var appends: UInt64 = 0
    let (began, spent) = (cengines_now(), Loop.processorSeconds())
    let error = cengines_append_offloaded(descriptor, UInt64(runtime * 1e9), &appends)
    guard error == 0 else { throw BenchError("\(file): \(String(cString: strerror(error)))") }
    let (seconds, used) = (Double(cengines_now() - began) / 1e9, Loop.processorSeconds() - spent)
    return Result(
      rate: Double(appends) / seconds, processorTime: used * 1e6 / Double(max(1, appends)),
      longestSubmit: .nan, late50: .nan, late999: .nan, lateWorst: .nan)
  }

  private func pad(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
  }

  struct Result {
    var rate: Double
    /// Of all threads, user and system, for each append, in microseconds.
    var processorTime: Double
    /// The longest submission on the loop, in microseconds. The others are so, too; NaN
    /// where there is no loop with a timer.
    var longestSubmit: Double
    var late50: Double
    var late999: Double
    var lateWorst: Double
  }

  /// - Safety: `@unchecked Sendable` because it is confined to its queue.
  private final class Loop: @unchecked Sendable {
    private let settings: Stall
    private let depth: Int
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

    init(_ settings: Stall, _ depth: Int, isInline: Bool) throws {
      self.settings = settings
      self.depth = depth
      var options = AIOContext.Options()
      options.submission = isInline ? .inline : .nonblocking
      context = try AIOContext(queueDepth: depth * 2 + 2, queue: queue, options: options)
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
      let (began, spent) = (cengines_now(), Self.processorSeconds())
      queue.async { [self] in
        deadline = cengines_now() + UInt64(settings.runtime * 1e9)
        for _ in 0..<depth { append() }
        sync()
      }
      done.wait()
      let seconds = Double(cengines_now() - began) / 1e9
      let spentAtEnd = Self.processorSeconds()
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
        processorTime: (spentAtEnd - spent) * 1e6 / Double(max(1, appended)),
        longestSubmit: context.statistics.longestSubmit / .microseconds(1), late50: late(50),
        late999: late(99.9), lateWorst: late(100))
    }

    /// What all threads have used, in the kernel too.
    static func processorSeconds() -> Double {
      var usage = rusage()
      getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
      return [usage.ru_utime, usage.ru_stime].reduce(0) {
        $0 + Double($1.tv_sec) + Double($1.tv_usec) / 1e6
      }
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
