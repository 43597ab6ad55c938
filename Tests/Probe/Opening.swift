// SPDX-License-Identifier: Apache-2.0
//
// What the probe opens for who counts its system calls: each step begins with a look at a path that
// does not exist and that names the step.

import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

private func step(_ name: String) {
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

extension Result where Failure == any Error {
  fileprivate init(_ body: () async throws -> Success) async {
    do {
      self = .success(try await body())
    } catch {
      self = .failure(error)
    }
  }
}
