// SPDX-License-Identifier: Apache-2.0

public import Dispatch
public import SystemPackage

extension AIOContext {
  /// Opens a file, and calls back with it: without leaving the calling thread if that takes no
  /// waiting (see ``AIOFile/openNow(_:_:beneath:options:caching:)``), and otherwise by a
  /// thread that may sleep. May be called from any thread, and never blocks. Corresponds to
  /// `openat2(2)` and `open(2)`.
  ///
  /// An open is no request: it takes no slot, is not cancelled, and a context that closes does not
  /// wait for it.
  ///
  /// - Parameters:
  ///   - path: The file's path.
  ///   - mode: The access: reading, writing, or both.
  ///   - directory: The directory that the path is relative to and must not leave; if `nil`, the
  ///     path is any path.
  ///   - options: The options of `FileDescriptor.open`.
  ///   - permissions: The permissions of the file if it is created, less the process's umask.
  ///   - caching: The way to the disk; ``AIOFile/Caching/direct`` unless given.
  ///   - queue: The queue to run the completion handler on; the context's own queue unless given.
  ///   - completion: Called once, never inside this call, with the file, which any context may use,
  ///     or with the error that
  ///     ``AIOFile/open(_:_:beneath:options:permissions:caching:)-(_,_,_,_,_,_)`` would throw.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/forked``; the completion handler is then
  ///   not called.
  public func open(
    _ path: FilePath, _ mode: FileDescriptor.AccessMode, beneath directory: AIODirectory? = nil,
    options: FileDescriptor.OpenOptions = [],
    permissions: FilePermissions = [.ownerReadWrite, .groupRead, .otherRead],
    caching: AIOFile.Caching = .direct, queue: DispatchQueue? = nil,
    completion: @escaping @Sendable (Result<AIOFile, AIOError>) -> Void
  ) throws(AIOError) {
    if Fork.isChild { throw .forked(AIOError.Subject(operation: .open, path: path)) }
    let loop = loop
    let complete: @Sendable (Result<AIOFile, AIOError>) -> Void = { result in
      if let queue {
        queue.async { completion(result) }
      } else {
        loop.async { completion(result) }
      }
    }
    do throws(AIOError) {
      if let file = try AIOFile.openNow(
        path, mode, beneath: directory, options: options, caching: caching)
      {
        return complete(.success(file))
      }
    } catch {
      return complete(.failure(error))
    }
    BlockingCalls.run(on: directory?.device) {
      complete(
        Result { () throws(AIOError) in
          try AIOFile.open(
            path, mode, beneath: directory, options: options, permissions: permissions,
            caching: caching)
        })
    }
  }
}
