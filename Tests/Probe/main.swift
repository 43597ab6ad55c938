// SPDX-License-Identifier: Apache-2.0
//
// A small program that the tests run, and look at from outside: under strace, under a resource
// limit, or to see it trap. Not for anybody else.
//
//   dispatch-aio-probe COMMAND DIRECTORY

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
  case fileSizeLimit = "file-size-limit"
  case trapProcessOffQueue = "trap-process-off-queue"
  case trapProcessInCompletion = "trap-process-in-completion"
  case trapConcurrentQueue = "trap-concurrent-queue"
  case trapNegativeBuffer = "trap-negative-buffer"
  case trapOddAlignment = "trap-odd-alignment"
  case trapSlice = "trap-slice"
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

func file() throws -> AIOFile {
  try AIOFile.open(directory.appending("probe"), .readWrite, options: .create)
}

switch command {
case .verbs:
  let context = try AIOContext(queueDepth: 4)
  let file = try file()
  let buffers = [AIOBuffer(count: 4096), AIOBuffer(count: 8192)]
  print("PWRITEV", try outcome { try context.write(file, at: 4096, from: buffers, completion: $0) })
  print("PREADV", try outcome { try context.read(file, at: 4096, into: buffers, completion: $0) })
  print("FSYNC", try outcome { try context.fsync(file, completion: $0) })
  print("FDSYNC", try outcome { try context.fdatasync(file, completion: $0) })
  print("PWRITE", try outcome { try context.write(file, at: 0, from: buffers[0], completion: $0) })
  print("PREAD", try outcome { try context.read(file, at: 0, into: buffers[0], completion: $0) })
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
    case .failure(let error): print(offset, error.code)
    }
  }

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
}
