// SPDX-License-Identifier: Apache-2.0

public import Dispatch

/// Appends, and where they went.
///
/// An append is one `pwritev2(2)` with `RWF_APPEND`, made by an offload thread: the kernel finds
/// the end of the file and writes there under the file's lock, so that appends of several threads,
/// contexts and processes do not overlap, and each learns its place. Appends to a file that wait
/// for the thread together are made by one call, which also shares the flush of
/// ``AIOWriteOptions/dataSync``.
///
/// - The bytes of an append are next to each other. Where the kernel takes only a part, as at the
///   end of the disk, the rest is tried right behind it, and the append fails if somebody else has
///   appended in between, or with the reason that there is no more; ``AIOError/transferred`` is
///   what was appended.
/// - After a failure with ``AIOWriteOptions/dataSync`` or ``AIOWriteOptions/sync`` the bytes may be
///   in the file, or not. It is not repeated, as that would append them twice.
/// - The descriptor's own file position, which nothing else here uses, tells the place: whoever
///   shares it (``AIOFile/init(adopting:path:isAutomatic:)`` of a `dup`) must not move it.
extension AIOContext {
  /// Appends a buffer to a file. Corresponds to `pwritev2(2)` with `RWF_APPEND`.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing; a direct one must end at a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffer: The bytes to append, which must not be changed until the completion handler runs.
  ///   - options: What the append is to do beside writing; not ``AIOWriteOptions/atomic``.
  ///   - queue: The queue to run the completion handler on; the context's own queue unless given.
  ///   - completion: Gets the offset in the file at which the bytes begin, all of them; or an
  ///     error.
  /// - Returns: The request, for ``cancel(_:)``.
  /// - Throws: ``AIOError``, with nothing accepted; its codes are those of a write, and
  ///   ``AIOError/Code/unsupportedFile`` for a block device.
  @discardableResult
  public func append(
    _ file: AIOFile, from buffer: AIOBuffer, options: AIOWriteOptions = [],
    queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.write(from: .buffer(buffer)), file, 0, options.append, queue, completion)
  }

  /// Appends several buffers to a file, one after the other. Corresponds to `pwritev2(2)` with
  /// `RWF_APPEND`.
  ///
  /// The parameters, the result and the errors are those of
  /// ``append(_:from:options:queue:completion:)-(_,AIOBuffer,_,_,_)``, with up to 1024 buffers.
  @discardableResult
  public func append(
    _ file: AIOFile, from buffers: [AIOBuffer], options: AIOWriteOptions = [],
    queue: DispatchQueue? = nil, completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    try accept(.write(from: .buffers(buffers)), file, 0, options.append, queue, completion)
  }

  /// Appends to a file. Corresponds to `pwritev2(2)` with `RWF_APPEND`.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing; a direct one must end at a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffer: The bytes to append.
  ///   - range: The part of the buffer to append; all of it unless given.
  ///   - options: What the append is to do beside writing; not ``AIOWriteOptions/atomic``.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The offset in the file at which the bytes begin, all of them.
  @discardableResult
  public func append(
    _ file: AIOFile, from buffer: borrowing AIOUniqueBuffer, range: Range<Int>? = nil,
    options: AIOWriteOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int64 {
    let operation = Operation.write(from: .buffer(buffer.part(range)))
    return Int64(try await perform(operation, file, 0, options.append))
  }

  /// Appends several buffers to a file, one after the other. Corresponds to `pwritev2(2)` with
  /// `RWF_APPEND`.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing; a direct one must end at a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - buffers: The bytes to append, in up to 1024 buffers, which must not be changed until the
  ///     call returns.
  ///   - options: What the append is to do beside writing; not ``AIOWriteOptions/atomic``.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Returns: The offset in the file at which the bytes begin, all of them.
  @discardableResult
  public func append(
    _ file: AIOFile, from buffers: [AIOBuffer], options: AIOWriteOptions = [],
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int64 {
    Int64(try await perform(.write(from: .buffers(buffers)), file, 0, options.append))
  }
}

extension AIOWriteOptions {
  /// The options of an append.
  fileprivate var append: RequestOptions { request.union(.append) }
}
