// SPDX-License-Identifier: Apache-2.0
//
// Bytes of any number, written in aligned blocks. What comes in pieces is gathered in a block; a
// chunk that is aligned by itself goes down as it is, without a copy. The last block of a direct
// file is padded to the alignment, and the file then cut to its size.

internal import SystemPackage

/// Writes a file from its beginning, in order, in pieces of any size.
///
/// ```swift
/// var writer = AIOFileWriter(file, on: context)
/// for try await chunk in context.chunks(of: source) { try await writer.write(chunk) }
/// try await writer.finish()
/// ```
///
/// - Writes are under way while the caller goes on; when there are as many as allowed, ``write(_:)``
///   waits.
/// - ``finish()`` makes the file end where the writer does, exactly, whatever it was before; it does
///   not make it durable (``AIOContext/fdatasync(_:)`` does). Without it, what the file has is
///   undefined; its size may be too large by less than its alignment.
/// - A failure ends it: the error comes from the call that meets it, and from each one after, which
///   takes nothing. Other writes may then be under way still, until ``finish()`` has returned or
///   thrown, or, when the writer is dropped without it, until the file has been closed.
/// - A block device cannot be cut: its last block ends in zeros.
///
/// It cannot be copied: one task at a time writes, and nothing compiles that uses it after `finish`.
public struct AIOFileWriter: ~Copyable, Sendable {
  private struct Write: Sendable {
    let count: Int
    let transfer: PendingTransfer
  }

  /// Pieces that are smaller are gathered.
  private static var worthARequest: Int { 128 << 10 }

  private let context: AIOContext
  private let file: AIOFile
  private let mostInFlight: Int
  private var stock: BufferStock
  private var writes: [Write] = []
  /// What is being gathered, and how much of it there is.
  private var block: AIOBuffer?
  private var gathered = 0
  /// Where the gathered bytes go: a multiple of the alignment.
  private var offset: Int64 = 0
  private var failure: AIOError?

  /// - Parameters:
  ///   - file: Open for writing, and not with `O_APPEND`.
  ///   - context: What makes the requests.
  ///   - blockSize: How many bytes to gather for one request; rounded up to the file's alignment.
  ///   - inFlight: How many requests may be under way; 1 or more.
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
    mostInFlight = inFlight
    stock = BufferStock(
      size: file.alignment.roundUp(blockSize), limit: inFlight == .max ? .max : inFlight + 1)
    if file.file.traits.appends {
      failure = AIOError(
        .wrongAccessMode, .init(.write(from: .buffers([])), file.file, 0, nil),
        .text("the file is open for appending, where no write has an offset; open it without"))
    }
  }

  deinit {
    for write in writes { write.transfer.cancel() }
  }

  /// How many bytes have been taken, including what was skipped.
  public var count: Int64 {
    // `reserve` sees to it that the sum has a number.
    offset + Int64(gathered)
  }

  /// Writes a buffer, or a slice of one. Not to be changed until ``finish()`` returns, since it may
  /// go down as it is; where it does not suit, it is copied.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/invalidOffset`` where a file has no such
  ///   offset, or whatever a write failed with.
  public mutating func write(
    _ buffer: AIOBuffer, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try reserve(Int64(buffer.count))
    var rest = buffer
    let alignment = file.alignment
    if gathered == 0, isAligned(buffer) {
      let whole = alignment.roundDown(buffer.count)
      // To copy a small piece costs less than a request.
      if whole >= Swift.min(stock.size, Self.worthARequest) {
        try await send(buffer[..<whole], isolation: isolation)
        rest = buffer[whole...]
      }
    }
    while rest.count > 0 {
      let block = self.block ?? stock.take()
      self.block = block
      let part = Swift.min(rest.count, block.count - gathered)
      copy(rest[..<part], to: block[gathered..<gathered + part])
      gathered += part
      rest = rest[part...]
      if gathered == block.count { try await flush(isolation: isolation) }
    }
    if let failure { throw failure }
  }

  /// Writes a copy of bytes.
  public mutating func write(
    _ bytes: [UInt8], isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try reserve(Int64(bytes.count))
    let buffer = AIOBuffer(count: bytes.count)
    unsafe buffer.withUnsafeMutableBytes { unsafe $0.copyBytes(from: bytes) }
    try await write(buffer, isolation: isolation)
  }

  /// Leaves a hole, as far as the alignment lets it, which reads as zeros in a file that is new or was
  /// truncated; elsewhere, what the file has there stays.
  ///
  /// - Parameter count: How many bytes; 0 or more.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/invalidOffset`` for a negative count, or one
  ///   that a file has no offset for, or whatever a write failed with.
  public mutating func skip(
    _ count: Int64, isolation: isolated (any Actor)? = #isolation
  ) async throws(AIOError) {
    try reserve(count)
    var left = count
    let alignment = file.alignment
    // Zeros up to a boundary, then nothing, then zeros again.
    let head = Swift.min(left, Int64(alignment.roundUp(gathered) - gathered))
    if head > 0 { try await write(AIOBuffer(count: Int(head)), isolation: isolation) }
    left -= head
    guard left > 0 else { return }
    try await flush(isolation: isolation)
    let tail = left % Int64(alignment.offset)
    // Reserved above; `offset` is a multiple of the alignment, and stays one.
    offset += left - tail
    if tail > 0 { try await write(AIOBuffer(count: Int(tail)), isolation: isolation) }
  }

  /// Writes what is left, waits for all writes, also when it throws, and sets the file's size.
  ///
  /// - Returns: The size of the file, in bytes.
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
    while !writes.isEmpty { await settle(isolation: isolation) }
    if let failure { throw failure }
    // A block device has the size it has.
    if !file.file.traits.isBlockDevice { try await file.truncate(to: size, isolation: isolation) }
    return size
  }

  // MARK: Beneath

  /// Makes sure that nothing has failed, and that the file can have so many bytes more. What cannot
  /// be taken is a failure of the writer's: who overlooks it does not get a file with a gap.
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

  /// A write of so many bytes at the writer's end.
  private func subject(_ length: Int) -> AIOError.Subject {
    AIOError.Subject(.write(from: .buffers([])), file.file, count, length)
  }

  private func isAligned(_ buffer: AIOBuffer) -> Bool {
    let address = unsafe UInt(bitPattern: buffer.unsafeBytes.baseAddress)
    return address % UInt(file.alignment.memory) == 0
  }

  /// Sends what has been gathered: a multiple of the alignment, or the end.
  private mutating func flush(isolation: isolated (any Actor)?) async throws(AIOError) {
    guard gathered > 0, let block else { return }
    let part = block[..<gathered]
    self.block = nil
    gathered = 0
    try await send(part, isolation: isolation)
  }

  /// Starts a write at `offset`, when there is room for it.
  private mutating func send(
    _ buffer: AIOBuffer, isolation: isolated (any Actor)?
  ) async throws(AIOError) {
    while writes.count >= mostInFlight { await settle(isolation: isolation) }
    if failure == nil && Task.isCancelled {
      failure = .cancelled(
        .init(.write(from: .buffer(buffer)), file.file, offset, buffer.count), transferred: 0)
    }
    if failure == nil, offset > Int64.max - Int64(buffer.count) {
      // The padding of the last block.
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

  /// Waits for the write that was started first, and takes note of how it ended.
  private mutating func settle(isolation: isolated (any Actor)?) async {
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
