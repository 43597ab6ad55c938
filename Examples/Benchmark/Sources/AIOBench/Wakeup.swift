// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Dispatch
import DispatchAIO
import Foundation
import Histogram

struct Wakeup: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "How long from a write to a socket until the source's handler runs?",
    discussion: """
      Another thread writes a byte to a socket, and waits until the handler of the socket's source \
      has read it, over and over. In turn: a source of this library's context, once with its usual \
      waiting and once with none (waiting: .source), and a DispatchSource. With a pause the loop is \
      idle each time, as in a server without work; without one it is woken again at once. Told are \
      the times of all rounds, the processor time of all threads for each wake-up, and the medians \
      of the ratios within a round.
      """)

  @Option(help: ArgumentHelp("For how long, each run.", valueName: "seconds"))
  var runtime = 1.0

  @Option(
    help: ArgumentHelp("The pauses before a write, in microseconds.", valueName: "list"))
  var pause = Depths([0, 2000])

  @Option(help: "How often to run each.")
  var rounds = 5

  func validate() throws {
    for pause in pause.values { try require("pause", pause, 0...1_000_000) }
    try require("rounds", rounds, 1...1000)
    try require("runtime", runtime, 0.001...3600)
  }

  func run() throws {
    for pause in pause.values {
      var results: [Kind: [Result]] = [:]
      for round in 1...rounds {
        // In another order each time.
        let kinds = Kind.allCases
        for kind in round % 2 == 0 ? kinds.reversed() : kinds {
          ProgressLine.show("pause of \(pause) us, round \(round) of \(rounds): \(kind.rawValue)")
          results[kind, default: []].append(try Echo(kind).run(pause: pause, seconds: runtime))
        }
      }
      ProgressLine.clear()
      printTable(pause, results)
    }
  }

  private func printTable(_ pause: Int, _ results: [Kind: [Result]]) {
    print(
      """
      a pause of \(pause) us before each write, \(runtime.text(1)) s, \(rounds) rounds; medians, \
      times in microseconds
      source              median    99 %   99.9 %   cpu us   median to dispatch's  99 %   cpu
      """)
    for kind in Kind.allCases {
      let all = results[kind] ?? []
      func middle(_ what: KeyPath<Result, Double>) -> Double {
        median(all.map { $0[keyPath: what] })
      }
      func ratio(_ what: KeyPath<Result, Double>) -> String {
        let pairs = zip(all, results[.dispatch] ?? [])
        return median(pairs.map { $0[keyPath: what] / $1[keyPath: what] }).text(2)
      }
      print(
        kind.rawValue.padding(toLength: 18, withPad: " ", startingAt: 0),
        pad(middle(\.median).text(1), 7), pad(middle(\.late99).text(1), 7),
        pad(middle(\.late999).text(1), 8), pad(middle(\.processorTime).text(1), 8),
        pad(ratio(\.median), 22), pad(ratio(\.late99), 5), pad(ratio(\.processorTime), 5))
    }
    print()
  }

  private func pad(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
  }

  enum Kind: String, CaseIterable {
    case aio = "aio"
    case withoutWaiting = "aio, no waiting"
    case dispatch = "dispatch"
  }

  /// Times in microseconds.
  struct Result {
    var median: Double
    var late99: Double
    var late999: Double
    /// Of all threads, user and system, for each wake-up.
    var processorTime: Double
  }

  /// A socket, its source, and the thread that writes.
  ///
  /// - Safety: `@unchecked Sendable` because the time that is written before a byte is sent is read
  ///   after it was received, and the histogram is touched by the handler only, while the other
  ///   thread waits for it.
  private final class Echo: @unchecked Sendable {
    private let (near, far): (Int32, Int32)
    private let queue = DispatchQueue(label: "aio-bench.wakeup")
    private var context: AIOContext?
    private var source: AIOSource?
    private var dispatchSource: (any DispatchSourceRead)?
    private let handled = DispatchSemaphore(value: 0)
    private var sent: UInt64 = 0
    private var isWarm = false
    private var times = Histogram<UInt64>(
      lowestDiscernibleValue: 1, highestTrackableValue: 1 << 34,
      numberOfSignificantValueDigits: .three)

    init(_ kind: Kind) throws {
      var ends: [Int32] = [0, 0]
      guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else {
        throw POSIXError(.EMFILE)
      }
      (near, far) = (ends[0], ends[1])
      switch kind {
      case .aio, .withoutWaiting:
        var options = AIOContext.Options()
        if kind == .withoutWaiting { options.waiting = .source }
        let context = try AIOContext(queueDepth: 4, queue: queue, options: options)
        let source = try context.makeReadSource(fileDescriptor: near)
        source.setEventHandler { [self] in handle() }
        source.activate()
        (self.context, self.source) = (context, source)
      case .dispatch:
        let source = DispatchSource.makeReadSource(fileDescriptor: near, queue: queue)
        source.setEventHandler { @Sendable [self] in handle() }
        source.activate()
        dispatchSource = source
      }
    }

    private func handle() {
      let now = DispatchTime.now().uptimeNanoseconds
      var byte: UInt8 = 0
      guard read(near, &byte, 1) == 1 else { return }
      if isWarm { times.record(max(1, now - sent)) }
      handled.signal()
    }

    func run(pause: Int, seconds: Double) throws -> Result {
      for _ in 0..<100 { wake(pause: pause) }
      isWarm = true
      let (began, meter) = (DispatchTime.now().uptimeNanoseconds, processorTime())
      var count = 0
      while Double(DispatchTime.now().uptimeNanoseconds - began) < seconds * 1e9 {
        wake(pause: pause)
        count += 1
      }
      let used = processorTime() - meter
      close()
      func time(_ percentile: Double) -> Double {
        Double(times.valueAtPercentile(percentile)) / 1000
      }
      return Result(
        median: time(50), late99: time(99), late999: time(99.9),
        processorTime: used * 1e6 / Double(count))
    }

    private func wake(pause: Int) {
      if pause > 0 { usleep(UInt32(pause)) }
      sent = DispatchTime.now().uptimeNanoseconds
      _ = write(far, "x", 1)
      handled.wait()
    }

    private func close() {
      let closed = DispatchSemaphore(value: 0)
      source?.setCancelHandler { closed.signal() }
      dispatchSource?.setCancelHandler { @Sendable in closed.signal() }
      source?.cancel()
      dispatchSource?.cancel()
      closed.wait()
      Glibc.close(near)
      Glibc.close(far)
      // The handler holds this object.
      (source, dispatchSource) = (nil, nil)
      context?.close { closed.signal() }
      if context != nil { closed.wait() }
    }

    /// The processor time of all threads, user and system, in seconds.
    private func processorTime() -> Double {
      var time = timespec()
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
      return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }
  }
}
