// SPDX-License-Identifier: Apache-2.0
//
// A small program that the tests run, and look at from outside: under strace, under a resource
// limit, or to see it trap. Not for anybody else.
//
//   dispatch-aio-probe COMMAND DIRECTORY

import CFaultFS
import CProbe
import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

let arguments = CommandLine.arguments
guard arguments.count == 3, let command = Command(rawValue: arguments[1]) else {
  fatalError("usage: dispatch-aio-probe COMMAND DIRECTORY")
}
let directory = FilePath(arguments[2])

enum Command: String {
  case verbs
  case writeOptions = "write-options"
  case replace
  case replaceNone = "replace-none"
  case channel
  case fileSizeLimit = "file-size-limit"
  case create
  case growPastLimit = "grow-past-limit"
  case writePastLimit = "write-past-limit"
  case fewDescriptors = "few-descriptors"
  case createLate = "create-late"
  case workers
  case appends
  case forkStatistics = "fork-statistics"
  case forkSources = "fork-sources"
  case open
  case openWithoutProc = "open-without-proc"
  case openCached = "open-cached"
  case readNow = "read-now"
  case readNowOthers = "read-now-others"
  case sendToClosed = "send-to-closed"
  case watchPipe = "watch-pipe"
  case alignment
  case lease
  case threads
  case workload
  case scan
  case fork
  case exitInFlight = "exit-in-flight"
  case noPermission = "no-permission"
  case trapProcessOffQueue = "trap-process-off-queue"
  case trapProcessInCompletion = "trap-process-in-completion"
  case trapProcessInTask = "trap-process-in-task"
  case trapConcurrentQueue = "trap-concurrent-queue"
  case trapNegativeBuffer = "trap-negative-buffer"
  case trapOddAlignment = "trap-odd-alignment"
  case trapSlice = "trap-slice"
  case trapInterval = "trap-interval"
  case trapIntervalInSeconds = "trap-interval-in-seconds"
  case trapOffExecutor = "trap-off-executor"
  case trapOtherExecutor = "trap-other-executor"
  case actorThreads = "actor-threads"
  case faultFileSystem = "fault-file-system"
  case powerCutDisk = "power-cut-disk"
}

/// Makes one request and waits for its completion.
func outcome(
  _ request: (@escaping AIOCompletion) throws -> AIORequest
) throws -> Result<Int, AIOError> {
  let done = DispatchSemaphore(value: 0)
  nonisolated(unsafe) var outcome: Result<Int, AIOError>?  // written before the signal
  _ = try request {
    outcome = $0
    done.signal()
  }
  done.wait()
  return outcome!
}

func file(_ name: String = "probe", caching: AIOFile.Caching = .direct) throws -> AIOFile {
  try AIOFile.open(directory.appending(name), .readWrite, options: .create, caching: caching)
}

/// An actor on a context's loop.
actor Resident {
  let context: AIOContext
  nonisolated var unownedExecutor: UnownedSerialExecutor {
    context.executor.asUnownedSerialExecutor()
  }

  init(_ context: AIOContext) { self.context = context }

  /// Counts the threads that it runs on while it awaits a thousand reads, and those of Swift's own
  /// pool, which have nothing to do.
  func run(_ file: AIOFile) {
    Task {
      do {
        try await read(file)
      } catch {
        print(error)
      }
      exit(0)
    }
  }

  private func read(_ file: AIOFile) async throws {
    var buffer = AIOUniqueBuffer(count: 4096)
    _ = try await context.write(file, at: 0, from: buffer)
    var threads: Set<UInt> = []
    for _ in 0..<1000 {
      threads.insert(UInt(pthread_self()))
      _ = try await context.read(file, at: 0, into: &buffer)
      threads.insert(UInt(pthread_self()))
    }
    let all = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/task")
    let pool = all.filter { thread in
      let name = try? String(contentsOfFile: "/proc/self/task/\(thread)/comm", encoding: .utf8)
      return name?.contains("initiated") == true
    }
    print("threads \(threads.count), of the pool \(pool.count)")
  }
}

