// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Synchronization
import SystemPackage
import XCTest

/// A place for one value that another thread puts there. A second value fails the test, also when
/// it comes after the first was waited for.
final class Promise<Value: Sendable>: Sendable {
  private let semaphore = DispatchSemaphore(value: 0)
  private let value = Locked<Value?>(nil)

  func fulfil(_ value: Value, file: StaticString = #filePath, line: UInt = #line) {
    let isFirst = self.value.withLock { kept in
      guard kept == nil else { return false }
      kept = value
      return true
    }
    guard isFirst else {
      return XCTFail("it came more than once: \(value)", file: file, line: line)
    }
    semaphore.signal()
  }

  /// Waits for the value; fails the test when it does not come. Called once.
  func wait(
    seconds: Double = 30, file: StaticString = #filePath, line: UInt = #line
  ) throws -> Value {
    guard semaphore.wait(timeout: .now() + seconds) == .success else {
      XCTFail("nothing came within \(seconds) s", file: file, line: line)
      throw TimedOut()
    }
    return value.withLock { $0! }
  }

  struct TimedOut: Error {}
}

/// A value behind a lock that the Thread Sanitizer can see.
final class Locked<Value>: @unchecked Sendable {
  private var value: Value
  private let lock = NSLock()

  init(_ value: Value) { self.value = value }

  func withLock<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
    lock.lock()
    defer { lock.unlock() }
    return try body(&value)
  }
}

/// Asks again and again whether something holds that nobody announces; `false` when it does not
/// come to hold.
func eventually(within seconds: Double = 30, _ condition: () throws -> Bool) rethrows -> Bool {
  let deadline = DispatchTime.now() + seconds
  var rounds = 0
  while try !condition() {
    if DispatchTime.now() > deadline { return false }
    rounds += 1
    // What is about to be is waited for without sleep; what is not needs the processor.
    if rounds < 1000 { sched_yield() } else { usleep(1000) }
  }
  return true
}

typealias Outcome = Result<Int, AIOError>

extension AIOContext {
  /// Makes a request and waits for its completion. Not on the context's queue.
  func outcome(
    _ request: (_ completion: @escaping AIOCompletion) throws -> Void
  ) throws -> Outcome {
    let promise = Promise<Outcome>()
    try request { promise.fulfil($0) }
    return try promise.wait()
  }

  func readAndWait(_ file: AIOFile, at offset: Int64, into buffer: AIOBuffer) throws -> Outcome {
    try outcome { try read(file, at: offset, into: buffer, completion: $0) }
  }

  func writeAndWait(_ file: AIOFile, at offset: Int64, from buffer: AIOBuffer) throws -> Outcome {
    try outcome { try write(file, at: offset, from: buffer, completion: $0) }
  }

  /// Closes the context and waits until it has freed everything.
  func closeAndWait() throws {
    let closed = Promise<Void>()
    close { closed.fulfil(()) }
    try closed.wait()
  }
}

extension AIOBuffer {
  init(_ bytes: [UInt8], alignment: Int = 4096) {
    self.init(count: bytes.count, alignment: alignment)
    withUnsafeMutableBytes { $0.copyBytes(from: bytes) }
  }

  var array: [UInt8] { withUnsafeBytes { [UInt8]($0) } }

  func fill(_ byte: UInt8) {
    withUnsafeMutableBytes { _ = $0.initializeMemory(as: UInt8.self, repeating: byte) }
  }
}

/// Removes a file's pages from the page cache; fails the test when they stay there.
func evict(
  _ descriptor: Int32, size: Int, file: StaticString = #filePath, line: UInt = #line
) throws {
  // Only clean pages leave it; one that was just read in may be on its way to the list from which
  // it can be evicted.
  XCTAssertEqual(fsync(descriptor), 0, file: file, line: line)
  guard size > 0 else { return }
  let mapping = mmap(nil, size, PROT_READ, MAP_SHARED, descriptor, 0)
  guard let mapping, mapping != MAP_FAILED else { throw Errno(rawValue: errno) }
  defer { munmap(mapping, size) }
  var pages = [UInt8](repeating: 0, count: (size + 4095) / 4096)
  XCTAssertTrue(
    eventually {
      posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED)
      mincore(mapping, size, &pages)
      return !pages.contains { $0 & 1 != 0 }
    }, "it stays in the page cache", file: file, line: line)
}

func evict(_ cached: AIOFile, file: StaticString = #filePath, line: UInt = #line) throws {
  try evict(cached.fileDescriptor.rawValue, size: Int(cached.size()), file: file, line: line)
}

extension Result where Failure == AIOError {
  var code: AIOError.Code? {
    if case .failure(let error) = self { error.code } else { nil }
  }
}

/// Runs `body` on as many threads at once, and waits for them; fails the test when one does not
/// return within five minutes.
func onThreads(
  _ count: Int, file: StaticString = #filePath, line: UInt = #line,
  _ body: @escaping @Sendable (Int) -> Void
) {
  let group = DispatchGroup()
  for thread in 0..<count {
    DispatchQueue(label: "test.thread.\(thread)").async(group: group) { body(thread) }
  }
  XCTAssertEqual(group.wait(timeout: .now() + 300), .success, file: file, line: line)
}

/// The error that `body` throws, which must have `code`.
@discardableResult
func assertRefused<Result>(
  _ code: AIOError.Code, file: StaticString = #filePath, line: UInt = #line,
  _ body: () throws -> Result
) -> AIOError? {
  do {
    _ = try body()
    XCTFail("not refused", file: file, line: line)
  } catch let error as AIOError {
    XCTAssertEqual(error.code, code, "\(error)", file: file, line: line)
    return error
  } catch {
    XCTFail("\(error)", file: file, line: line)
  }
  return nil
}
