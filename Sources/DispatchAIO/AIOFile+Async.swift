// SPDX-License-Identifier: Apache-2.0
//
// The system calls on files that kernel AIO does not have, for tasks: on threads that may sleep.

public import SystemPackage

/// The blocking calls for tasks: they block a thread of the library's, and not the caller's.
/// Cancellation does not shorten them.
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

  /// Opens a file: on the caller's thread if that takes no waiting (see
  /// ``openNow(_:_:beneath:options:caching:)``), and otherwise off it. Everything else is as
  /// for ``open(_:_:beneath:options:permissions:caching:)-(_,_,_,_,_,_)``. Corresponds to
  /// `openat2(2)` and `open(2)`.
  public static func open(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode, beneath directory: AIODirectory? = nil,
    options: FileDescriptor.OpenOptions = [],
    permissions: FilePermissions = [.ownerReadWrite, .groupRead, .otherRead],
    caching: Caching = .direct,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> AIOFile {
    if let file = try openNow(
      path, mode, beneath: directory, options: options, caching: caching)
    {
      return file
    }
    return try await offloaded(on: directory?.device) { () throws(AIOError) in
      try open(
        path, mode, beneath: directory, options: options, permissions: permissions,
        caching: caching)
    }
  }

  /// The file's size in bytes, asked for off the caller's thread: see ``size()-()``. Corresponds to
  /// `fstat(2)`.
  public func size(isolation: isolated (any Actor)? = #isolation) async throws(AIOError) -> Int64 {
    try await Self.offloaded(on: file.traits.device) { [self] () throws(AIOError) in try size() }
  }

  /// Allocates room on the disk off the caller's thread: see ``preallocate(_:)-(_)``. Corresponds
  /// to `fallocate(2)`.
  public func preallocate(
    _ range: Range<Int64>,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await Self.offloaded(on: file.traits.device) { [self] () throws(AIOError) in
      try preallocate(range)
    }
  }

  /// Sets the file's size off the caller's thread: see ``truncate(to:)-(_)``. Corresponds to
  /// `ftruncate(2)`.
  public func truncate(
    to size: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await Self.offloaded(on: file.traits.device) { [self] () throws(AIOError) in
      try truncate(to: size)
    }
  }

  /// Closes the file, and returns once its accepted requests have completed and its descriptor has
  /// been closed: see ``close(queue:completion:)``. What can be closed in place does not suspend
  /// the caller.
  public func close(isolation: isolated (any Actor)? = #isolation) async {
    file.close()
    if isDescriptorClosed { return }
    // Resumed once: `close` calls back once.
    await suspended(isolation: isolation) { resumption in
      close { resumption.resume() }
    }
  }
}
