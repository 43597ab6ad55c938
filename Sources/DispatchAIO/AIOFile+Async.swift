// SPDX-License-Identifier: Apache-2.0
//
// What is a plain system call, for tasks: on a thread that may sleep.

public import SystemPackage

/// The plain system calls for tasks: the thread that sleeps in the disk is not the caller's. None of
/// them is cut short by cancellation.
extension AIOFile {
  private static func offloaded<Value: Sendable>(
    on device: UInt64?, _ body: @escaping @Sendable () throws(AIOError) -> Value,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Value {
    // Resumed once, by the block.
    try await suspended(isolation: isolation) { (resumption: Resumption<Result<Value, AIOError>>) in
      BlockingCalls.run(on: device) { resumption.resume(returning: Result(catching: body)) }
    }.get()
  }

  /// Opens a file: see ``open(_:_:options:permissions:caching:)-(_,_,_,_,_)``, off the caller's
  /// thread.
  public static func open(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode,
    options: FileDescriptor.OpenOptions = [],
    permissions: FilePermissions = [.ownerReadWrite, .groupRead, .otherRead],
    caching: Caching = .direct,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> AIOFile {
    try await offloaded(on: nil) { () throws(AIOError) in
      try open(path, mode, options: options, permissions: permissions, caching: caching)
    }
  }

  /// The file's size in bytes, off the caller's thread.
  public func size(isolation: isolated (any Actor)? = #isolation) async throws(AIOError) -> Int64 {
    try await Self.offloaded(on: file.traits.device) { [self] () throws(AIOError) in try size() }
  }

  /// Takes room on the disk for the bytes of `range`: see ``preallocate(_:)-(_)``, off the caller's
  /// thread.
  public func preallocate(
    _ range: Range<Int64>,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await Self.offloaded(on: file.traits.device) { [self] () throws(AIOError) in
      try preallocate(range)
    }
  }

  /// Sets the file's size: see ``truncate(to:)-(_)``, off the caller's thread.
  public func truncate(
    to size: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await Self.offloaded(on: file.traits.device) { [self] () throws(AIOError) in
      try truncate(to: size)
    }
  }

  /// Closes the file, and returns once its accepted requests have completed and its descriptor has
  /// been closed.
  public func close(isolation: isolated (any Actor)? = #isolation) async {
    // Resumed once: `close` calls back once.
    await suspended(isolation: isolation) { resumption in
      close { resumption.resume() }
    }
  }
}
