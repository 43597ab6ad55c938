// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

extension AIOContext {
  /// Reads a file in order, in chunks, with read-ahead: see ``AIOChunks``. Corresponds to
  /// `pread(2)` for each chunk.
  ///
  /// ```swift
  /// for try await chunk in context.chunks(of: file) {
  ///   chunk.withUnsafeBytes { hash.update($0) }
  /// }
  /// ```
  ///
  /// - Parameters:
  ///   - file: The file, open for reading.
  ///   - size: The size of a chunk in bytes, 1 or more; for a direct file a multiple of its
  ///     ``AIOFile/alignment``.
  ///   - readAhead: The number of chunks that may be read at once, 1 or more; no more than the
  ///     context accepts are, and of what is behind the file's end one.
  ///   - range: The bytes to read; all of the file unless given. For a direct file its lower bound
  ///     is a multiple of the alignment.
  /// - Returns: The sequence. Nothing is read before its iterator's first `next()`, which throws
  ///   what is wrong with the arguments; a `size` or `readAhead` below 1 traps.
  public func chunks(
    of file: AIOFile, size: Int = 1 << 20, readAhead: Int = 4, range: Range<Int64>? = nil
  ) -> AIOChunks {
    AIOChunks(context: self, file: file, size: size, readAhead: readAhead, range: range)
  }
}

/// The bytes of a file, in order, as an `AsyncSequence` of buffers.
///
/// - Each chunk has the size that was asked for; the last one may be shorter, and an empty file has
///   none. A chunk is the consumer's to keep. Its memory is reused for later chunks once nobody
///   holds it.
/// - While the consumer uses one chunk, up to `readAhead` further ones are being read.
/// - The file ends where a read meets its end. If it grows or shrinks during the iteration, the
///   chunks are a gapless sequence of what was read, up to the first short one. Nothing after that
///   one is delivered, and each chunk is as old as its own read.
/// - An error ends the iteration, after all chunks before it. If the task is cancelled, the
///   iteration ends with ``AIOError/Code/cancelled``, once the read that the kernel has for it has
///   completed; no further read is submitted.
/// - When the iterator is dropped, requests that wait are cancelled, and the buffers that the
///   kernel still has are released as their reads complete.
public struct AIOChunks: AsyncSequence, Sendable {
  /// A chunk.
  public typealias Element = AIOBuffer
  /// The error that ends an iteration.
  public typealias Failure = AIOError

  let context: AIOContext
  let file: AIOFile
  let size: Int
  let readAhead: Int
  let range: Range<Int64>?

  /// Makes an iterator, which reads the file from the beginning of the range.
  public func makeAsyncIterator() -> AsyncIterator {
    AsyncIterator(reader: Reader(self))
  }

  /// An iterator that reads ahead, for one task at a time.
  public struct AsyncIterator: AsyncIteratorProtocol {
    fileprivate let reader: Reader

    /// Waits for the next chunk.
    ///
    /// - Returns: The chunk; `nil` at the end of the file or of the range.
    /// - Throws: ``AIOError``, which ends the iteration: the errors of
    ///   ``AIOContext/read(_:at:into:options:isolation:)``, other than ``AIOError/Code/full``.
    public mutating func next(
      isolation actor: isolated (any Actor)? = #isolation
    ) async throws(AIOError) -> AIOBuffer? {
      try await reader.next(isolation: actor)
    }

    /// Waits for the next chunk, as ``next(isolation:)`` does, from no actor.
    public mutating func next() async throws(AIOError) -> AIOBuffer? {
      try await reader.next(isolation: nil)
    }
  }

  /// The requests under way, kept where a cancellation of the task, on any thread, finds them.
  private final class Transfers: Sendable {
    private struct State {
      var underway: [PendingTransfer] = []
      var isCancelled = false
    }

    private let state = Lock(State())

    /// Makes a request unless the task has been cancelled. It does so under the lock, so that a
    /// cancellation finds the request; making it never waits.
    func start(_ request: () -> PendingTransfer) -> PendingTransfer? {
      state.withLock { state in
        if state.isCancelled { return nil }
        let transfer = request()
        state.underway.append(transfer)
        return transfer
      }
    }

    /// Forgets the request that was started first, which has completed.
    func removeFirst() {
      state.withLock { state in
        if !state.underway.isEmpty { state.underway.removeFirst() }
      }
    }

    /// Cancels the requests that the kernel does not have, and refuses new ones from now on.
    func cancel() {
      let underway = state.withLock { state in
        state.isCancelled = true
        return state.underway
      }
      for transfer in underway { transfer.cancel() }
    }
  }

