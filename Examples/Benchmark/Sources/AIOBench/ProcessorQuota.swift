// SPDX-License-Identifier: Apache-2.0
//
// A processor quota for this process and the engines that it starts, or for servers only, as a
// container has one: a cgroup of its own, version 1 or 2, whose limit the kernel enforces for each
// period of 100 ms.

import ArgumentParser
import Foundation

struct QuotaOption: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      """
      A processor quota for the whole run, in percent of one processor, by a cgroup of its own. As \
      root.
      """, valueName: "percent"))
  var quota: Int?

  func validate() throws {
    if let quota { try require("quota", quota, 1...10_000) }
  }

  /// Runs a benchmark under the quota, if there is one.
  func limiting(_ body: () throws -> Void) throws {
    guard let quota else { return try body() }
    let group = try ProcessorQuota(percent: quota)
    defer { group.remove() }
    try group.join()
    print("under a quota of \(quota) % of one processor (\(group.path))")
    try body()
  }
}

/// A cgroup with a limit.
struct ProcessorQuota {
  private static let period = 100_000

  let path: String
  /// Where a process goes when it leaves.
  private let parent: String

  /// Makes a cgroup with a limit.
  init(percent: Int) throws {
    let name = "aio-bench.\(getpid())"
    let quota = percent * Self.period / 100
    if FileManager.default.fileExists(atPath: "/sys/fs/cgroup/cgroup.controllers") {
      parent = "/sys/fs/cgroup"
      path = parent + "/" + name
      // Refused where it is set already.
      try? Self.write("+cpu", to: parent + "/cgroup.subtree_control")
      try Self.make(path)
      try Self.write("\(quota) \(Self.period)", to: path + "/cpu.max")
    } else {
      parent = "/sys/fs/cgroup/cpu"
      path = parent + "/" + name
      try Self.make(path)
      try Self.write("\(Self.period)", to: path + "/cpu.cfs_period_us")
      try Self.write("\(quota)", to: path + "/cpu.cfs_quota_us")
    }
  }

  /// Moves this process there.
  func join() throws { try Self.write("\(getpid())", to: path + "/cgroup.procs") }

  /// A command that moves itself there before it does anything else.
  func command(_ command: [String]) -> [String] {
    ["/bin/sh", "-c", "echo $$ >\"$0\" && exec \"$@\"", path + "/cgroup.procs"] + command
  }

  /// Leaves the cgroup, and removes it as soon as the processes that were started in it have ended.
  func remove() {
    try? Self.write("\(getpid())", to: parent + "/cgroup.procs")
    for _ in 0..<100 where rmdir(path) != 0 && errno == EBUSY { usleep(10_000) }
  }

  private static func make(_ path: String) throws {
    guard mkdir(path, 0o755) == 0 else {
      throw ValidationError(
        """
        --quota: cannot make \(path): \(String(cString: strerror(errno))); it takes root, and a \
        cgroup file system with the cpu controller that may be written to
        """)
    }
  }

  private static func write(_ text: String, to path: String) throws {
    guard let file = FileHandle(forWritingAtPath: path) else {
      throw ValidationError("--quota: cannot open \(path): \(String(cString: strerror(errno)))")
    }
    defer { try? file.close() }
    do {
      try file.write(contentsOf: Data(text.utf8))
    } catch {
      throw ValidationError("--quota: cannot write '\(text)' to \(path): \(error)")
    }
  }
}