switch command {
case .verbs:
  let context = try AIOContext(queueDepth: 4)
  let file = try file()
  let buffers = [AIOBuffer(count: 4096), AIOBuffer(count: 8192)]
  // Extends the file, for which the kernel would sleep; the second time there are blocks already.
  print("APPEND", try outcome { try context.write(file, at: 4096, from: buffers, completion: $0) })
  print("PWRITEV", try outcome { try context.write(file, at: 4096, from: buffers, completion: $0) })
  print("PREADV", try outcome { try context.read(file, at: 4096, into: buffers, completion: $0) })
  print("FSYNC", try outcome { try context.fsync(file, completion: $0) })
  print("FDSYNC", try outcome { try context.fdatasync(file, completion: $0) })
  // Where there are blocks already, so that nothing has to be allocated.
  print(
    "PWRITE", try outcome { try context.write(file, at: 4096, from: buffers[0], completion: $0) })
  print("PREAD", try outcome { try context.read(file, at: 4096, into: buffers[0], completion: $0) })
  // Asked for in one turn of the loop: one io_submit.
  let done = DispatchSemaphore(value: 0)
  try context.queue.sync {
    for block in 0..<3 {
      try context.read(file, at: Int64(block * 4096), into: AIOBuffer(count: 4096)) { _ in
        done.signal()
      }
    }
  }
  for _ in 0..<3 { done.wait() }
  let closed = DispatchSemaphore(value: 0)
  context.close { closed.signal() }
  closed.wait()

case .writeOptions:
  let context = try AIOContext(queueDepth: 4)
  let direct = try file()
  let block = AIOBuffer(count: 4096)
  for options in [AIOWriteOptions.dataSync, .dataSync, .sync] {
    _ = try outcome {
      try context.write(direct, at: 0, from: block, options: options, completion: $0)
    }
  }
  let buffered = try file("buffered", caching: .buffered)
  let group = DispatchGroup()
  // Asked for in one turn of the loop, and behind the end of the file, so that all wait for a
  // thread together.
  context.queue.sync {
    for number in 0..<24 {
      group.enter()
      let options: AIOWriteOptions = number / 8 == 1 ? .dataSync : []
      try! context.write(  // there is room, and nothing is wrong with it
        buffered, at: Int64(number * 4096), from: block, options: options
      ) { _ in group.leave() }
    }
  }
  group.wait()
  let places = (0..<8).map { _ in DispatchSemaphore(value: 0) }
  nonisolated(unsafe) var offsets = [Int](repeating: -1, count: 8)  // written before the signals
  context.queue.sync {
    for number in 0..<8 {
      try! context.append(buffered, from: block, options: .dataSync) {  // as above
        offsets[number] = (try? $0.get()) ?? -1
        places[number].signal()
      }
    }
  }
  for place in places { place.wait() }
  print(offsets)
  let ended = DispatchSemaphore(value: 0)
  context.close { ended.signal() }
  ended.wait()

case .replace, .replaceNone:
  let replacement = try AIOReplacement.begin(
    directory.appending("state"), existing: command == .replace ? .replace : .keep)
  try replacement.commit()
  print("replaced")

case .channel:
  let ended = DispatchSemaphore(value: 0)
  let queue = DispatchQueue(label: "probe")
  let channel = AIOChannel(
    type: .random, path: directory.appending("file").string, oflag: O_RDONLY, mode: 0, queue: queue
  ) { error in
    print("error \(error)")
    ended.signal()
  }
  channel.close()
  ended.wait()

case .fileSizeLimit:
  var limit = rlimit(rlim_cur: 8192, rlim_max: 8192)
  setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit)
  let context = try AIOContext(queueDepth: 4)
  let file = try file()
  let buffer = AIOBuffer(count: 8192)
  for offset in [Int64(0), 4096, 8192] {
    let result = try outcome { try context.write(file, at: offset, from: buffer, completion: $0) }
    switch result {
    case .success(let count): print(offset, count)
    case .failure(let error): print(offset, error.code, error.transferred)
    }
  }

case .create:
  // Whether there is AIO here.
  do {
    let context = try AIOContext(queueDepth: 4)
    print("created", context.queueDepth)
  } catch {
    print(error.code, error)
  }

case .growPastLimit: try growPastFileSizeLimit()
case .writePastLimit: try writePastFileSizeLimitOnMainQueue()
case .fewDescriptors: try createWithFewDescriptors()
case .createLate: try createLate()
case .workers: try useWorkers()
case .appends: try appendTogether(try file())
case .open: openPath(directory)
case .openWithoutProc: try openWithoutProc()
case .openCached: try openCached()
case .readNow: try readNow(isOthers: false)
case .readNowOthers: try readNow(isOthers: true)
case .sendToClosed: try sendToClosed()
case .watchPipe: try watchPipe()
case .alignment: try printAlignment(directory)
case .lease: try holdLease()

