// SPDX-License-Identifier: Apache-2.0

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
