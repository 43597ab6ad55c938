// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation

struct Plugged: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Compare file servers over HTTP: on Dispatch, on this library, in C, nginx.",
    discussion: """
      Makes files, starts the servers, and has wrk ask each in turn, in rounds, each time in another \
      order. Told are medians over the rounds, and medians of the ratios within a round: of the \
      rates, and of the processor time per request (of all the server's threads, user and system).

      The jobs: cold, 4 KiB ranges at random places of a file that is not in the page cache when a \
      run begins; cached, of one that is; small, whole files of 64 KiB, cached, opened for each \
      request; idle, connections that do nothing for 10 s.

      The servers: dispatch-pread, a plain server on one Dispatch queue with pread(2) in its \
      handlers; plugged, the same moved to this library; dispatch-pread-concurrent and dispatch-io, \
      the same with its reading on a concurrent queue, and by DispatchIO; aio-httpd, the example; \
      c-ring, a server in C with one ring, which is the limit; nginx, in one process. Of c-ring and \
      nginx the way of reading is measured that is the best at the job in a trial (or the one that \
      is named: c-ring:auto). Every server has one thread for its sockets; wrk has another.

      Only where they are named, in a build with --traits Hummingbird: hummingbird-memory, a \
      Hummingbird server that answers ranges of the cached file from memory; hummingbird, its file \
      middleware over its local file system; hummingbird-aio, the same over DispatchAIOHummingbird.

      Only where they are named, in a build with --traits FlyingFox, and for the job small: \
      flyingfox-memory, a FlyingFox server that answers from memory, and flyingfox-memory-aio, the \
      same on the socket pool of DispatchAIOFlyingFox; flyingfox, its directory handler; \
      flyingfox-aio, the pool and the directory handler of DispatchAIOFlyingFox.

      --json keeps the measurements that the file has already, if they were made with the same \
      options: a long comparison can be made in slices, and `--rounds 0` only prints it.
      """)

  @OptionGroup var work: PluggedWork

  @Option(
    help: ArgumentHelp(
      "Which, separated by commas: \(PluggedServer.names).", valueName: "names"))
  var servers = PluggedServers(
    PluggedServer.allCases.filter { !$0.isPlug }.map {
      PluggedCandidate(server: $0, mode: nil)
    })

  @Option(
    help: ArgumentHelp("Which: \(PluggedJob.names), separated by commas.", valueName: "names"))
  var jobs = PluggedJobs([.cold, .cached, .small])

  @Option(help: ArgumentHelp("How many connections at once.", valueName: "list"))
  var connections = Depths([1, 32])

  @Option(help: "How often to run each.")
  var rounds = 5

  @Option(
    help: ArgumentHelp(
      "Where to make the files, on the disk in question; they are removed at the end.",
      valueName: "path"))
  var directory = "/var/tmp"

  @Option(
    help: ArgumentHelp(
      "aio-httpd; the release build of the package that this one is in, unless given.",
      valueName: "path"))
  var aioHttpd: String?

  @Option(help: ArgumentHelp("Write all measurements there, too.", valueName: "path"))
  var json: String?

  @Flag(help: "Print the tables in Markdown.")
  var markdown = false

  func validate() throws {
    try require("rounds", rounds, 0...1000)
    for count in connections.values { try require("connections", count, 1...1000) }
    let names = servers.all.map(\.server)
    guard Set(names).count == names.count else {
      throw ValidationError("--servers: each of them once, with one way of reading or the best")
    }
    guard rounds > 0 || json != nil else { throw ValidationError("--rounds 0 prints a --json") }
  }

  func run() throws {
    var report = try PluggedReport.read(json, settings: work.settings)
    if rounds > 0 {
      let failed = try PluggedRun.measure(self, &report)
      if let json { try writeJSON(report, to: json) }
      PluggedTables(report, markdown: markdown).printAll()
      for (name, reason) in failed.sorted(by: { $0.key < $1.key }) {
        print("\(name) left out: \(reason)")
      }
      guard failed.isEmpty else { throw ExitCode.failure }
    } else {
      let tables = PluggedTables(report, markdown: markdown)
      if !markdown { report.columns.forEach(tables.printColumn) }
      tables.printAll()
    }
  }
}

/// The options that measurements have to share to be compared.
struct PluggedWork: ParsableArguments {
  @Option(help: ArgumentHelp("The size of the file that is cold.", valueName: "bytes"))
  var size = Size(4 << 30)

  @Option(help: ArgumentHelp("The size of the file that is cached.", valueName: "bytes"))
  var cachedSize = Size(512 << 20)

  @Option(help: ArgumentHelp("How many small files there are.", valueName: "number"))
  var smallFiles = 10_000

  @Option(help: ArgumentHelp("How many connections are idle.", valueName: "number"))
  var idleConnections = 10_000

  @Option(help: ArgumentHelp("For how long, each run.", valueName: "seconds"))
  var runtime = 2

