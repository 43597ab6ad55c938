// SPDX-License-Identifier: Apache-2.0

extension AIOContext {
  /// The bytes of a file, in order, in chunks: see ``AIOChunks``.
  ///
  /// ```swift
  /// for try await chunk in context.chunks(of: file) {
  ///   chunk.withUnsafeBytes { hash.update($0) }
  /// }
  /// ```
  ///
  /// - Parameters:
  ///   - file: Open for reading.
  ///   - size: Of a chunk, in bytes, 1 or more; for a direct file a multiple of its alignment.
  ///   - readAhead: How many chunks may be read at once, 1 or more.
  ///   - range: Which bytes; all unless given. For a direct file its beginning is aligned.
  public func chunks(
    of file: AIOFile, size: Int = 1 << 20, readAhead: Int = 4, range: Range<Int64>? = nil
  ) -> AIOChunks {
    AIOChunks(context: self, file: file, size: size, readAhead: readAhead, range: range)
  }
}

/// The bytes of a file, in order, as an `AsyncSequence` of buffers.
///
/// - Each chunk has the size that was asked for; the last one may be shorter, and an empty file has
///   none. Chunks are the consumer's to keep. Memory is used again for later chunks once nobody
///   holds it.
/// - While one chunk is dealt with, the next ones (`readAhead`, at the most) are being read.
/// - The file ends where a read meets its end: if it grows or shrinks meanwhile, the chunks are a
///   gapless sequence of what was read, up to the first that came up short. Nothing after that is
///   delivered, and each chunk is as old as its own read.
/// - An error ends the iteration, after all chunks before it. If the task is cancelled, the iteration
///   ends with ``AIOError/Code/cancelled``, after the chunk that the kernel was reading for it; no
///   further read is made.
/// - When the iterator is dropped, requests that wait are cancelled, and what the kernel still has is
///   released as it completes.
public struct AIOChunks: AsyncSequence, Sendable {
  public typealias Element = AIOBuffer
  public typealias Failure = AIOError

  let context: AIOContext
  let file: AIOFile
  let size: Int
  let readAhead: Int
  let range: Range<Int64>?

  public func makeAsyncIterator() -> AsyncIterator {
    AsyncIterator(reader: Reader(self))
  }

  /// Reads ahead. For one task at a time.
  public struct AsyncIterator: AsyncIteratorProtocol {
    fileprivate let reader: Reader

    public mutating func next(
      isolation actor: isolated (any Actor)? = #isolation
    ) async throws(AIOError) -> AIOBuffer? {
      try await reader.next(isolation: actor)
    }

    public mutating func next() async throws(AIOError) -> AIOBuffer? {
      try await reader.next(isolation: nil)
    }
  }

  /// The requests under way, where the task's cancellation, on any thread, finds them.
  private final class Transfers: Sendable {
    private struct State {
      var underway: [PendingTransfer] = []
      var isCancelled = false
    }

    private let state = Lock(State())

    /// Makes a request, unless it is too late for that: under the lock, so that a cancellation finds
    /// it. It wakes the loop at the most, and waits for nothing.
    func start(_ request: () -> PendingTransfer) -> PendingTransfer? {
      state.withLock { state in
        if state.isCancelled { return nil }
        let transfer = request()
        state.underway.append(transfer)
        return transfer
      }
    }

    /// The one that was started first has completed.
    func removeFirst() {
      state.withLock { state in
        if !state.underway.isEmpty { state.underway.removeFirst() }
      }
    }

    /// Takes back what the kernel does not have, and starts no more.
    func cancel() {
      let underway = state.withLock { state in
        state.isCancelled = true
        return state.underway
      }
      for transfer in underway { transfer.cancel() }
    }
  }

  /// A class, so that it notices when it is dropped.
  fileprivate final class Reader {
    private struct Read {
      let buffer: AIOBuffer
      /// How many of its bytes are wanted.
      let count: Int
      let transfer: PendingTransfer
    }

    private let source: AIOChunks
    private var stock: BufferStock
    private var offset: Int64
    private let end: Int64
    private var reads: [Read] = []
    private let transfers = Transfers()
    private var isOver = false

    init(_ source: AIOChunks) {
      self.source = source
      guard source.size > 0, source.readAhead > 0 else {
        fatalError(
          """
          AIOContext.chunks: a size of \(source.size) and a readAhead of \(source.readAhead); \
          both must be 1 or more
          """)
      }
      // As many may be with the consumer (a writer, for one) as are being read.
      let (twice, overflow) = source.readAhead.multipliedReportingOverflow(by: 2)
      stock = BufferStock(
        size: source.file.alignment.roundUp(source.size), limit: overflow ? .max : twice + 1)
      offset = source.range?.lowerBound ?? 0
      end = source.range?.upperBound ?? .max
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
      if !isOver && offset < 0 {
        cancel()
        throw .negative(subject)
      }
      // Around everything that makes a request: none is made, and none goes to the kernel, once the
      // task has been cancelled.
      let transfers = transfers
      let result = await withTaskCancellationHandler {
        await nextResult(isolation: isolation)
      } onCancel: {
        transfers.cancel()
      }
      return try result.get()
    }

    private func nextResult(
      isolation: isolated (any Actor)?
    ) async -> Result<AIOBuffer?, AIOError> {
      fill()
      guard !reads.isEmpty else {
        // Nothing is left to read, or the task has been cancelled since it was looked at.
        guard !isOver && offset < end else { return .success(nil) }
        cancel()
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
      // What comes after the end of the file may have been read all the same: it has grown since.
      if count < read.count { cancel() } else { fill() }
      return .success(count == 0 ? nil : read.buffer[..<Swift.min(count, read.count)])
    }

    /// The read of the next chunk.
    private var subject: AIOError.Subject {
      AIOError.Subject(.read(into: .buffers([])), source.file.file, offset, source.size)
    }

    /// Makes requests, up to the read-ahead.
    private func fill() {
      let alignment = source.file.alignment
      while !isOver, reads.count < source.readAhead, offset < end {
        // `offset` is 0 or more, and `end` a number: neither difference nor sum overflows.
        let count = Int(Swift.min(Int64(source.size), end - offset))
        let buffer = stock.take()
        // The file's end aside, a direct read has no odd length.
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
