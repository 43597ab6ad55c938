// SPDX-License-Identifier: Apache-2.0
//
// One comparison of `plugged`: its processes and files live as long as it does.

import Foundation

final class PluggedRun {
  private let options: Plugged
  private let directory: String
  private let files: PluggedFiles
  private let starter: PluggedStarter
  private let interruption: Interruption
  private let wrk: String
  /// The servers that run, by name and mode.
  private var servers: [String: ServerProcess] = [:]
  private var failed: [String: String] = [:]
  private var seed = 0

  /// Measures all that is asked for, and adds it to a report.
  ///
  /// - Returns: The servers that were left out, with the reasons.
  static func measure(_ options: Plugged, _ report: inout PluggedReport) throws -> [String: String]
  {
    let wrk = try Programs.installed("wrk", package: "wrk")
    raiseDescriptorLimit()
    let directory = URL(fileURLWithPath: options.directory)
      .appendingPathComponent("aio-bench-plugged-\(getpid())").path
    let quota = try options.work.quota.map { try ProcessorQuota(percent: $0) }
    defer { quota?.remove() }
    let interruption = Interruption(directory) { quota?.remove() }
    defer { interruption.end() }
    try FileManager.default.createDirectory(
      atPath: "\(directory)/www/small", withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let run = PluggedRun(options, directory, quota, interruption, wrk)
    defer { run.stopServers() }
    if let quota {
      print(
        "the servers run under a quota of \(options.work.quota ?? 0) % of one processor (\(quota.path))"
      )
    }
    try run.run(&report)
    return run.failed
  }

  private init(
    _ options: Plugged, _ directory: String, _ quota: ProcessorQuota?, _ interruption: Interruption,
    _ wrk: String
  ) {
    (self.options, self.directory, self.interruption) = (options, directory, interruption)
    self.wrk = wrk
    files = PluggedFiles(directory: directory, work: options.work)
    starter = PluggedStarter(
      directory: directory, work: options.work, aioHTTPD: options.aioHttpd, quota: quota,
      interruption: interruption)
  }

  /// As many descriptors as the process may have: servers inherit the limit.
  private static func raiseDescriptorLimit() {
    let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
    var limit = rlimit()
    guard getrlimit(resource, &limit) == 0 else { return }
    limit.rlim_cur = min(limit.rlim_max, 65536)
    setrlimit(resource, &limit)
  }

  private func stopServers() {
    for server in servers.values { server.stop() }
    servers = [:]
  }

  private func run(_ report: inout PluggedReport) throws {
    try files.checkRoom(options.jobs.all)
    for job in options.jobs.all {
      try files.prepare(job)
      guard job != .idle else {
        try measureIdle(&report)
        continue
      }
      try files.script(job).write(
        toFile: script(job), atomically: false, encoding: .utf8)
      for candidate in options.servers.all {
        attempt(candidate) {
          for mode in candidate.modes { try check(server(candidate.server, mode), job) }
        }
      }
      for connections in options.connections.values {
        try measure(job, connections, &report)
        if let json = options.json { try writeJSON(report, to: json) }
      }
    }
  }

  /// Leaves a server out if it fails.
  private func attempt(_ candidate: PluggedCandidate, _ body: () throws -> Void) {
    let name = candidate.server.rawValue
    guard failed[name] == nil else { return }
    do { try body() } catch { failed[name] = "\(error)" }
  }

  private func server(_ server: PluggedServer, _ mode: String) throws -> ServerProcess {
    let name = "\(server.rawValue):\(mode)"
    if let running = servers[name] { return running }
    let started = try starter.start(server, mode)
    servers[name] = started
    return started
  }

  private func script(_ job: PluggedJob) -> String { "\(directory)/\(job.rawValue).lua" }

  // MARK: Measuring

  private func measure(
    _ job: PluggedJob, _ connections: Int, _ report: inout PluggedReport
  ) throws {
    // A trial, for what happens only once, and for the best of several modes.
    var best: [PluggedServer: String] = [:]
    for candidate in options.servers.all {
      attempt(candidate) {
        let rates = try candidate.modes.map { mode in
          let name = "\(candidate.server.rawValue) \(mode)"
          ProgressLine.show("\(job.rawValue), \(connections) connections, a trial: \(name)")
          return (mode, try load(candidate.server, mode, job, connections, seconds: 1, 0).rate)
        }
        best[candidate.server] = rates.max { $0.1 < $1.1 }?.0
      }
    }
    let column = PluggedReport.Column(job: job, connections: connections)
    let earlier =
      report.results.filter {
        $0.job == job && $0.connections == column.connections
      }.map(\.round).max() ?? 0
    let count = options.servers.all.count
    for round in 1...options.rounds {
      let first = round % count
      for candidate in options.servers.all[first...] + options.servers.all[..<first] {
        attempt(candidate) {
          guard let mode = best[candidate.server] else { return }
          ProgressLine.show(
            "\(job.rawValue), \(connections) connections, round \(round) of \(options.rounds): "
              + candidate.server.rawValue)
          report.results.append(
            try load(
              candidate.server, mode, job, connections, seconds: options.work.runtime,
              earlier + round))
        }
      }
    }
    ProgressLine.clear()
    PluggedTables(report, markdown: false).printColumn(column)
  }

  /// Has wrk ask a server for a while.
  private func load(
    _ server: PluggedServer, _ mode: String, _ job: PluggedJob, _ connections: Int, seconds: Int,
    _ round: Int
  ) throws -> PluggedReport.Result {
    let running = try self.server(server, mode)
    try files.settle(job)
    seed += 1
    let before = running.processorSeconds
    let output = try output(
      of: [
        wrk, "-t", "1", "-c", "\(connections)", "-d", "\(seconds)s", "--timeout", "30s", "-s",
        script(job), "http://127.0.0.1:\(running.port)/", "--", "\(seed + Int(getpid()))",
      ])
    let after = running.processorSeconds
    let line = output.split(separator: "\n").last { $0.hasPrefix("result ") }
    let numbers = line.map { $0.split(separator: " ").dropFirst().compactMap { Double($0) } } ?? []
    guard numbers.count == 5 else {
      throw BenchError("wrk ended without a result: \(output); \(running.lastWords)")
    }
    guard numbers[2] == 0 else {
      throw BenchError(
        "\(numbers[2].text(0)) of \(numbers[0].text(0)) requests failed; \(running.lastWords)")
    }
    return PluggedReport.Result(
      server: server.rawValue, mode: mode, job: job, connections: connections, round: round,
      requests: Int(numbers[0]), seconds: numbers[1] / 1e6,
      processorSeconds: after.user + after.system - before.user - before.system,
      latency: ["50": numbers[3], "99": numbers[4]])
  }

  private func output(of command: [String]) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: command[0])
    process.arguments = Array(command.dropFirst())
    process.standardInput = FileHandle.nullDevice
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    interruption.started(process.processIdentifier)
    defer { interruption.ended(process.processIdentifier) }
    let data = try pipe.fileHandleForReading.readToEnd() ?? Data()
    process.waitUntilExit()
    return String(decoding: data, as: UTF8.self)
  }

  // MARK: Answers

  /// Whether a server's answers have the files' bytes, on one connection.
  private func check(_ server: ServerProcess, _ job: PluggedJob) throws {
    let client = try HTTPClient(server.port)
    func compare(_ name: String, _ range: Range<Int>, isPartial: Bool) throws {
      let answer = try client.get(name, isPartial ? range : nil)
      guard try answer == files.bytes(name, range) else {
        throw BenchError(
          "a wrong answer to /\(name), bytes \(range.lowerBound) to \(range.upperBound)")
      }
    }
    if job == .small {
      for number in [0, options.work.smallFiles / 2, options.work.smallFiles - 1] {
        try compare("small/\(number)", 0..<PluggedFiles.smallSize, isPartial: false)
      }
      return
    }
    let size = (job == .cold ? options.work.size : options.work.cachedSize).bytes
    let block = PluggedFiles.blockSize
    for first in [0, size - block, size / 2, size / 4096 * 1000 + 777] {
      try compare(job.rawValue, first..<first + block, isPartial: true)
    }
  }

  // MARK: Idle connections

  private func measureIdle(_ report: inout PluggedReport) throws {
    for candidate in options.servers.all {
      attempt(candidate) {
        let name = candidate.server.rawValue
        ProgressLine.show("\(options.work.idleConnections) idle connections: \(name)")
        // One that has nothing left of other jobs.
        let server = try starter.start(candidate.server, candidate.modes[0])
        defer { server.stop() }
        let block = 0..<PluggedFiles.blockSize
        _ = try HTTPClient(server.port).get("cached", block)
        let before = server.residentBytes
        let clients = try (0..<options.work.idleConnections).map { _ in
          let client = try HTTPClient(server.port)
          _ = try client.get("cached", block)
          return client
        }
        sleep(2)
        let spent = server.processorSeconds
        let memory = server.residentBytes - before
        sleep(10)
        let end = server.processorSeconds
        report.idle.removeAll { $0.server == name }
        report.idle.append(
          .init(
            server: name,
            processorSeconds: end.user + end.system - spent.user - spent.system,
            bytesPerConnection: memory / Double(clients.count)))
      }
    }
    ProgressLine.clear()
  }
}