  @Option(
    help: ArgumentHelp(
      "How plugged opens files: \(pluggedCachings.map(\.name).joined(separator: " or ")).",
      valueName: "way"))
  var caching = pluggedCachings.last?.name ?? ""

  @Option(help: ArgumentHelp("On how many loops aio-httpd serves.", valueName: "number"))
  var loops = 1

  @Flag(
    help: """
      Open the files of ranges for each request, too: in c-ring, nginx, plugged and the servers on \
      Dispatch, which otherwise keep them open. (aio-httpd decides itself.)
      """)
  var openEach = false

  @Option(
    help: ArgumentHelp(
      """
      A processor quota for the servers, but not for wrk, in percent of one processor, by a cgroup \
      of its own. As root.
      """, valueName: "percent"))
  var quota: Int?

  func validate() throws {
    for (name, size) in [("size", size), ("cached-size", cachedSize)] {
      guard size.bytes >= 1 << 20, size.bytes % 4096 == 0 else {
        throw ValidationError("--\(name) \(size): a multiple of 4096, 1M or more")
      }
    }
    try require("small-files", smallFiles, 1...100_000)
    try require("idle-connections", idleConnections, 1...25_000)
    try require("runtime", runtime, 1...3600)
    if let quota { try require("quota", quota, 1...10_000) }
    try require("loops", loops, 1...64)
    guard pluggedCachings.contains(where: { $0.name == caching }) else {
      throw ValidationError(
        "--caching \(caching): \(pluggedCachings.map(\.name).joined(separator: " or "))")
    }
  }

  var settings: PluggedReport.Settings {
    .init(
      size: size.bytes, cachedSize: cachedSize.bytes, smallFiles: smallFiles,
      idleConnections: idleConnections, runtime: runtime, caching: caching, opensEach: openEach,
      quota: quota, loops: loops == 1 ? nil : loops)
  }
}

/// What `plugged` has measured: the JSON that it writes.
struct PluggedReport: Codable {
  struct Settings: Codable, Equatable {
    var size: Int
    var cachedSize: Int
    var smallFiles: Int
    var idleConnections: Int
    var runtime: Int
    var caching: String
    var opensEach: Bool
    var quota: Int?
    /// `nil`: one.
    var loops: Int?
  }

  /// A run of one server.
  struct Result: Codable {
    var server: String
    var mode: String
    var job: PluggedJob
    var connections: Int
    var round: Int
    var requests: Int
    var seconds: Double
    /// The processor time of the server's process.
    var processorSeconds: Double
    /// The latency in microseconds, by percentile: 50, 99.
    var latency: [String: Double]

    var rate: Double { Double(requests) / seconds }
    /// The server's processor time per request, in microseconds.
    var processorTime: Double { processorSeconds / Double(max(1, requests)) * 1e6 }
  }

  /// Idle connections of one server.
  struct Idle: Codable {
    var server: String
    /// The processor time that it used in 10 s.
    var processorSeconds: Double
    /// Of its resident memory.
    var bytesPerConnection: Double
  }

  var settings: Settings
  var results: [Result] = []
  var idle: [Idle] = []

  /// The report that a file has, or an empty one.
  static func read(_ path: String?, settings: Settings) throws -> PluggedReport {
    guard let path, FileManager.default.fileExists(atPath: path) else {
      return PluggedReport(settings: settings)
    }
    let data = try Data(contentsOf: URL(fileURLWithPath: path))
    guard let report = try? JSONDecoder().decode(PluggedReport.self, from: data) else {
      throw BenchError("--json \(path): it is there, and no report of plugged; give another name")
    }
    guard report.settings == settings else {
      throw BenchError(
        "--json \(path): it was made with other options (\(report.settings)); give another name")
    }
    return report
  }

  /// The jobs and numbers of connections, in the order of the table.
  var columns: [Column] {
    var columns: [Column] = []
    for result in results {
      let column = Column(job: result.job, connections: result.connections)
      if !columns.contains(column) { columns.append(column) }
    }
    return columns.sorted {
      ($0.job.order, $0.connections) < ($1.job.order, $1.connections)
    }
  }

  struct Column: Equatable {
    var job: PluggedJob
    var connections: Int
    var name: String { "\(job.rawValue), \(connections)" }
  }

  func results(_ server: PluggedServer, _ column: Column) -> [Result] {
    results.filter {
      $0.server == server.rawValue && $0.job == column.job && $0.connections == column.connections
    }
  }

  /// The medians of the ratios of a server to another within a round; `nil` if they have no round
  /// in common.
  func ratio(
    _ server: PluggedServer, to other: PluggedServer, _ column: Column
  ) -> (rate: Double, processor: Double)? {
    let others = results(other, column)
    let pairs = results(server, column).compactMap { own in
      others.first { $0.round == own.round }.map { (own, $0) }
    }
    guard !pairs.isEmpty else { return nil }
    return (
      median(pairs.map { $0.rate / $1.rate }),
      median(pairs.map { $0.processorTime / $1.processorTime })
    )
  }
}
