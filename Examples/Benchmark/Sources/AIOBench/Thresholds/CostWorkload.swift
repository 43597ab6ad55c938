// SPDX-License-Identifier: Apache-2.0

import CEngines
import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

/// One row of the thresholds: a verb, the way it takes, and a depth. The kernel completes most of
/// them at once, so that what a request costs does not depend on a disk.
struct CostWorkload {
  enum Verb: String, CaseIterable {
    case read, write, readVector, writeVector, fsync, fdatasync
    /// From the page cache of a file system on a disk, by RWF_NOWAIT.
    case readCached
    /// From and to the disk, past the page cache.
    case readDirect, writeDirect
    /// Of any range, into memory of the library's.
    case readRange
    /// What is in the page cache, in the call.
    case readNow
    /// What is in the page cache to a socket that a source watches, from which it is received.
    case send
    /// 16 bytes to the end of the file.
    case append
    /// With its completion on another queue.
    case readElsewhere
    /// By tasks on the loop's executor.
    case readAsync, writeAsync
    /// By an actor on it.
    case readActor
    /// A one-shot poll of a descriptor that is readable.
    case poll
    /// The events of a source whose descriptor stays readable.
    case source
    /// A block that the loop runs.
    case block

    var isOnDisk: Bool { [.readCached, .readNow, .send].contains(self) || isDirect }
    var isDirect: Bool { self == .readDirect || self == .writeDirect }

    /// Whether a disk or another thread takes part, so that how many requests are handed over
    /// together is a matter of chance.
    var isHandedOver: Bool {
      isDirect || [.fsync, .fdatasync, .append, .readElsewhere].contains(self)
    }
  }

  var verb: Verb
  var depth: Int

  var name: String { "\(verb.rawValue) \(depth)" }

  static let depths = [1, 8, 32]
  static let blockSize = 4096
  static let blocks = 64

  /// The offset of the block of a number.
  static func offset(_ number: Int) -> Int64 { Int64(number % blocks * blockSize) }

  static let all = Verb.allCases.flatMap { verb in
    ([.source, .readNow, .send].contains(verb) ? [1] : depths).map {
      CostWorkload(verb: verb, depth: $0)
    }
  }
}

/// A context and a file on which the requests of a row are made.
final class CostSession {
  private let workload: CostWorkload
  private let context: AIOContext
  private let file: AIOFile
  /// A pipe with a byte in it, or for `send` two ends of a connection.
  private var pipe: [Int32] = [-1, -1]

  /// - Parameter path: 256 KiB, of the kind that the verb wants.
  init(_ workload: CostWorkload, _ path: String) throws {
    self.workload = workload
    // Direct writes of an earlier row have emptied the page cache.
    if workload.verb.isOnDisk, !workload.verb.isDirect {
      _ = try Data(contentsOf: URL(fileURLWithPath: path))
    }
    context = try AIOContext(queueDepth: workload.depth + 1)
    file = try AIOFile.open(
      FilePath(path), .readWrite, caching: workload.verb.isDirect ? .direct : .buffered)
    let isMade =
      workload.verb == .send
      ? socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue), 0, &pipe) == 0
      : Glibc.pipe(&pipe) == 0 && Glibc.write(pipe[1], "x", 1) == 1
    guard isMade else { throw BenchError("pipe: \(String(cString: strerror(errno)))") }
    if workload.verb == .send {
      let source = try context.makeReadSource(fileDescriptor: pipe[0])
      source.setEventHandler {}
      source.activate()
    }
  }

  func close() {
    let closed = DispatchSemaphore(value: 0)
    context.close { closed.signal() }
    closed.wait()
    for end in pipe { Glibc.close(end) }
  }

  /// Makes a number of requests, and waits for them.
  func run(_ count: Int) throws {
    switch workload.verb {
    case .readAsync, .writeAsync, .readActor: try runTasks(count)
    case .source: try runSource(count)
    default: try CostRunner(workload, context, file, pipe).run(count)
    }
  }

  private func runSource(_ count: Int) throws {
    let source = try context.makeReadSource(fileDescriptor: pipe[0])
    let done = DispatchSemaphore(value: 0)
    // Used by the handlers alone, which run one after the other.
    nonisolated(unsafe) var left = count
    source.setEventHandler {
      left -= 1
      if left == 0 { source.cancel() }
    }
    source.setCancelHandler { done.signal() }
    source.activate()
    done.wait()
  }

  private func runTasks(_ count: Int) throws {
    let done = DispatchSemaphore(value: 0)
    // Written before the signal and read after it.
    nonisolated(unsafe) var failure: (any Error)?
    let (depth, verb) = (workload.depth, workload.verb)
    let each = count / depth
    let actor = CostActor(context: context, file: file)
    Task(executorPreference: context.taskExecutor) { [context, file] in
      do {
        try await withThrowingTaskGroup(of: Void.self) { group in
          for task in 0..<depth {
            group.addTask(executorPreference: context.taskExecutor) {
              if verb == .readActor { return try await actor.read(each, from: task) }
              var buffer = AIOUniqueBuffer(count: CostWorkload.blockSize)
              for number in task..<task + each {
                let offset = CostWorkload.offset(number)
                if verb == .writeAsync {
                  _ = try await context.write(file, at: offset, from: buffer)
                } else {
                  _ = try await context.read(file, at: offset, into: &buffer)
                }
              }
            }
          }
          try await group.waitForAll()
        }
      } catch {
        failure = error
      }
      done.signal()
    }
    done.wait()
    if let failure { throw failure }
  }
}

