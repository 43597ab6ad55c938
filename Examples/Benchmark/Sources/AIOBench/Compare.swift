// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation

struct Compare: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Run engines in turn, several rounds, and compare.",
    discussion: """
      In each round every engine runs once, one after the other, each time in another order; what is told are medians over the \
      rounds, and medians of the ratios to the first engine within a round, so that a machine whose \
      speed drifts does not matter. Quote ratios rather than numbers, and look at `uptime` first.
      """)

  @Option(
    help: ArgumentHelp("Which, separated by commas; ratios are to the first.", valueName: "names"))
  var engines = "libaio,dispatch-aio,io-ctx,ioring,nio-threadpool,gcd-pread,dispatchio"

  @Option(help: ArgumentHelp("How many requests to keep in flight.", valueName: "list"))
  var iodepth = Depths([1, 8, 32, 128])

  @Option(help: "How often to run each.")
  var rounds = 5

  @OptionGroup var options: JobOptions

  @OptionGroup var limit: QuotaOption

  @Option(help: ArgumentHelp("Write all measurements there, too.", valueName: "path"))
  var json: String?

  func validate() throws {
    guard (1...1000).contains(rounds) else { throw ValidationError("--rounds: 1 to 1000") }
    for name in names where !Engines.names.contains(name) {
      throw ValidationError(
        "--engines: '\(name)' is none of \(Engines.names.joined(separator: ", "))")
    }
  }

  private var names: [String] { engines.split(separator: ",").map(String.init) }

  func run() throws {
    try options.prepare()
    try limit.limiting(compare)
  }

  private func compare() throws {
    var all: [Measurement] = []
    var failed: [String: String] = [:]
    for depth in iodepth.values {
      for round in 1...rounds {
        // Each follows each other one, whose writes the disk may still be busy with.
        let first = round % names.count
        for name in names[first...] + names[..<first] where failed[name] == nil {
          let job = options.job(depth: depth)
          ProgressLine.show("depth \(depth), round \(round) of \(rounds): \(name)")
          do {
            all.append(
              try Measuring.measure(name, job) { meter in
                ProgressLine.show(
                  "depth \(depth), round \(round) of \(rounds): \(name), \(meter.progress) requests"
                )
              })
          } catch let error as BenchError {
            failed[name] = error.description
          }
        }
      }
      ProgressLine.clear()
      printTable(depth, all)
    }
    for (name, reason) in failed.sorted(by: { $0.key < $1.key }) {
      print("\(name) left out: \(reason)")
    }
    if let json { try writeJSON(all, to: json) }
    guard failed.isEmpty || !all.isEmpty else { throw ExitCode.failure }
  }

  private func printTable(_ depth: Int, _ all: [Measurement]) {
    print(
      """

      depth \(depth), \(options.rw), \(options.bs), \(options.buffered ? "buffered" : "direct"), \
      medians of \(rounds) rounds
      """)
    let rows: [[String]] = Comparison.rows(all.filter { $0.depth == depth }, names).map { row in
      [
        row.engine, row.rate.rate, row.rateRatio.text(2), row.processor.text(2),
        row.processorRatio.text(2), row.latency50.text(1), row.latency999.text(1),
        row.allocations.map { $0.text(2) } ?? "–", row.wakeUps.map { $0.text(3) } ?? "–",
        row.stall.map { $0.text(0) } ?? "–",
      ]
    }
    let head = [
      "engine", "req/s", "ratio", "cpu us", "ratio", "50 % us", "99.9 % us", "allocs", "wake-ups",
      "longest submit us",
    ]
    printColumns(head, rows)
  }
}
