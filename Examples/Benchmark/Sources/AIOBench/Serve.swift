// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CServers
import Foundation
import Histogram

struct Serve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Compare echo-to-disk with Redis and with a plain server in C.",
    discussion: """
      Starts the servers in turn, in rounds: echo-to-disk, Redis with `appendonly yes` and \
      `appendfsync always`, and a server in C with a thread per connection, which writes each \
      message with O_DIRECT and syncs it before it answers. The load is the same program for all: \
      each connection sends a message, waits until the server says that it is durable, and sends \
      the next. Told are medians over the rounds, and medians of the ratios within a round. \
      Processor time is the server's; `machine` is everything that the machine did meanwhile, the \
      load and the kernel's own threads included.

      In favour of the others: Redis does not rewrite its file meanwhile, and the C server writes \
      the same zeroed file over and over, so that it never has to make room.
      """)

  @Option(
    help: ArgumentHelp(
      "Where the servers keep their data, on the disk in question; emptied after each run.",
      valueName: "path"))
  var directory: String

  @Option(help: ArgumentHelp("How many connections at once.", valueName: "list"))
  var connections = Depths([1, 8, 50])

  @Option(help: ArgumentHelp("The size of a message.", valueName: "bytes"))
  var size = Size(4096)

  @Option(help: ArgumentHelp("For how long, each run.", valueName: "seconds"))
  var runtime = 5.0

  @Option(help: "How often to run each.")
  var rounds = 5

  @Option(
    help: ArgumentHelp("Which: \(ServerKind.names), separated by commas.", valueName: "names"))
  var servers = ServerKind.names

  @Option(
    help: ArgumentHelp(
      "The daemon; the release build of the package that this one is in, unless given.",
      valueName: "path"))
  var echoToDisk: String?

  @Option(
    parsing: .unconditionalSingleValue,
    help: ArgumentHelp(
      "Measure echo-to-disk once more with these options, as `--variant \"--sync none\"`; any number.",
      valueName: "options"))
  var variant: [String] = []

  @Option(
    help: ArgumentHelp(
      "Another build of the daemon, as of an older version, to measure as `before`.",
      valueName: "path"))
  var before: String?

  @Option(help: ArgumentHelp("Write all measurements there, too.", valueName: "path"))
  var json: String?

  func validate() throws {
    guard size.bytes % 512 == 0, size.bytes <= 1 << 20 else {
      throw ValidationError("--size \(size): a multiple of 512, up to 1M")
    }
    guard runtime > 0, runtime <= 3600 else { throw ValidationError("--runtime: 0 to 3600") }
    guard (1...1000).contains(rounds) else { throw ValidationError("--rounds: 1 to 1000") }
    guard connections.values.allSatisfy({ $0 <= 1000 }) else {
      throw ValidationError("--connections: 1 to 1000")
    }
    for name in servers.split(separator: ",") where ServerKind(rawValue: String(name)) == nil {
      throw ValidationError("--servers: '\(name)' is none of \(ServerKind.names)")
    }
  }

  /// The measurement of one run of one server.
  struct Result: Codable {
    var server: String
    var connections: Int
    var messages: Int
    var seconds: Double
    /// The latency in microseconds, by percentile: 50, 99, 99.9.
    var latency: [String: Double]
    /// The processor time of the server's process.
    var userSeconds: Double
    var systemSeconds: Double
    /// The processor time of the whole machine.
    var machineSeconds: Double
    /// The number of wrong answers.
    var wrong: Int

    var rate: Double { Double(messages) / seconds }
    /// The server's processor time per message, in microseconds.
    var processorTime: Double { (userSeconds + systemSeconds) / Double(max(1, messages)) * 1e6 }
    var machineTime: Double { machineSeconds / Double(max(1, messages)) * 1e6 }
  }

  func run() throws {
    let candidates =
      servers.split(separator: ",").compactMap { ServerKind(rawValue: String($0)) }
      .map { Candidate(kind: $0) }
      + (before.map { [Candidate(kind: .echoToDisk, before: $0)] } ?? [])
      + variant.map {
        Candidate(kind: .echoToDisk, options: $0.split(separator: " ").map(String.init))
      }
    let directory = URL(fileURLWithPath: directory)
      .appendingPathComponent("aio-bench-serve-\(getpid())").path
    try FileManager.default.createDirectory(
      atPath: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let interruption = Interruption(directory)
    defer { interruption.end() }
    let samples = UnsafeMutableBufferPointer<UInt32>.allocate(capacity: 16 << 20)
    // Touched now rather than while time is measured.
    samples.initialize(repeating: 0)
    defer { samples.deallocate() }

    var all: [Result] = []
    var failed: [String: String] = [:]
    for connections in connections.values {
      for round in 1...rounds {
        for candidate in candidates where failed[candidate.name] == nil {
          ProgressLine.show(
            "\(connections) connections, round \(round) of \(rounds): \(candidate.name)")
          do {
            let result = try measure(candidate, connections, directory, samples, interruption)
            if result.wrong > 0 { failed[candidate.name] = "\(result.wrong) answers were wrong" }
            all.append(result)
          } catch let error as BenchError {
            failed[candidate.name] = error.description
          }
        }
      }
      ProgressLine.clear()
      printTable(
        connections, all.filter { $0.connections == connections }, candidates.map(\.name))
    }
    for (name, reason) in failed.sorted(by: { $0.key < $1.key }) {
      print("\(name) left out: \(reason)")
    }
    if let json { try writeJSON(all, to: json) }
    guard failed.isEmpty else { throw ExitCode.failure }
  }

  private func measure(
    _ candidate: Candidate, _ connections: Int, _ directory: String,
    _ samples: UnsafeMutableBufferPointer<UInt32>, _ interruption: Interruption
  ) throws -> Result {
    let server = try RunningServer(
      candidate, directory: "\(directory)/data", messageSize: size.bytes, echoToDisk: echoToDisk,
      interruption)
    defer { server.stop() }
    var error: Int32 = 0
    guard
      let load = cservers_open(
        server.port, Int32(connections), UInt32(size.bytes),
        Int32(candidate.kind == .redis ? cservers_redis : cservers_echo), &error)
    else { throw BenchError("cannot connect: \(String(cString: strerror(error)))") }
    defer { cservers_close(load) }
    func run(_ seconds: Double) throws -> cservers_result {
      var result = cservers_result()
      cservers_run(
        load, UInt64(seconds * 1e9), samples.baseAddress, UInt64(samples.count), &result)
      guard result.error == 0 else {
        throw BenchError(
          "the load: \(String(cString: strerror(result.error))); \(server.lastWords)")
      }
      return result
    }
    // A first run, for what happens only once.
    _ = try run(min(1, runtime / 4))
    let before = (server: server.processorSeconds, machine: machineSeconds())
    let result = try run(runtime)
    let after = (server: server.processorSeconds, machine: machineSeconds())
    var histogram = Histogram<UInt64>(
      lowestDiscernibleValue: 1, highestTrackableValue: 1 << 33,
      numberOfSignificantValueDigits: .three)
    for sample in samples.prefix(Int(result.samples)) { histogram.record(UInt64(max(1, sample))) }
    var latency: [String: Double] = [:]
    for (name, value) in [("50", 50), ("99", 99), ("99.9", 99.9)] {
      latency[name] = Double(histogram.valueAtPercentile(value)) / 1000
    }
    return Result(
      server: candidate.name, connections: connections, messages: Int(result.messages),
      seconds: Double(result.elapsed) / 1e9, latency: latency,
      userSeconds: after.server.user - before.server.user,
      systemSeconds: after.server.system - before.server.system,
      machineSeconds: after.machine - before.machine, wrong: Int(result.wrong))
  }

  /// The processor time of all processors since the start of the machine, in seconds.
  private func machineSeconds() -> Double {
    guard let text = try? String(contentsOfFile: "/proc/stat", encoding: .utf8),
      let line = text.split(separator: "\n").first
    else { return .nan }
    // cpu user nice system idle iowait irq softirq
    let fields = line.split(separator: " ").dropFirst().map { Double($0) ?? 0 }
    guard fields.count >= 7 else { return .nan }
    return (fields[0] + fields[1] + fields[2] + fields[5] + fields[6])
      / Double(sysconf(Int32(_SC_CLK_TCK)))
  }

  private func printTable(_ connections: Int, _ all: [Result], _ names: [String]) {
    print(
      """

      \(connections) connections, messages of \(size), medians of \(rounds) rounds of \
      \(runtime.text(1)) s
      """)
    func own(_ name: String) -> [Result] { all.filter { $0.server == name } }
    func ratio(_ name: String, to other: ServerKind) -> String {
      let pairs = zip(own(name), own(other.rawValue)).map { $0.rate / $1.rate }
      return pairs.isEmpty ? "–" : median(pairs).text(2)
    }
    let rows: [[String]] = names.compactMap { name in
      let own = own(name)
      guard !own.isEmpty else { return nil }
      return [
        name, median(own.map(\.rate)).rate, ratio(name, to: .redis), ratio(name, to: .cServer),
        median(own.compactMap { $0.latency["50"] }).text(0),
        median(own.compactMap { $0.latency["99"] }).text(0),
        median(own.compactMap { $0.latency["99.9"] }).text(0),
        median(own.map(\.processorTime)).text(1), median(own.map(\.machineTime)).text(1),
      ]
    }
    printColumns(
      [
        "server", "messages/s", "to redis", "to c-server", "50 % us", "99 % us", "99.9 % us",
        "cpu us", "machine us",
      ], rows)
  }
}
