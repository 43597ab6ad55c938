// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// The calls on entries for tasks: they block a thread of the library's, and not the caller's.
/// Cancellation does not shorten them.
extension AIODirectory {
  /// Makes the entries of a directory durable off the caller's thread: see ``sync(_:)-(_)``.
  public func sync(
    _ path: FilePath = ".", isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: device) { [self] () throws(AIOError) in try sync(path) }
  }

  /// Renames off the caller's thread: see ``rename(_:to:in:replaces:)-(_,_,_,_)``.
  public func rename(
    _ path: FilePath, to newPath: FilePath, in directory: AIODirectory? = nil,
    replaces: Bool = true, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: device) { [self] () throws(AIOError) in
      try rename(path, to: newPath, in: directory, replaces: replaces)
    }
  }

  /// Removes a name off the caller's thread: see ``unlink(_:)-(_)``.
  public func unlink(
    _ path: FilePath, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: device) { [self] () throws(AIOError) in try unlink(path) }
  }

  /// Removes an empty directory off the caller's thread: see ``removeDirectory(_:)-(_)``.
  public func removeDirectory(
    _ path: FilePath, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: device) { [self] () throws(AIOError) in
      try removeDirectory(path)
    }
  }

  /// Makes a directory off the caller's thread: see ``makeDirectory(_:permissions:)-(_,_)``.
  public func makeDirectory(
    _ path: FilePath,
    permissions: FilePermissions = [
      .ownerReadWriteExecute, .groupReadExecute, .otherReadExecute,
    ],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: device) { [self] () throws(AIOError) in
      try makeDirectory(path, permissions: permissions)
    }
  }

  /// The size, the times and so on, asked for off the caller's thread: see
  /// ``status(of:followsLink:)-(_,_)``.
  public func status(
    of path: FilePath, followsLink: Bool = false, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> AIOFile.Status {
    try await BlockingCalls.value(on: device) { [self] () throws(AIOError) in
      try status(of: path, followsLink: followsLink)
    }
  }

  /// The entries of a directory, read off the caller's thread: see ``entries(_:)-(_)``.
  public func entries(
    _ path: FilePath = ".", isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> [Entry] {
    try await BlockingCalls.value(on: device) { [self] () throws(AIOError) in try entries(path) }
  }
}
