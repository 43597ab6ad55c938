// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CEngines
import Foundation

struct Thresholds: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Check what a request costs, for each verb, against the thresholds in a file.",
    discussion: """
      Heap allocations, system calls and wake-ups per request, and instructions where callgrind \
      runs this command, at depths 1, 8 and 32, of requests that the kernel completes at once. \
      None of it depends on the machine's speed. Exits with 1 where something costs more.
      """)

  @Option(help: ArgumentHelp("The thresholds, as JSON.", valueName: "path"))
  var file = "Examples/Benchmark/thresholds.json"

  @Flag(help: "Write what is measured into the file as the new thresholds.")
  var update = false

  @Option(help: ArgumentHelp("How much more is allowed.", valueName: "percent"))
  var margin = 5.0

  @Option(
    help: ArgumentHelp(
      "A directory on a file system on a disk, for the verbs of the page cache.", valueName: "path")
  )
  var directory = "/var/tmp"

  @Option(help: ArgumentHelp("Only the rows whose names begin so.", valueName: "prefix"))
  var only = ""

  @Option(help: "How many requests each row makes.")
  var requests = 20_000

  @Flag(
    help: """
      Count instructions, and nothing else, by running this command once more under callgrind \
      (Debian: valgrind).
      """)
  var instructions = false

  func validate() throws {
    guard (0...1000).contains(margin) else { throw ValidationError("--margin: 0 to 1000") }
    guard (100...100_000_000).contains(requests) else {
      throw ValidationError("--requests: 100 to 100000000")
    }
  }

  func run() throws {
    if cengines_counts_instructions() != 0 {
      return try forEachRow { row, session in
        cengines_drop_instructions()
        try session.run(requests)
        cengines_note_instructions(row.name)
      }
    }
    var measured = try count()
    if update { return try CostTable.update(file, with: measured) }
    let table = try CostTable.read(file)
    var worse = table.compare(with: measured, margin: margin / 100)
    // A busy machine adds to what is counted, and never takes away.
    for _ in 0..<2 where !worse.isEmpty {
      print("worse, so once more:\n  \(worse.joined(separator: "\n  "))")
      measured.merge(try count()) { $0.least($1) }
      worse = table.compare(with: measured, margin: margin / 100)
    }
    guard worse.isEmpty else {
      for line in worse { print("worse: \(line)") }
      throw BenchError(
        """
        \(worse.count) of \(measured.count) rows cost more than \(file) allows. If that is meant, \
        write new thresholds with --update
        """)
    }
  }

  private func count() throws -> [String: Cost] {
    instructions ? try countInstructions() : try measure()
  }

  private func measure() throws -> [String: Cost] {
    var costs: [String: Cost] = [:]
    try forEachRow { row, session in
      let (wakeUps, allocations) = (Measuring.wakeUps, cengines_allocations())
      try session.run(requests)
      let count = Double(requests)
      var cost = Cost(allocations: Double(cengines_allocations() - allocations) / count)
      if !row.verb.isHandedOver {
        cost.wakeUps = Double(Measuring.wakeUps - wakeUps) / count
        cost.systemCalls = try countSystemCalls(session)
      }
      costs[row.name] = cost
      print("\(row.name.padded(20)) \(cost)")
    }
    if costs.values.allSatisfy({ $0.systemCalls == nil }) {
      print("system calls could not be counted: it needs root and /sys/kernel/tracing")
    }
    return costs
  }

  /// System calls per request; `nil` where they cannot be counted.
  private func countSystemCalls(_ session: CostSession) throws -> Double? {
    guard cengines_start_counting() == 0 else { return nil }
    defer { _ = cengines_stop_counting() }
    try session.run(requests)
    return Double(cengines_stop_counting()) / Double(requests)
  }

  private func forEachRow(_ body: (CostWorkload, CostSession) throws -> Void) throws {
    let memory = "/dev/shm/aio-bench-thresholds-\(getpid())"
    let disk = "\(directory)/aio-bench-thresholds-\(getpid())"
    defer { for path in [memory, disk] { unlink(path) } }
    let bytes = Data(count: CostWorkload.blocks * CostWorkload.blockSize)
    for path in [memory, disk] { try bytes.write(to: URL(fileURLWithPath: path)) }
    for row in CostWorkload.all where row.name.hasPrefix(only) {
      let session = try CostSession(row, row.verb.isOnDisk ? disk : memory)
      defer { session.close() }
      // So that what is made once is there.
      try session.run(max(row.depth, requests / 10))
      try body(row, session)
    }
  }

  /// Runs this command under callgrind, and reads what that has counted.
  private func countInstructions() throws -> [String: Cost] {
    let directory = FileManager.default.temporaryDirectory.appending(
      path: "aio-bench-\(getpid())", directoryHint: .isDirectory)
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: directory) }
    // Without the debug information, which older versions of valgrind cannot read, and give up.
    let program = directory.appending(path: "aio-bench").path
    try Self.run("strip", ["-g", "-o", program, "/proc/self/exe".resolved], package: "binutils")
    try Self.run(
      "valgrind",
      [
        "--quiet", "--log-file=\(directory.path)/log", "--tool=callgrind", "--fair-sched=yes",
        "--callgrind-out-file=\(directory.path)/out", program, "thresholds", "--only", only,
        "--requests", "\(requests)", "--directory", self.directory,
      ], package: "valgrind")
    var costs: [String: Cost] = [:]
    for name in try FileManager.default.contentsOfDirectory(atPath: directory.path)
    where name.hasPrefix("out.") {
      let text = try String(contentsOf: directory.appending(path: name), encoding: .utf8)
      let lines = text.split(separator: "\n")
      guard let row = lines.value(of: "desc: Trigger: Client Request: "),
        let total = lines.value(of: "totals: ").flatMap({ Double($0) })
      else { continue }
      costs[row] = Cost(instructions: total / Double(requests))
    }
    guard !costs.isEmpty else {
      throw BenchError(
        """
        callgrind counted nothing: aio-bench was built without valgrind's headers (Debian: \
        valgrind)
        """)
    }
    for row in CostWorkload.all {
      if let cost = costs[row.name] { print("\(row.name.padded(20)) \(cost)") }
    }
    return costs
  }

  private static func run(_ program: String, _ arguments: [String], package: String) throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [program] + arguments
    try process.run()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else {
      throw BenchError(
        """
        \(program) ended with \(process.terminationStatus); is it installed (Debian: \(package))?
        """)
    }
  }
}

extension String {
  fileprivate var resolved: String { URL(fileURLWithPath: self).resolvingSymlinksInPath().path }
  fileprivate func padded(_ width: Int) -> String {
    padding(toLength: max(width, count), withPad: " ", startingAt: 0)
  }
}

extension [Substring] {
  /// The rest of the first line that begins with `prefix`.
  fileprivate func value(of prefix: String) -> String? {
    first { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }
  }
}