  /// The state of an iteration: a class, so that dropping it cancels what is under way.
  fileprivate final class Reader {
    private struct Read {
      let buffer: AIOBuffer
      /// The number of bytes that are wanted of it.
      let count: Int
      let transfer: PendingTransfer
    }

    private let source: AIOChunks
    private var pool: BufferPool
    private var offset: Int64
    private let end: Int64
    private var reads: [Read] = []
    private let mostReads: Int
    private let transfers = Transfers()
    private var hasBegun = false
    private var isOver = false
    private var lacksMemory = false
    /// Where the file ended when the iteration began; behind that, one chunk is read at a time.
    private var knownEnd = Int64.max

    init(_ source: AIOChunks) {
      self.source = source
      guard source.size > 0, source.readAhead > 0 else {
        fatalError(
          """
          AIOContext.chunks: a size of \(source.size) and a readAhead of \(source.readAhead); \
          both must be 1 or more
          """)
      }
      let context = source.context
      mostReads = Swift.min(source.readAhead, context.queueDepth + context.pendingLimit)
      offset = source.range?.lowerBound ?? 0
      end = source.range?.upperBound ?? .max
      let alignment = source.file.alignment
      let size = Swift.min(
        source.size, source.range?.clamped(to: 0..<(.max)).count ?? .max,
        alignment.roundDown(.max))
      // The consumer, for example a writer, may hold as many as are being read.
      pool = BufferPool(size: alignment.roundUp(size), limit: 2 * mostReads + 1)
    }

    deinit { cancel() }

    private func cancel() {
      transfers.cancel()
      reads = []
      isOver = true
    }

    func next(isolation: isolated (any Actor)?) async throws(AIOError) -> AIOBuffer? {
      if !isOver && Task.isCancelled {
        cancel()
        throw .cancelled(subject, transferred: 0)
      }
      if !hasBegun {
        hasBegun = true
        do throws(AIOError) {
          try begin()
        } catch {
          cancel()
          throw error
        }
      }
      // The handler surrounds everything that makes a request, so that none is made, and none goes
      // to the kernel, once the task has been cancelled.
      let transfers = transfers
      let result = await withTaskCancellationHandler {
        await nextResult(isolation: isolation)
      } onCancel: {
        transfers.cancel()
      }
      return try result.get()
    }

    /// Checks the arguments, and looks how long the file is, where that needs no waiting.
    private func begin() throws(AIOError) {
      let unit = source.file.alignment.offset
      guard offset >= 0 else { throw .negative(subject) }
      guard source.size % unit == 0 else {
        throw AIOError(
          .misaligned, subject,
          .text(
            """
            a chunk of \(source.size) bytes is no multiple of \(unit) (AIOFile.alignment); choose \
            another size, or open the file with caching: .buffered
            """))
      }
      if source.file.file.traits.isLocal { knownEnd = (try? source.file.size()) ?? .max }
    }

    private func nextResult(
      isolation: isolated (any Actor)?
    ) async -> Result<AIOBuffer?, AIOError> {
      fill()
      guard !reads.isEmpty else {
        // Nothing is left to read, or the task has been cancelled since the check above.
        guard !isOver && offset < end else { return .success(nil) }
        cancel()
        if lacksMemory { return .failure(AIOError(errno: ENOMEM, subject)) }
        return .failure(.cancelled(subject, transferred: 0))
      }
      let read = reads[0]
      let count: Int
      do throws(AIOError) {
        count = try await read.transfer.value(isolation: isolation)
      } catch {
        cancel()
        return .failure(error)
      }
      guard !isOver else { return .success(nil) }
      reads.removeFirst()
      transfers.removeFirst()
      // Later reads may have found data behind a short one, if the file has grown since: it is
      // dropped.
      if count < read.count { cancel() } else { fill() }
      return .success(count == 0 ? nil : read.buffer[..<Swift.min(count, read.count)])
    }

    /// The read of the next chunk.
    private var subject: AIOError.Subject {
      AIOError.Subject(.read(into: .buffers([])), source.file.file, offset, source.size)
    }

    /// Makes requests until as many as the read-ahead allows are under way.
    private func fill() {
      let alignment = source.file.alignment
      while !isOver, reads.count < mostReads, offset < end, offset < knownEnd || reads.isEmpty {
        // `offset` is at least 0 and below `end`: neither the difference nor the sum overflows.
        let count = Int(Swift.min(Int64(source.size), end - offset))
        guard let storage = pool.take() else {
          lacksMemory = true
          return
        }
        let buffer = AIOBuffer(storage, 0..<pool.size)
        // A direct read has an aligned length, also at the end of the range.
        let length = alignment.roundUp(count)
        let transfer = transfers.start {
          PendingTransfer(
            .read(into: .buffer(buffer[..<length])), source.file, at: offset, on: source.context)
        }
        guard let transfer else { return }
        reads.append(Read(buffer: buffer, count: count, transfer: transfer))
        offset += Int64(count)
      }
    }
  }
}
