// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// What `strace -f` wrote of a program: a line per system call.
struct SystemCallLog {
  let calls: [String]
  /// The number of the thread that made each call.
  let threads: [String]
  let run: ChildProcess

  /// Runs a program under strace.
  ///
  /// - Parameter options: further ones of strace's, `-e inject=…` for one.
  init(
    tracing names: String, options: [String] = [], _ program: String, _ arguments: [String],
    in directory: TemporaryDirectory, environment: [String: String] = [:]
  ) throws {
    let strace = try ChildProcess.installed("strace", package: "strace")
    let log = directory.path.appending("strace").string
    run = try ChildProcess.run(
      strace, ["-f", "-o", log, "-e", "trace=\(names)"] + options + [program] + arguments,
      environment: environment)
    if run.errors.contains("Operation not permitted") { throw XCTSkip("strace may not trace here") }
    let parsed = Self.parseThreads(try String(contentsOfFile: log, encoding: .utf8))
    (calls, threads) = (parsed.map(\.call), parsed.map(\.thread))
  }

  /// The system calls in a log, in the order in which they returned.
  static func parse(_ log: String) -> [String] { parseThreads(log).map(\.call) }

  /// The same with the number of the thread that made each call.
  private static func parseThreads(_ log: String) -> [(thread: String, call: String)] {
    var calls: [(thread: String, call: String)] = []
    // A call that another thread's call interrupts in the log is two lines: joined here.
    var unfinished: [Substring: String] = [:]
    for line in log.split(separator: "\n") {
      let process = line.prefix { $0 != " " }
      let call = line.dropFirst(process.count).drop { $0 == " " }
      if let cut = call.range(of: " <unfinished ...>") {
        unfinished[process] = String(call[..<cut.lowerBound])
      } else if call.hasPrefix("<... "), let rest = call.range(of: " resumed>") {
        let begun = unfinished.removeValue(forKey: process) ?? ""
        calls.append((String(process), begun + call[rest.upperBound...]))
      } else {
        calls.append((String(process), String(call)))
      }
    }
    return calls
  }

  /// The calls whose line has all of `parts` in it.
  func calls(with parts: String...) -> [String] {
    calls.filter { call in parts.allSatisfy(call.contains) }
  }

  /// The names of the calls of each step of the probe's, which begins with a look at a path that
  /// names it (`access` must be traced), with those by another thread than the step's marked.
  var steps: [String: [String]] {
    var steps: [String: [String]] = [:]
    var (step, thread) = ("none", "")
    for (call, caller) in zip(calls, threads) {
      if let name = call.firstMatch(of: #/^f?access(?:at)?\(.*"/step/([^"]+)"/#) {
        (step, thread) = (String(name.1), caller)
      } else if let name = call.firstMatch(of: #/^(\w+)\(/#) {
        steps[step, default: []].append(String(name.1) + (caller == thread ? "" : " elsewhere"))
      }
    }
    return steps
  }

  /// What all reads of an eventfd counted together.
  func counted(on event: some StringProtocol) -> Int {
    calls.reduce(0) { sum, call in
      // A counter below 8, which strace shows as one octal digit and seven zeros.
      let match = call.wholeMatch(of: #/read\((\d+), +"\\([1-7])(?:\\0){7}", 8\) += 8/#)
      guard let match, match.1 == event else { return sum }
      return sum + (Int(match.2) ?? 0)
    }
  }
}
