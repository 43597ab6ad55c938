// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import NIOCore
import NIOPosix
import _NIOFileSystem

#if Hummingbird
import DispatchAIONIO
#endif

/// SwiftNIO's file system, or this library's in its place: a task per request in flight.
struct NIOFileSystemEngine: Engine {
  var usesDispatchAIO = false

  func run(_ job: Job, _ meter: Meter) throws {
    guard !job.pattern.isWrite else { throw BenchError("nio-filesystem only reads here") }
    let done = DispatchSemaphore(value: 0)
    nonisolated(unsafe) var failure: (any Error)?  // written before the signal
    Task {
      do {
        try await read(job, meter)
      } catch {
        failure = error
      }
      meter.end()
      done.signal()
    }
    done.wait()
    if let failure { throw failure }
  }

  private func read(_ job: Job, _ meter: Meter) async throws {
    guard usesDispatchAIO else {
      return try await FileSystem.shared.withFileHandle(forReadingAt: FilePath(job.file)) {
        try await read(job, meter, $0)
      }
    }
    #if Hummingbird
    let context = try AIOContext(queueDepth: min(job.depth + 1, 65536))
    try await AIOFileSystem(context).withFileHandle(forReadingAt: FilePath(job.file)) {
      try await read(job, meter, $0)
    }
    await context.close()
    #else
    throw BenchError("dispatch-aio-nio needs a build with --traits Hummingbird")
    #endif
  }

  private func read(
    _ job: Job, _ meter: Meter, _ file: some ReadableFileHandleProtocol & Sendable
  ) async throws {
    let recorder = Recorder(meter)
    let began = meter.begin()
    try await withThrowingTaskGroup(of: Void.self) { group in
      for number in 0..<job.depth {
        group.addTask {
          var offsets = Offsets(job, share: number)
          var started = began
          while true {
            let offset = offsets.removeFirst()
            let bytes = try await file.readChunk(
              fromAbsoluteOffset: offset, length: .bytes(Int64(job.blockSize)))
            guard bytes.readableBytes == job.blockSize else {
              throw BenchError("\(job.file): \(bytes.readableBytes) bytes at \(offset)")
            }
            let (now, continues) = await recorder.completed(started)
            guard continues else { return }
            started = now
          }
        }
      }
      try await group.waitForAll()
    }
  }

  /// The meter, which must not be called by two tasks at a time.
  private actor Recorder {
    let meter: Meter
    init(_ meter: Meter) { self.meter = meter }
    func completed(_ started: UInt64) -> (now: UInt64, continues: Bool) { meter.completed(started) }
  }
}
