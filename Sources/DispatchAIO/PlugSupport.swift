// SPDX-License-Identifier: Apache-2.0
//
// What the plugs and the servers of this package need beneath the public face.

internal import CKernel
internal import PlatformLibc
package import SystemPackage

extension AIOFile {
  /// Calls `body` with the file's descriptor, which stays open until it returns.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/fileClosed``, or for the errno that
  ///   `body` throws.
  package func withDescriptor<Result>(
    _ operation: AIOError.Operation, _ body: (FileDescriptor) throws(Errno) -> Result
  ) throws(AIOError) -> Result {
    let subject = subject(operation)
    guard file.retain() else { throw .fileClosed(subject) }
    defer { file.release() }
    do throws(Errno) {
      return try body(fileDescriptor)
    } catch {
      throw AIOError(errno: error.rawValue, subject)
    }
  }

  /// Calls `body` with the file's descriptor, which stays open until it returns: a file that is
  /// closed meanwhile waits for it, as for a request.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/fileClosed``, or what `body` throws.
  package func withDescriptor<Result>(
    _ operation: AIOError.Operation, isolation: isolated (any Actor)? = #isolation,
    _ body: (FileDescriptor) async throws -> Result
  ) async throws -> Result {
    guard file.retain() else { throw AIOError.fileClosed(subject(operation)) }
    defer { file.release() }
    return try await body(fileDescriptor)
  }

  /// Whether the file is on a file system of this machine, so that its status is in memory.
  package var isLocal: Bool { file.traits.isLocal }

  /// Whether the file is as it was when it was opened: not written to, not removed, not renamed or
  /// replaced, all of which change the time of its last change. Corresponds to `statx(2)`.
  package var isUnchanged: Bool {
    guard file.retain() else { return false }
    defer { file.release() }
    var now = ckernel_status()
    // The structure is filled during the call.
    guard unsafe ckernel_status(file.descriptor, 0, &now) == 0 else { return false }
    return Status(now) == status
  }
}

extension AIOFile {
  /// Whether the file's descriptor is among the last that the process may have, which who can wait
  /// leaves to others: Dispatch, which opens a file once a second to look after its workers, ends
  /// the process if there is no descriptor for it. Corresponds to `getrlimit(2)`.
  package var isAmongLastDescriptors: Bool { ckernel_is_among_last(file.descriptor) != 0 }
}

extension AIOContext {
  /// A buffer of the memory that the context keeps for reads of any range, to read into in place:
  /// its contents are unspecified, and it is reused once the last reference to it is gone.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/system`` (`ENOMEM`).
  package func makeBuffer(count: Int) throws(AIOError) -> AIOBuffer {
    guard let memory = memoryPool.take(count) else {
      throw AIOError(.noMemory, .read, path: nil)
    }
    return AIOBuffer(BufferStorage(memory, of: memoryPool), 0..<count)
  }
}

extension AIODirectory {
  /// The status of what a path beneath the directory names, if the kernel's lookup cache has it, on
  /// a file system of this machine. A symbolic link at the end is followed. Never blocks, and is
  /// for any thread. Corresponds to `openat2(2)` with `RESOLVE_CACHED`, and `statx(2)`.
  ///
  /// - Returns: `nil` if the call might block, or failed: ``status(of:followsLink:isolation:)``
  ///   tells.
  package func cachedStatus(of path: FilePath) -> AIOFile.Status? {
    guard mount.kind.isLocal else { return nil }
    // The path's bytes are read during the call.
    let place = unsafe path.withPlatformString {
      unsafe ckernel_open(
        descriptor, $0, ckernel_o_path | O_CLOEXEC, 0,
        ckernel_resolve_beneath | ckernel_resolve_no_magic_links | ckernel_resolve_no_mounts
          | ckernel_resolve_cached)
    }
    guard place >= 0 else { return nil }
    defer { PlatformLibc.close(place) }
    var status = ckernel_status()
    // The structure is filled during the call.
    guard unsafe ckernel_status(place, 0, &status) == 0 else { return nil }
    return AIOFile.Status(status)
  }
}

extension AIOError {
  /// Whether the path of a request names nothing that a server may read: no file, none that this
  /// process may read, none that can be read at any offset, or one outside of the directory.
  package var namesNoFile: Bool {
    switch (code, errno) {
    case (.notFound, _), (.permissionDenied, _), (.unsupportedFile, _),
      (_, .notDirectory), (_, .tooManySymbolicLinkLevels), (_, .fileNameTooLong),
      (_, .improperLink):
      true
    default: false
    }
  }

  /// The error of a read of a range, as that of a part of it.
  ///
  /// - Parameters:
  ///   - offset: The offset of the part.
  ///   - count: The number of its bytes.
  ///   - skipped: The number of bytes of the range before the part.
  package func rebased(
    _ file: AIOFile, _ offset: Int64, _ count: Int, skipped: Int
  ) -> AIOError {
    rebased(file.subject(.read, offset: offset, length: count), skipped: skipped)
  }

  /// The failure of a system call that a plug made.
  package init(_ errno: Errno, _ operation: Operation, path: FilePath?) {
    self.init(errno: errno.rawValue, Subject(operation: operation, path: path))
  }

  /// A refusal by a plug.
  package init(
    _ code: Code, _ operation: Operation, file: AIOFile, offset: Int64? = nil, length: Int? = nil,
    _ sentence: String
  ) {
    self.init(
      code,
      Subject(
        operation: operation, path: file.path, descriptor: file.file.descriptor, offset: offset,
        length: length),
      .text(sentence))
  }
}
