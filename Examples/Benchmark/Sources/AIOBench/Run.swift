// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation

struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Run one engine, and report all about it.")

  @Option(help: ArgumentHelp("Which: \(Engines.names.joined(separator: ", ")).", valueName: "name"))
  var engine = "dispatch-aio"

  @Option(help: "How many requests to keep in flight.")
  var iodepth = 32

  @Option(
    help: """
      How often to open the file, to use the descriptors in turn: whether many open files cost \
      more. For the dispatch-aio engines.
      """)
  var files = 1

  @Option(
    help: """
      How many contexts, each on a queue of its own, and each with --iodepth requests in flight. \
      For the dispatch-aio engines.
      """)
  var contexts = 1

  @OptionGroup var options: JobOptions

  @OptionGroup var limit: QuotaOption

  @Option(help: ArgumentHelp("Write the measurement there, too.", valueName: "path"))
  var json: String?

  func validate() throws {
    guard (1...65535).contains(iodepth) else { throw ValidationError("--iodepth: 1 to 65535") }
    guard (1...100_000).contains(files) else { throw ValidationError("--files: 1 to 100000") }
    guard (1...64).contains(contexts) else { throw ValidationError("--contexts: 1 to 64") }
    guard files == 1 && contexts == 1 || engine.hasPrefix("dispatch-aio") else {
      throw ValidationError("--files and --contexts are for the dispatch-aio engines")
    }
    guard Engines.names.contains(engine) else {
      throw ValidationError(
        "--engine \(engine): one of \(Engines.names.joined(separator: ", "))")
    }
  }

  func run() throws {
    try options.prepare()
    try limit.limiting(measure)
  }

  private func measure() throws {
    var job = options.job(depth: iodepth)
    (job.files, job.contexts) = (files, contexts)
    let began = Date()
    var last = (requests: 0, time: began)
    let result = try Measuring.measure(engine, job, countsCalls: true) { meter in
      let now = (requests: meter.progress, time: Date())
      let rate =
        Double(now.requests - last.requests) / now.time.timeIntervalSince(last.time)
      last = now
      let left = max(0, job.runtime - now.time.timeIntervalSince(began))
      ProgressLine.show(
        "\(engine) \(job.pattern) \(options.bs) depth \(iodepth): \(rate.rate)/s, \(left.text(1)) s left"
      )
    }
    ProgressLine.clear()
    print(
      """
      \(result.engine), \(result.pattern), \(options.bs), depth \(result.depth), \
      \(job.isDirect ? "direct" : "buffered"), \(job.file)
        throughput      \(result.requestsPerSecond.rate) requests/s, \
      \((result.requestsPerSecond * Double(job.blockSize) / 1_048_576).text(1)) MiB/s \
      (\(result.requests) in \(result.seconds.text(2)) s)
        latency         \(Measurement.percentiles.map { "\($0.name) %: \((result.latency[$0.name] ?? 0).text(1))" }.joined(separator: ", ")) us
        processor time  \(result.processorTime.text(2)) us per request: \
      \((result.userSeconds / Double(max(1, result.requests)) * 1e6).text(2)) user, \
      \((result.systemSeconds / Double(max(1, result.requests)) * 1e6).text(2)) system, all threads
      """)
    func perRequest(_ count: Int) -> String {
      (Double(count) / Double(max(1, result.requests))).text(3)
    }
    if let count = result.allocations {
      print("  allocations     \(perRequest(count)) per request")
    }
    if let count = result.systemCallsPerRequest {
      print("  system calls    \(count.text(3)) per request (counted in a run of its own)")
    }
    if let count = result.wakeUps { print("  wake-ups        \(perRequest(count)) per request") }
    if let stall = result.longestStall {
      print("  longest submit  \(stall.text(1)) us")
    }
    if job.verifies { print("  checked         \(result.wrong) blocks were wrong") }
    if let json { try writeJSON(result, to: json) }
    if result.wrong > 0 { throw ExitCode.failure }
  }
}