case .threads:
  // The same verbs, without AIO.
  var options = AIOContext.Options()
  options.withoutKernelAIO = .threads
  let context = try AIOContext(queueDepth: 4, options: options)
  print("AIO", context.usesKernelAIO)
  let file = try file()
  let buffers = [AIOBuffer(count: 4096), AIOBuffer(count: 8192)]
  for index in buffers.indices {
    buffers[index].withUnsafeMutableBytes {
      _ = $0.initializeMemory(as: UInt8.self, repeating: UInt8(index + 1))
    }
  }
  print("PWRITEV", try outcome { try context.write(file, at: 0, from: buffers, completion: $0) })
  print("FSYNC", try outcome { try context.fsync(file, completion: $0) })
  print("FDSYNC", try outcome { try context.fdatasync(file, completion: $0) })
  let whole = AIOBuffer(count: 16384)
  print("PREAD", try outcome { try context.read(file, at: 0, into: whole, completion: $0) })
  whole.withUnsafeBytes { print("bytes", $0[0], $0[4095], $0[4096], $0[12287], $0[12288]) }
  print("EOF", try outcome { try context.read(file, at: 1 << 20, into: whole, completion: $0) })
  let done = DispatchGroup()
  for block in 0..<100 {
    done.enter()
    try context.write(file, at: Int64(block * 4096), from: buffers[0]) {
      guard case .success(4096) = $0 else { fatalError("\($0)") }
      done.leave()
    }
  }
  done.wait()
  print("asleep", context.statistics.offloadSubmits > 100)
  print("waits", context.statistics.waits)
  let closed = DispatchSemaphore(value: 0)
  context.close { closed.signal() }
  closed.wait()

case .workload:
  // PROBE_SECONDS: for how long; else PROBE_REQUESTS, some thousands.
  let environment = ProcessInfo.processInfo.environment
  let seconds = environment["PROBE_SECONDS"].flatMap(Double.init)
  let requests = environment["PROBE_REQUESTS"].flatMap(Int.init) ?? 3000
  let workload = try Workload(
    in: directory, requests: seconds == nil ? requests : nil, seconds: seconds)
  guard workload.run(deadline: (seconds ?? 0) + 50) else {
    print("only \(workload.succeeded) succeeded: \(workload.statistics)")
    exit(1)
  }
  let failures = workload.failed.values.reduce(0, +)
  print(
    "succeeded \(workload.succeeded) failed \(failures) wrong \(workload.wrong)", workload.failed,
    "bytes \(workload.bytes)")
  if seconds != nil { print(workload.statistics) }

case .fork:
  let context = try AIOContext(queueDepth: 4)
  let file = try file()
  let buffer = AIOBuffer(count: 4096)
  print("parent", try outcome { try context.write(file, at: 0, from: buffer, completion: $0) })
  // Something in flight while the child plays with the context.
  let inFlight = DispatchSemaphore(value: 0)
  try context.read(file, at: 0, into: buffer) { _ in inFlight.signal() }
  let child = cprobe_fork()
  if child == 0 {
    do {
      try context.read(file, at: 0, into: buffer) { _ in print("child: completed") }
      print("child: accepted")
    } catch {
      print("child: \(error)")
    }
    context.close { print("child: closed") }
    do {
      _ = try AIOContext(queueDepth: 4)
      print("child: made another")
    } catch {
      print("child: another:", error.code)
    }
    do {
      try context.fsync(file) { _ in }
    } catch {
      print("child:", error.code)
    }
    fflush(nil)
    _exit(0)
  }
  var status: Int32 = 0
  waitpid(child, &status, 0)
  inFlight.wait()
  print("parent", try outcome { try context.fdatasync(file, completion: $0) })

case .forkStatistics: try askInChildren()
case .forkSources: try changeInChildren()

case .exitInFlight:
  let context = try AIOContext(queueDepth: 32)
  let file = try file()
  for block in 0..<64 {
    try context.write(file, at: Int64(block) << 20, from: AIOBuffer(count: 1 << 20)) { _ in }
  }
  context.queue.sync { _ = context.process() }
  exit(7)

case .noPermission:
  cprobe_become_nobody()
  do {
    _ = try AIOFile.open(directory.appending("secret"), .readOnly)
    print("opened")
  } catch {
    print(error.code, error)
  }

case .scan:
  let (completed, failed) = try Scan(file()).run()
  print("completed \(completed) failed \(failed)")

case .trapProcessOffQueue:
  try AIOContext(queueDepth: 4).process()

case .trapProcessInCompletion:
  let context = try AIOContext(queueDepth: 4)
  _ = try outcome { completion in
    try context.fsync(try file()) {
      context.process()
      completion($0)
    }
  }

case .trapConcurrentQueue:
  let queue = DispatchQueue(label: "concurrent", attributes: .concurrent)
  let context = try AIOContext(queueDepth: 4, queue: queue)
  let file = try file()
  // The turn that runs the completion is still running when the other begins.
  let (began, never) = (DispatchSemaphore(value: 0), DispatchSemaphore(value: 0))
  try context.fsync(file) { _ in
    began.signal()
    never.wait()
  }
  began.wait()
  queue.sync { _ = context.process() }

