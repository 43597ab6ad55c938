// SPDX-License-Identifier: Apache-2.0
//
// Any number of bytes, written in aligned blocks. Small pieces are gathered in a block; a large
// piece that is aligned by itself is submitted as it is, without a copy. The last block of a direct
// file is padded to the alignment, and the file then truncated to its size.

internal import SystemPackage

/// Writes a file from its beginning, in order, in pieces of any size. Corresponds to `pwrite(2)`
/// for each block, and `ftruncate(2)` at the end.
///
/// ```swift
/// var writer = AIOFileWriter(file, on: context)
/// for try await chunk in context.chunks(of: source) { try await writer.write(chunk) }
/// try await writer.finish()
/// ```
///
/// - Writes are under way while the caller continues; ``write(_:isolation:)-(AIOBuffer,_)`` waits
///   once there are as many as allowed.
/// - ``finish(isolation:)`` sets the size of the file to exactly what was written, whatever it was
///   before. It does not make the file durable (``AIOContext/fdatasync(_:isolation:)`` does).
///   Without it, the contents of the file are unspecified; its size may be too large by less than
///   its alignment.
/// - A failure ends the writer: the call that meets it throws the error, and so does each later
///   call, which writes nothing. Other writes may still be under way then, until
///   ``finish(isolation:)`` has returned or thrown, or, if the writer is dropped without it, until
///   the file has been closed.
/// - A block device cannot be truncated: the last block written to it is padded with zeros.
///
/// The writer cannot be copied: one task at a time writes, and code that uses it after `finish`
/// does not compile.
public struct AIOFileWriter: ~Copyable, Sendable {
  private struct Write: Sendable {
    let count: Int
    let transfer: PendingTransfer
  }

  /// The size in bytes below which pieces are gathered: copying them costs less than a request.
  private static var copyThreshold: Int { 128 << 10 }

  private let context: AIOContext
  private let file: AIOFile
  private let maximumInFlight: Int
  private var pool: BufferPool
  private var writes: [Write] = []
  /// The block that is being filled, and the number of bytes in it.
  private var block: AIOBuffer?
  private var gathered = 0
  /// The offset in the file of the gathered bytes: a multiple of the alignment.
  private var offset: Int64 = 0
  private var failure: AIOError?

  /// Makes a writer, which begins at the beginning of the file. A `blockSize` or `inFlight` below 1
  /// traps; a file that cannot be written makes the first call throw.
  ///
  /// - Parameters:
  ///   - file: The file, open for writing, and not with `.append`.
  ///   - context: The context that makes the requests.
  ///   - blockSize: The number of bytes to gather for one request, 1 or more; rounded up to the
  ///     file's alignment.
  ///   - inFlight: The number of requests that may be under way; 1 or more.
  public init(
    _ file: AIOFile, on context: AIOContext, blockSize: Int = 1 << 20, inFlight: Int = 4
  ) {
    guard blockSize > 0, inFlight > 0 else {
      fatalError(
        """
        AIOFileWriter: a blockSize of \(blockSize) and an inFlight of \(inFlight); both must be \
        1 or more
        """)
    }
    self.context = context
    self.file = file
    maximumInFlight = inFlight
    pool = BufferPool(
      size: file.alignment.roundUp(blockSize), limit: inFlight == .max ? .max : inFlight + 1)
    let subject = AIOError.Subject(.write(from: .buffers([])), file.file, 0, nil)
    if !file.file.traits.isWritable {
      failure = .notWritable(subject)
    } else if file.file.traits.appends {
      failure = AIOError(
        .wrongAccessMode, subject,
        .text("the file is open for appending, where no write has an offset; open it without"))
    }
  }

  deinit {
    for write in writes { write.transfer.cancel() }
  }

  /// The number of bytes accepted so far, skipped ones included.
  public var count: Int64 {
    // `reserve` has made sure that the sum does not overflow.
    offset + Int64(gathered)
  }

  /// Writes a buffer, or a slice of one, of any size. It returns when the bytes have been accepted.
  ///
  /// - Parameters:
  ///   - buffer: The bytes to write. They must not be changed until ``finish(isolation:)`` returns,
  ///     since the memory may be submitted as it is; it is copied where it is small or not aligned.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/invalidOffset`` if the file would become
  ///   larger than 2^63 - 1 bytes, ``AIOError/Code/cancelled`` if the task has been cancelled, or
  ///   the error of this or an earlier write.
  public mutating func write(
    _ buffer: AIOBuffer, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try reserve(Int64(buffer.count))
    var rest = buffer
    let alignment = file.alignment
    if gathered == 0, isAligned(buffer) {
      let whole = alignment.roundDown(buffer.count)
      if whole >= Swift.min(pool.size, Self.copyThreshold) {
        try await send(buffer[..<whole], isolation: isolation)
        rest = buffer[whole...]
      }
    }
    while rest.count > 0 {
      let block = self.block ?? AIOBuffer(pool.take(), count: pool.size)
      self.block = block
      let part = Swift.min(rest.count, block.count - gathered)
      copy(rest[..<part], to: block[gathered..<gathered + part])
      gathered += part
      rest = rest[part...]
      if gathered == block.count { try await flush(isolation: isolation) }
    }
    if let failure { throw failure }
  }

