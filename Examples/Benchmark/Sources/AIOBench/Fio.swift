// SPDX-License-Identifier: Apache-2.0

import Foundation

/// The engines of `fio`, doing the same job as a process.
enum Fio {
  static func measure(_ name: String, _ job: Job) throws -> Measurement {
    let engine = String(name.dropFirst("fio-".count))
    guard !job.verifies else { throw BenchError("fio checks data of its own only: no --verify") }
    guard job.pattern != .append else {
      throw BenchError("fio's --rw=write writes over what is there: no --rw append")
    }
    var arguments = [
      "--name=aio-bench", "--output-format=json", "--ioengine=\(engine)", "--rw=\(job.pattern)",
      "--bs=\(job.blockSize)", "--iodepth=\(job.depth)", "--filename=\(job.file)",
      "--size=\(job.size)", "--direct=\(job.isDirect ? 1 : 0)", "--time_based",
      "--runtime=\(max(1, Int(job.runtime.rounded())))", "--thread", "--gtod_reduce=0",
      "--norandommap", "--randrepeat=0", "--allow_file_create=0",
    ]
    if job.fdatasyncEvery > 0 { arguments.append("--fdatasync=\(job.fdatasyncEvery)") }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = ["fio"] + arguments
    let (output, errors) = (Pipe(), Pipe())
    process.standardOutput = output
    process.standardError = errors
    try process.run()
    let data = output.fileHandleForReading.readDataToEndOfFile()
    let complaint = errors.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    guard process.terminationStatus == 0,
      let report = try? JSONDecoder().decode(Report.self, from: data), let run = report.jobs.first
    else {
      let words = String(decoding: complaint, as: UTF8.self).split(separator: "\n").first ?? ""
      throw BenchError("fio (apt-get install fio): \(words)")
    }
    let side = job.pattern.isWrite ? run.write : run.read
    let seconds = Double(side.runtime) / 1000
    var latency: [String: Double] = [:]
    for (name, percentile) in [
      ("50", "50.000000"), ("90", "90.000000"), ("99", "99.000000"), ("99.9", "99.900000"),
      ("99.99", "99.990000"),
    ] { latency[name] = Double(side.latency.percentile?[percentile] ?? 0) / 1000 }
    latency["100"] = Double(side.latency.max) / 1000
    return Measurement(
      engine: name, pattern: job.pattern.rawValue, blockSize: job.blockSize, depth: job.depth,
      requests: side.requests, seconds: seconds, userSeconds: run.user / 100 * seconds,
      systemSeconds: run.system / 100 * seconds, latency: latency, allocations: nil,
      systemCallsPerRequest: nil, wakeUps: run.ctx, longestStall: nil, wrong: 0)
  }

  /// The parts of fio's report that are used.
  private struct Report: Decodable {
    struct Run: Decodable {
      let read: Side
      let write: Side
      /// Processor time, in percent of one core.
      let user: Double
      let system: Double
      let ctx: Int

      enum CodingKeys: String, CodingKey {
        case read, write, ctx
        case user = "usr_cpu"
        case system = "sys_cpu"
      }
    }
    struct Side: Decodable {
      struct Latency: Decodable {
        let max: Int
        let percentile: [String: Int]?
      }
      let requests: Int
      /// The time that it ran, in milliseconds.
      let runtime: Int
      let latency: Latency

      enum CodingKeys: String, CodingKey {
        case runtime
        case requests = "total_ios"
        case latency = "clat_ns"
      }
    }
    let jobs: [Run]
  }
}
