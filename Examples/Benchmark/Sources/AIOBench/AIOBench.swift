// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation

@main
struct AIOBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "aio-bench",
    abstract: "Measures file I/O on your own disk: DispatchAIO beside what else there is.",
    discussion: "Engines: \(Engines.descriptions)",
    version: "1.0.0",
    subcommands: [
      Run.self, Compare.self, Stall.self, Neighbours.self, Serve.self, CServer.self, Draw.self,
    ])
}

/// What `run` and `compare` have in common.
struct JobOptions: ParsableArguments {
  @Option(help: "What to do: randread, randwrite, read, write or append.")
  var rw = Job.Pattern.randread

  @Option(help: ArgumentHelp("The size of a request: 4k, 1M, ….", valueName: "bytes"))
  var bs = Size(4096)

  @Option(
    help: ArgumentHelp(
      """
      The file; made, and filled, if it is missing or empty. Patterns that write, and --verify, write \
      over what it has. A block device can be read.
      """, valueName: "path"))
  var file: String

  @Option(help: ArgumentHelp("How much of the file to work on.", valueName: "bytes"))
  var size = Size(1 << 30)

  @Option(help: ArgumentHelp("For how long, each run.", valueName: "seconds"))
  var runtime = 5.0

  @Flag(inversion: .prefixedNo, help: "Past the page cache (O_DIRECT).")
  var direct = true

  @Flag(help: "Through the page cache.")
  var buffered = false

  @Option(
    help: """
      After so many writes, an fdatasync; 0 is never. The asynchronous engines make one at a time, \
      those with threads make as many as there are threads: compare within one kind.
      """)
  var fdatasync = 0

  @Flag(help: "Write what can be recognised, and check what is read; fills the file first.")
  var verify = false

  func validate() throws {
    guard bs.bytes >= 512, bs.bytes % 512 == 0, bs.bytes <= 1 << 30 else {
      throw ValidationError("--bs \(bs.bytes): a multiple of 512, up to 1G")
    }
    guard size.bytes >= bs.bytes else { throw ValidationError("--size is below --bs") }
    guard runtime > 0, runtime <= 86400 else { throw ValidationError("--runtime: 0 to 86400") }
    guard (0...1_000_000_000).contains(fdatasync) else {
      throw ValidationError("--fdatasync: 0 to 1000000000")
    }
  }

  func job(depth: Int) -> Job {
    Job(
      pattern: rw, blockSize: bs.bytes, depth: depth, file: file,
      size: size.bytes / bs.bytes * bs.bytes, runtime: runtime, isDirect: direct && !buffered,
      fdatasyncEvery: fdatasync, verifies: verify)
  }

  /// Makes the file, if it has to be.
  func prepare() throws {
    try job(depth: 1).prepareFile(fill: verify) {
      ProgressLine.show("filling \(file): \(Int($0 * 100)) %")
    }
    ProgressLine.clear()
  }
}

/// Refuses an option's value that is out of its range.
func require<Value: Comparable>(
  _ option: String, _ value: Value, _ range: ClosedRange<Value>
) throws {
  guard range.contains(value) else {
    throw ValidationError("--\(option) \(value): \(range.lowerBound) to \(range.upperBound)")
  }
}

/// A number of bytes as people write it.
struct Size: ExpressibleByArgument, CustomStringConvertible {
  let bytes: Int
  init(_ bytes: Int) { self.bytes = bytes }

  init?(argument: String) {
    let units = ["k": 10, "m": 20, "g": 30, "t": 40]
    let text = argument.lowercased()
    if let shift = text.last.flatMap({ units[String($0)] }) {
      guard let number = Int(text.dropLast()), number < 1 << 20 else { return nil }
      bytes = number << shift
    } else {
      guard let number = Int(text) else { return nil }
      bytes = number
    }
    guard bytes > 0 else { return nil }
  }

  var description: String {
    for (unit, shift) in [("G", 30), ("M", 20), ("k", 10)] where bytes % (1 << shift) == 0 {
      return "\(bytes >> shift)\(unit)"
    }
    return "\(bytes)"
  }
  var defaultValueDescription: String { description }
}

struct Depths: ExpressibleByArgument {
  let values: [Int]
  init(_ values: [Int]) { self.values = values }
  init?(argument: String) {
    let parts = argument.split(separator: ",").map { Int($0) }
    guard !parts.isEmpty, parts.allSatisfy({ $0 != nil && (1...65535).contains($0!) }) else {
      return nil
    }
    values = parts.compactMap { $0 }
  }
  var defaultValueDescription: String { values.map(String.init).joined(separator: ",") }
}

extension Double {
  /// With so many places after the point.
  func text(_ places: Int) -> String { String(format: "%.\(places)f", self) }

  /// 13.9k, 1.20M
  var rate: String {
    switch self {
    case 1e6...: "\((self / 1e6).text(2))M"
    case 1e5...: "\((self / 1e3).text(0))k"
    case 1e3...: "\((self / 1e3).text(1))k"
    default: text(0)
    }
  }
}

func median(_ values: [Double]) -> Double {
  let sorted = values.sorted()
  guard !sorted.isEmpty else { return .nan }
  let middle = sorted.count / 2
  return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

func writeJSON(_ value: some Encodable, to path: String) throws {
  let encoder = JSONEncoder()
  encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
  try encoder.encode(value).write(to: URL(fileURLWithPath: path))
}