  /// Writes an array of bytes, which are copied. The errors are those of ``write(_:isolation:)``.
  public mutating func write(
    _ bytes: [UInt8], isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    let buffer = AIOBuffer(count: bytes.count)
    unsafe buffer.withUnsafeMutableBytes { unsafe $0.copyBytes(from: bytes) }
    try await write(buffer, isolation: isolation)
  }

  /// Skips bytes, whose whole blocks are left as they are in the file: a hole, which reads as
  /// zeros, if the file is new or was truncated.
  ///
  /// - Parameters:
  ///   - count: The number of bytes; 0 or more.
  ///   - isolation: The caller's actor, which the compiler gives.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/invalidOffset`` if the count is negative
  ///   or the file would become larger than 2^63 - 1 bytes, or the error of this or an earlier
  ///   write.
  public mutating func skip(
    _ count: Int64, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try reserve(count)
    var left = count
    let alignment = file.alignment
    // Zeros up to the next block, then a hole, then zeros for the part of a block that remains.
    let head = Swift.min(left, Int64(alignment.roundUp(gathered) - gathered))
    if head > 0 { try await write(AIOBuffer(count: Int(head)), isolation: isolation) }
    left -= head
    guard left > 0 else { return }
    try await flush(isolation: isolation)
    let tail = left % Int64(alignment.offset)
    // `reserve` has checked the sum; `offset` stays a multiple of the alignment.
    offset += left - tail
    if tail > 0 { try await write(AIOBuffer(count: Int(tail)), isolation: isolation) }
  }

  /// Writes the bytes that are left, waits for all writes, also if it throws, and sets the file's
  /// size.
  ///
  /// - Returns: The size of the file, in bytes.
  /// - Throws: ``AIOError``: the first error of any write, or that of `ftruncate(2)`.
  @discardableResult
  public consuming func finish(
    isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) -> Int64 {
    let size = count
    if gathered > 0, let block {
      let padded = file.alignment.roundUp(gathered)
      zero(block[gathered..<padded])
      gathered = padded
    }
    do throws(AIOError) { try await flush(isolation: isolation) } catch { failure = error }
    while !writes.isEmpty { await awaitFirstWrite(isolation: isolation) }
    if let failure { throw failure }
    // The size of a block device is fixed.
    if !file.file.traits.isBlockDevice { try await file.truncate(to: size, isolation: isolation) }
    return size
  }

  // MARK: Beneath

  /// Makes sure that nothing has failed, and that the file can have so many more bytes. A refusal
  /// is a failure of the writer, so that overlooking it does not leave a gap in the file.
  private mutating func reserve(_ count: Int64) throws(AIOError) {
    if failure == nil, count < 0 {
      let subject = subject(0)
      failure = AIOError(
        .invalidOffset, subject, .text("\(count) bytes cannot be skipped; 0 or more can"))
    } else if failure == nil, count > Int64.max - self.count {
      failure = .pastLargestOffset(subject(Int(count)))
    }
    if let failure { throw failure }
  }

  /// The subject of a write of so many bytes at the writer's end.
  private func subject(_ length: Int) -> AIOError.Subject {
    AIOError.Subject(.write(from: .buffers([])), file.file, count, length)
  }

  private func isAligned(_ buffer: AIOBuffer) -> Bool {
    let address = unsafe UInt(bitPattern: buffer.unsafeBytes.baseAddress)
    return address % UInt(file.alignment.memory) == 0
  }

  /// Submits the gathered bytes: a multiple of the alignment, or the end of the file.
  private mutating func flush(isolation: isolated (any Actor)?) async throws(AIOError) {
    guard gathered > 0, let block else { return }
    let part = block[..<gathered]
    self.block = nil
    gathered = 0
    try await send(part, isolation: isolation)
  }

  /// Starts a write at `offset`, once fewer than `maximumInFlight` are under way.
  private mutating func send(
    _ buffer: AIOBuffer, isolation: isolated (any Actor)?
  ) async throws(AIOError) {
    while writes.count >= maximumInFlight { await awaitFirstWrite(isolation: isolation) }
    if failure == nil && Task.isCancelled {
      failure = .cancelled(
        .init(.write(from: .buffer(buffer)), file.file, offset, buffer.count), transferred: 0)
    }
    if failure == nil, offset > Int64.max - Int64(buffer.count) {
      // The bytes themselves fit; the padding of the last block does not.
      failure = .pastLargestOffset(
        .init(.write(from: .buffer(buffer)), file.file, offset, buffer.count))
    }
    if let failure { throw failure }
    writes.append(
      Write(
        count: buffer.count,
        transfer: PendingTransfer(.write(from: .buffer(buffer)), file, at: offset, on: context)))
    offset += Int64(buffer.count)
  }

  /// Waits for the write that was started first, and keeps its error if it is the first one.
  private mutating func awaitFirstWrite(isolation: isolated (any Actor)?) async {
    let write = writes.removeFirst()
    do throws(AIOError) {
      _ = try await write.transfer.value(isolation: isolation)
    } catch {
      if failure == nil { failure = error }
    }
  }

  private func copy(_ source: AIOBuffer, to target: AIOBuffer) {
    unsafe target.withUnsafeMutableBytes { target in
      unsafe source.withUnsafeBytes { unsafe target.copyMemory(from: $0) }
    }
  }

  private func zero(_ buffer: AIOBuffer) {
    unsafe buffer.withUnsafeMutableBytes {
      _ = unsafe $0.initializeMemory(as: UInt8.self, repeating: 0)
    }
  }
}