/// Reads on the loop, in the tasks that call it.
private actor CostActor {
  let context: AIOContext
  let file: AIOFile
  nonisolated var unownedExecutor: UnownedSerialExecutor {
    context.executor.asUnownedSerialExecutor()
  }

  init(context: AIOContext, file: AIOFile) { (self.context, self.file) = (context, file) }

  /// Reads blocks, one after the other.
  func read(_ count: Int, from first: Int) async throws {
    var buffer = AIOUniqueBuffer(count: CostWorkload.blockSize)
    for number in first..<first + count {
      _ = try await context.read(file, at: CostWorkload.offset(number), into: &buffer)
    }
  }
}

/// Makes requests with callbacks, as many at a time as the depth says.
///
/// - Safety: `@unchecked Sendable` because it is confined to the queue of its completions.
private final class CostRunner: @unchecked Sendable {
  private let workload: CostWorkload
  private let context: AIOContext
  private let file: AIOFile
  private let pipe: [Int32]
  private let elsewhere: DispatchQueue?
  private let buffers: [AIOBuffer]
  private let vectors: [[AIOBuffer]]
  private let done = DispatchSemaphore(value: 0)
  private var (toStart, toEnd, next) = (0, 0, 0)
  private var failure: (any Error)?

  init(
    _ workload: CostWorkload, _ context: AIOContext, _ file: AIOFile, _ pipe: [Int32]
  ) {
    (self.workload, self.context, self.file) = (workload, context, file)
    self.pipe = pipe
    elsewhere = workload.verb == .readElsewhere ? DispatchQueue(label: "aio-bench.other") : nil
    let size = workload.verb == .append ? 16 : CostWorkload.blockSize
    buffers = (0..<workload.depth).map { _ in AIOBuffer(count: size) }
    vectors = (0..<workload.depth).map { _ in
      (0..<2).map { _ in AIOBuffer(count: CostWorkload.blockSize / 2) }
    }
  }

  func run(_ count: Int) throws {
    (elsewhere ?? context.queue).async { [self] in
      (toStart, toEnd) = (count, count)
      for slot in 0..<workload.depth { start(slot) }
    }
    done.wait()
    if let failure { throw failure }
  }

  private func start(_ slot: Int) {
    guard toStart > 0 else { return }
    toStart -= 1
    next = next + 1 == CostWorkload.blocks ? 0 : next + 1
    let offset = Int64(next * CostWorkload.blockSize)
    do {
      switch workload.verb {
      case .read, .readCached, .readDirect, .readElsewhere:
        try context.read(file, at: offset, into: buffers[slot], queue: elsewhere) { [self] in
          ended($0, slot)
        }
      case .readRange:
        try context.read(file, from: offset + 1, count: CostWorkload.blockSize - 1) { [self] in
          ended($0, slot)
        }
      case .write, .writeDirect:
        try context.write(file, at: offset, from: buffers[slot]) { [self] in ended($0, slot) }
      case .readVector:
        try context.read(file, at: offset, into: vectors[slot]) { [self] in ended($0, slot) }
      case .writeVector:
        try context.write(file, at: offset, from: vectors[slot]) { [self] in ended($0, slot) }
      case .fsync: try context.fsync(file) { [self] in ended($0, slot) }
      case .fdatasync: try context.fdatasync(file) { [self] in ended($0, slot) }
      case .readNow: try readNow()
      case .send:
        let buffer = buffers[slot]
        _ = try context.send(file, at: offset, count: buffer.count, to: pipe[0]) { [self] in
          buffer.withUnsafeMutableBytes { _ = recv(pipe[1], $0.baseAddress, $0.count, 0) }
          ended($0, slot)
        }
      case .append:
        try context.append(file, from: buffers[slot]) { [self] in ended($0, slot) }
      case .poll: try context.poll(pipe[0], for: .readable) { [self] in ended($0, slot) }
      case .block: context.async { [self] in ended(Result<Int, AIOError>.success(0), slot) }
      case .readAsync, .writeAsync, .readActor, .source: preconditionFailure("made by others")
      }
    } catch {
      ended(Result<Int, AIOError>.failure(error), slot)
    }
  }

  /// Makes all reads: nothing has to be waited for.
  private func readNow() throws(AIOError) {
    for number in 0...toStart {
      let count = try file.readNow(at: CostWorkload.offset(number), into: buffers[0])
      precondition(count == CostWorkload.blockSize, "the file is not in the page cache")
    }
    (toStart, toEnd) = (0, 1)
    ended(Result<Int, AIOError>.success(0), 0)
  }

  private func ended<Value>(_ result: Result<Value, AIOError>, _ slot: Int) {
    if case .failure(let error) = result { (failure, toStart) = (error, 0) }
    toEnd -= 1
    start(slot)
    if toEnd == 0 || failure != nil { done.signal() }
  }
}
