// SPDX-License-Identifier: Apache-2.0

import CProbe
import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

/// Watches a pipe by its name, until it has had an event, and says what each call answers.
func watchPipe() throws {
  let path = directory.appending("pipe")
  mkfifo(path.string, 0o600)
  let pipe = open(path.string, O_RDWR | O_NONBLOCK)
  let context = try AIOContext(queueDepth: 4)
  let happened = DispatchSemaphore(value: 0)
  var source: AIOSource?
  do {
    source = try context.makeReadSource(fileDescriptor: pipe)
    print("source: made")
  } catch {
    print("source:", error.code, error.errno?.rawValue ?? 0, error)
  }
  do {
    _ = try context.makeReadSource(fileDescriptor: pipe)
    print("second: made")
  } catch {
    print("second:", error.code, error.errno?.rawValue ?? 0, error)
  }
  do {
    try context.poll(pipe, for: .priority) {
      print("poll:", $0)
      happened.signal()
    }
    print("poll: made")
  } catch {
    print("poll:", error.code, error.errno?.rawValue ?? 0, error)
    happened.signal()
  }
  if let source {
    source.setEventHandler {
      var byte: UInt8 = 0
      _ = read(pipe, &byte, 1)
      happened.signal()
    }
    source.activate()
    _ = write(pipe, "x", 1)
    happened.wait()
  }
  let closed = DispatchSemaphore(value: 0)
  context.close { closed.signal() }
  happened.wait()
  closed.wait()
  print("closed")
}

/// Sends a file to sockets whose peers are gone, where SIGPIPE ends a program, and says what each
/// call answers.
func sendToClosed() throws {
  signal(SIGPIPE, SIG_DFL)
  let path = directory.appending("sent")
  let contents = try FileDescriptor.open(
    path, .writeOnly, options: .create, permissions: .ownerReadWrite)
  try contents.closeAfter { _ = try contents.writeAll([UInt8](repeating: 7, count: 100_000)) }
  let file = try AIOFile.open(path, .readOnly, caching: .automatic)
  let context = try AIOContext(queueDepth: 4)
  let done = DispatchSemaphore(value: 0)
  for header in [[], [UInt8](repeating: 1, count: 10)] {
    for count in [100, 100_000] {
      var ends: [Int32] = [0, 0]
      socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0, &ends)
      close(ends[1])
      do {
        print("in place", try context.sendIfCached(file, at: 0, count: count, to: ends[0]))
      } catch {
        print("in place", error.errno?.rawValue ?? 0)
      }
      try context.send(file, at: 0, count: count, to: ends[0], header: header) {
        if case .failure(let error) = $0 { print("send", error.errno?.rawValue ?? 0) }
        done.signal()
      }
      done.wait()
      close(ends[0])
    }
  }
}

/// Forks while another thread changes a source, and lets each child change what the parent watches,
/// whose events must arrive all the same.
func changeInChildren() throws {
  let context = try AIOContext(queueDepth: 4)
  func makePipe() -> (output: Int32, input: Int32) {
    var ends: [Int32] = [0, 0]
    pipe(&ends)
    return (ends[0], ends[1])
  }
  let (watched, polled) = (makePipe(), makePipe())
  let (event, end) = (DispatchSemaphore(value: 0), DispatchSemaphore(value: 0))
  let source = try context.makeReadSource(fileDescriptor: watched.output)
  source.setEventHandler {
    source.cancel()
    event.signal()
  }
  source.activate()
  let poll = try context.poll(polled.output, for: .readable) { _ in end.signal() }
  let timer = try context.makeTimerSource()
  timer.activate()
  let other = try context.makeReadSource(fileDescriptor: makePipe().output)
  other.activate()
  DispatchQueue(label: "changes").async {
    while true {
      other.suspend()
      other.resume()
    }
  }
  var unchanged = 0
  for _ in 0..<100 {
    let child = cprobe_fork()
    if child == 0 {
      // Ends a child that waits for ever.
      alarm(5)
      timer.schedule(deadline: .now())
      source.suspend()
      source.resume()
      source.cancel()
      context.async {}
      _exit(source.isCancelled && poll.cancel() == .alreadyCompleted ? 0 : 1)
    }
    var status: Int32 = 0
    waitpid(child, &status, 0)
    if status == 0 { unchanged += 1 }
  }
  print("children", unchanged)
  for pipe in [watched, polled] { _ = write(pipe.input, "x", 1) }
  for (name, happened) in [("source", event), ("poll", end)] {
    print(name, happened.wait(timeout: .now() + 10))
  }
  fflush(nil)
  _exit(0)
}
