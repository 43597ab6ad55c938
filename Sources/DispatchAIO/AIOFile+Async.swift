// SPDX-License-Identifier: Apache-2.0
//
// The system calls on files that kernel AIO does not have, for tasks: on threads that may sleep.

public import SystemPackage

/// The blocking calls for tasks: they block a thread of the library's, and not the caller's.
/// Cancellation does not shorten them.
extension AIOFile {
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
    return try await BlockingCalls.value(on: directory?.device) { () throws(AIOError) in
      try open(
        path, mode, beneath: directory, options: options, permissions: permissions,
        caching: caching)
    }
  }

  /// The file's size in bytes, asked for off the caller's thread: see ``size()-()``. Corresponds to
  /// `fstat(2)`.
  public func size(isolation: isolated (any Actor)? = #isolation) async throws(AIOError) -> Int64 {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in try size()
    }
  }

  /// Allocates room on the disk off the caller's thread: see ``preallocate(_:)-(_)``. Corresponds
  /// to `fallocate(2)`.
  public func preallocate(
    _ range: Range<Int64>,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try preallocate(range)
    }
  }

  /// Sets the file's size off the caller's thread: see ``truncate(to:)-(_)``. Corresponds to
  /// `ftruncate(2)`.
  public func truncate(
    to size: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
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

/// The calls on ranges for tasks.
extension AIOFile {
  /// Frees the disk space of a range off the caller's thread: see ``punchHole(_:)-(_)``.
  /// Corresponds to `fallocate(2)`.
  public func punchHole(
    _ range: Range<Int64>, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try punchHole(range)
    }
  }

  /// Makes a range read as zeros off the caller's thread: see ``zero(_:)-(_)``. Corresponds to
  /// `fallocate(2)`.
  public func zero(
    _ range: Range<Int64>, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try zero(range)
    }
  }

  /// Removes a range off the caller's thread: see ``collapse(_:)-(_)``. Corresponds to
  /// `fallocate(2)`.
  public func collapse(
    _ range: Range<Int64>, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try collapse(range)
    }
  }

  /// Copies bytes to another file off the caller's thread: see ``copy(_:to:at:)-(_,_,_)``.
  /// Corresponds to `copy_file_range(2)`.
  @discardableResult
  public func copy(
    _ range: Range<Int64>, to destination: AIOFile, at offset: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int64 {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try copy(range, to: destination, at: offset)
    }
  }

  /// Makes another file share blocks off the caller's thread: see ``clone(_:to:at:)-(_,_,_)``.
  /// Corresponds to `ioctl(2)` with `FICLONERANGE`.
  public func clone(
    _ range: Range<Int64>, to destination: AIOFile, at offset: Int64,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try clone(range, to: destination, at: offset)
    }
  }

  /// The next byte that is not in a hole, asked for off the caller's thread: see
  /// ``nextData(from:)-(_)``. Corresponds to `lseek(2)`.
  public func nextData(
    from offset: Int64, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int64? {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try nextData(from: offset)
    }
  }

  /// The next hole, asked for off the caller's thread: see ``nextHole(from:)-(_)``. Corresponds to
  /// `lseek(2)`.
  public func nextHole(
    from offset: Int64, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int64? {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try nextHole(from: offset)
    }
  }

  /// Tells the page cache how a range will be used, off the caller's thread: see
  /// ``advise(_:_:)-(_,_)``. Corresponds to `posix_fadvise(2)`.
  public func advise(
    _ advice: Advice, _ range: Range<Int64>? = nil,
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try await BlockingCalls.value(on: file.traits.device) { [self] () throws(AIOError) in
      try advise(advice, range)
    }
  }
}
