// SPDX-License-Identifier: Apache-2.0

import Foundation

/// How long each thread of a process was ready to run, and did not run, in nanoseconds: what the
/// machine did not give it, and not what was tested.
struct ProcessorWaits {
  /// By thread, as /proc names it.
  private var threads: [String: UInt64] = [:]

  init(of process: pid_t = getpid()) {
    let tasks = "/proc/\(process)/task"
    for task in (try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? [] {
      threads[task] = Self.wait("\(tasks)/\(task)")
    }
  }

  /// The most that a thread has waited since.
  func longest(since before: Self) -> UInt64 {
    threads.map { $1 - min($1, before.threads[$0] ?? 0) }.max() ?? 0
  }

  /// What the calling thread has waited since it was looked at last.
  mutating func takeOwn() -> UInt64 {
    let wait = Self.wait("/proc/thread-self")
    return wait - min(wait, threads.updateValue(wait, forKey: Self.callingThread) ?? 0)
  }

  /// The number of the calling thread, as /proc names it.
  static var callingThread: String {
    let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/thread-self")
    return String(link?.split(separator: "/").last ?? "")
  }

  private static func wait(_ task: String) -> UInt64 {
    let file = open("\(task)/schedstat", O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return 0 }
    defer { close(file) }
    var text = [UInt8](repeating: 0, count: 100)
    let count = read(file, &text, text.count)
    // The time on processors, the time that it waited for one, and how often it got one.
    let fields = String(decoding: text.prefix(max(0, count)), as: UTF8.self).split(separator: " ")
    return fields.count > 1 ? UInt64(fields[1]) ?? 0 : 0
  }
}