/// A connection that asks for files, and waits for each answer.
private final class HTTPClient {
  private let socket: Int32

  init(_ port: UInt16) throws {
    guard let socket = LocalPort.connected(port) else {
      throw BenchError("cannot connect: \(String(cString: strerror(errno)))")
    }
    self.socket = socket
    // A server that does not answer must not stop the benchmark.
    var time = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(
      socket, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
  }

  deinit { close(socket) }

  /// The body of the answer.
  func get(_ name: String, _ range: Range<Int>?) throws -> [UInt8] {
    let part = range.map { "Range: bytes=\($0.lowerBound)-\($0.upperBound - 1)\r\n" } ?? ""
    let request = Array("GET /\(name) HTTP/1.1\r\nHost: h\r\n\(part)\r\n".utf8)
    guard send(socket, request, request.count, Int32(MSG_NOSIGNAL)) == request.count else {
      throw BenchError("cannot send a request: \(String(cString: strerror(errno)))")
    }
    var received: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      if let blank = received.firstRange(of: Array("\r\n\r\n".utf8)) {
        let head = String(decoding: received[..<blank.lowerBound], as: UTF8.self).lowercased()
        let status = head.split(separator: " ").dropFirst().first ?? ""
        guard status == (range == nil ? "200" : "206"),
          let length = head.split(separator: "\r\n").first(where: {
            $0.hasPrefix("content-length: ")
          }).flatMap({ Int($0.dropFirst(16)) })
        else { throw BenchError("the answer to /\(name) was \(head)") }
        let body = received[blank.upperBound...]
        if body.count >= length { return Array(body) }
      }
      let count = recv(socket, &buffer, buffer.count, 0)
      guard count > 0 else {
        throw BenchError(
          "no answer to /\(name): \(count == 0 ? "closed" : String(cString: strerror(errno)))")
      }
      received += buffer[..<count]
    }
  }
}
