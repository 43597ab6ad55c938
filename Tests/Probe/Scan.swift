// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Foundation

/// Reads a file over and over, eight requests at a time, each made by the completion of another: so
/// that the loop waits for completions in `io_getevents`, and somebody can make that fail.
///
/// - Safety: `@unchecked Sendable` because it is confined to the context's queue once it runs.
final class Scan: @unchecked Sendable {
  private let context: AIOContext
  private let file: AIOFile
  private let done = DispatchSemaphore(value: 0)
  private let total = 1000
  /// Large, so that the disk takes longer than strace does.
  private let block = 256 << 10
  private var started = 0
  private var completed = 0
  private var failed = 0

  init(_ file: AIOFile) throws {
    var options = AIOContext.Options()
    // Long enough also where strace slows all down.
    options.waiting = .spinning(upTo: .milliseconds(10))
    context = try AIOContext(queueDepth: 8, options: options)
    self.file = file
  }

  /// - Returns: how many requests completed, and how many of them not as they should have.
  func run() throws -> (completed: Int, failed: Int) {
    // Written, because what is only preallocated is read without the disk.
    _ = try outcome {
      try context.write(file, at: 0, from: AIOBuffer(count: 32 * block), completion: $0)
    }
    context.queue.async { for _ in 0..<8 { self.step(AIOBuffer(count: self.block)) } }
    done.wait()
    return context.queue.sync { (completed, failed) }
  }

  private func step(_ buffer: AIOBuffer) {
    started += 1
    do {
      try context.read(file, at: Int64(started % 32 * block), into: buffer) { [self] result in
        completed += 1
        if result != .success(block) { failed += 1 }
        if started < total { step(buffer) }
        if completed == total { done.signal() }
      }
    } catch {
      fatalError("\(error)")
    }
  }
}
