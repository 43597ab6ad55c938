// SPDX-License-Identifier: Apache-2.0
//
// What the probe opens and reads in place for who counts its system calls: each step begins with a
// look at a path that does not exist and that names the step.

import CProbe
import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

func step(_ name: String) {
  _ = access("/step/\(name)", F_OK)
}

/// Opens and closes files that the kernel's lookup cache knows.
func openCached() throws {
  for name in ["one", "two", "three", "written"] {
    let data = Data(repeating: 1, count: 65536)
    try data.write(to: URL(fileURLWithPath: directory.appending(name).string))
  }
  symlink("two", directory.appending("link").string)
  let done = DispatchSemaphore(value: 0)
  Task.detached {
    do {
      // The first file of a file system is always opened by a thread that may sleep.
      await (try AIOFile.open(directory.appending("one"), .readOnly, caching: .buffered)).close()
      for caching in [AIOFile.Caching.buffered, .direct] {
        try await openPlain(caching)
        try await openBeneath(caching)
      }
      try await closeOthers()
      step("end")
    } catch {
      print(error)
    }
    done.signal()
  }
  done.wait()
  print("done")
}

private func open(
  _ what: String, _ path: FilePath, beneath root: AIODirectory? = nil, _ caching: AIOFile.Caching
) async throws {
  step("open-\(what)-\(caching)")
  let file = try await AIOFile.open(path, .readOnly, beneath: root, caching: caching)
  let status = file.status
  step("close-\(what)-\(caching)")
  await file.close()
  step("none")
  if status.size != 65536 { print("\(what): \(status)") }
}

private func openPlain(_ caching: AIOFile.Caching) async throws {
  try await open("looked-up", directory.appending("one"), caching)
  try await open("neighbour", directory.appending("two"), caching)
  try await open("again", directory.appending("one"), caching)
  try await open("link", directory.appending("link"), caching)
}

private func openBeneath(_ caching: AIOFile.Caching) async throws {
  let root = try AIODirectory.open(directory)
  try await open("beneath-looked-up", "one", beneath: root, caching)
  try await open("beneath-neighbour", "two", beneath: root, caching)
  try await open("beneath-link", "link", beneath: root, caching)
  step("open-missing-\(caching)")
  let missing = await Result { try await AIOFile.open("none", .readOnly, beneath: root) }
  step("none")
  if case .success = missing { print("opened what is missing") }
}

/// Closes what may not be closed in place.
private func closeOthers() async throws {
  let written = try await AIOFile.open(directory.appending("written"), .readWrite)
  step("close-written")
  await written.close()
  let unlinked = try await AIOFile.open(directory.appending("three"), .readOnly)
  unlink(directory.appending("three").string)
  step("close-unlinked")
  await unlinked.close()
}

/// Reads what is in the page cache, and what is not.
///
/// - Parameter isOthers: Whether the file is another user's, of which the kernel does not tell what
///   is cached.
func readNow(isOthers: Bool) throws {
  let path = directory.appending("cached")
  try Data(repeating: 1, count: 65536).write(to: URL(fileURLWithPath: path.string))
  let file = try AIOFile.open(path, .readOnly, caching: .buffered)
  let direct = try AIOFile.open(path, .readOnly)
  fsync(file.fileDescriptor.rawValue)
  if isOthers { cprobe_become_nobody() }
  let buffer = AIOBuffer(count: 8192)
  func read(_ what: String, _ file: AIOFile, at offset: Int64) throws -> Int? {
    step(what)
    let count = try file.readNow(at: offset, into: buffer)
    step("none")
    return count
  }
  func show(_ what: String, _ file: AIOFile, at offset: Int64) throws {
    print("\(what): \(try read(what, file, at: offset).map(String.init) ?? "nil")")
  }
  try show("cached", file, at: 100)
  try show("at-end", file, at: 65536 - 100)
  try show("beyond-end", file, at: 65536)
  try show("direct", direct, at: 0)
  // A page may be on its way to the list from which it can be evicted.
  let deadline = DispatchTime.now() + 10
  while DispatchTime.now() < deadline {
    posix_fadvise(file.fileDescriptor.rawValue, 0, 0, POSIX_FADV_DONTNEED)
    if try read("evicted", file, at: 0) == nil { return print("evicted: nil") }
  }
}

extension Result where Failure == any Error {
  fileprivate init(_ body: () async throws -> Success) async {
    do {
      self = .success(try await body())
    } catch {
      self = .failure(error)
    }
  }
}
