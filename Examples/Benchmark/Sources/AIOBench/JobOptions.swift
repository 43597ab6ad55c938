// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

/// The options that describe a job, of `run` and `compare`.
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

  @Flag(help: "Before each run, drop the file from the page cache.")
  var cold = false

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
      isCold: cold, fdatasyncEvery: fdatasync, verifies: verify)
  }

  /// Makes and fills the file if it is missing, or `--verify` asks for it.
  func prepare() throws {
    try job(depth: 1).prepareFile(fill: verify) {
      ProgressLine.show("filling \(file): \(Int($0 * 100)) %")
    }
    ProgressLine.clear()
  }
}
