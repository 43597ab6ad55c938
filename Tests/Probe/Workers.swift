// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Foundation

/// The number of threads that work for a global queue of Dispatch, by their names, which end with
/// the queue's. They linger for seconds. Those of serial queues end with ".overcommit".
func globalWorkers() throws -> Int {
  try FileManager.default.contentsOfDirectory(atPath: "/proc/self/task").filter { thread in
    let name = try? String(contentsOfFile: "/proc/self/task/\(thread)/comm", encoding: .utf8)
    return name?.hasSuffix("-qos\n") == true
  }.count
}

/// Does what the library does behind a caller's back, and prints after each how many threads work
/// for a global queue; at the end once more, when a block has run on one.
func useWorkers() throws {
  let done = DispatchSemaphore(value: 0)
  func step(_ name: String) throws { print(name, try globalWorkers()) }

  // Released meanwhile.
  withExtendedLifetime(DispatchData(AIOBuffer(count: 1 << 20))) {}
  for name in ["context", "second context"] {
    let context = try AIOContext(queueDepth: 4)
    let file = try file()
    let buffer = AIOBuffer(count: 4096)
    _ = try outcome { try context.write(file, at: 0, from: buffer, completion: $0) }
    context.close { done.signal() }
    done.wait()
    file.close { done.signal() }
    done.wait()
    try step(name)
  }

  let channel = AIOChannel(
    type: .random, path: directory.appending("probe").string, oflag: O_RDONLY, mode: 0,
    queue: DispatchQueue(label: "probe")
  ) { _ in done.signal() }
  channel.barrier { done.signal() }
  done.wait()
  channel.close()
  done.wait()
  try step("channel")

  DispatchQueue.global().async { done.signal() }
  done.wait()
  try step("global")
  exit(0)
}