case .trapNegativeBuffer:
  _ = AIOBuffer(count: Int(arguments.count) - 10)
case .trapOddAlignment:
  _ = AIOBuffer(count: 512, alignment: 3)
case .trapSlice:
  _ = AIOBuffer(count: 512)[256..<1024]

case .trapInterval:
  try AIOContext(queueDepth: 4).makeTimerSource().schedule(
    deadline: .now(), repeating: .seconds(-1))

case .trapIntervalInSeconds:
  try AIOContext(queueDepth: 4).makeTimerSource().schedule(deadline: .now(), repeating: .nan)

case .trapProcessInTask:
  let context = try AIOContext(queueDepth: 4)
  Task(executorPreference: context.taskExecutor) { context.process() }
  RunLoop.main.run()

case .trapOffExecutor:
  Resident(try AIOContext(queueDepth: 4)).assumeIsolated { _ in }

case .trapOtherExecutor:
  // An actor of one context gives its handlers to another.
  let resident = Resident(try AIOContext(queueDepth: 4))
  let other = try AIOContext(queueDepth: 4)
  let file = try file()
  try resident.context.queue.sync {
    try resident.assumeIsolated { resident in
      _ = try other.read(file, at: 0, into: AIOBuffer(count: 4096), isolation: resident) { _ in }
    }
  }

case .actorThreads:
  // On the main queue, which the run loop serves on one thread.
  let context = try AIOContext(queueDepth: 4, queue: .main)
  let file = try file()
  let resident = Resident(context)
  context.queue.async { resident.assumeIsolated { $0.run(file) } }
  RunLoop.main.run()

case .faultFileSystem:
  // Serves a file system at DIRECTORY until standard input ends.
  exit(cfaultfs_run(directory.string))

case .powerCutDisk:
  // Serves a disk at DIRECTORY, which begins as the file of the same name and `.contents`; its
  // filesystem is mounted at the same name and `.mounted`.
  let name = directory.string
  exit(cpowercut_run(name, "\(name).contents", "\(name).mounted"))
}

/// 64 appends in one turn, of which the file may have 50 and a bit.
func appendTogether(_ file: AIOFile) throws {
  var limit = rlimit(rlim_cur: 50 * 2048 + 1024, rlim_max: 50 * 2048 + 1024)
  setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit)
  let context = try AIOContext(queueDepth: 64)
  let blocks = (0..<64).map { number in
    let block = AIOBuffer(count: 2048)
    block.withUnsafeMutableBytes {
      _ = $0.initializeMemory(as: UInt8.self, repeating: UInt8(number))
    }
    return block
  }
  let (group, lock) = (DispatchGroup(), NSLock())
  nonisolated(unsafe) var results = [Result<Int, AIOError>?](repeating: nil, count: 64)
  try context.queue.sync {
    for (number, block) in blocks.enumerated() {
      group.enter()
      try context.write(file, at: Int64(number * 2048), from: block) { result in
        lock.withLock { results[number] = result }
        group.leave()
      }
    }
  }
  group.wait()
  print("whole", results.prefix { $0 == .success(2048) }.count)
  var untouched = 0
  for case .failure(let error)? in results {
    if error.transferred > 0 {
      print(error.code, "after", error.transferred)
    } else if error.code == .fileSizeLimit {
      untouched += 1
    }
  }
  print("fileSizeLimit after 0:", untouched)
  let bytes = AIOBuffer(count: 50 * 2048)
  let read = try outcome { try context.read(file, at: 0, into: bytes, completion: $0) }
  let isAsWritten =
    read == .success(bytes.count)
    && bytes.withUnsafeBytes { bytes in
      bytes.enumerated().allSatisfy { $0.element == UInt8($0.offset / 2048) }
    }
  print(isAsWritten ? "bytes as written" : "wrong bytes")
}

/// Forks while other threads ask for the statistics, so that many a child has their lock from a
/// thread that it does not have.
func askInChildren() throws {
  let context = try AIOContext(queueDepth: 4)
  for number in 0..<2 {
    DispatchQueue(label: "asks.\(number)").async {
      var sum = 0
      while true { sum &+= context.statistics.turns }
    }
  }
  var answered = 0
  for _ in 0..<300 {
    let child = cprobe_fork()
    if child == 0 {
      // Ends a child that waits for ever.
      alarm(5)
      _ = context.statistics
      _exit(0)
    }
    var status: Int32 = 0
    waitpid(child, &status, 0)
    if status == 0 { answered += 1 }
  }
  print("answered", answered)
  fflush(nil)
  _exit(0)
}
