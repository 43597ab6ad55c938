// SPDX-License-Identifier: Apache-2.0

#if NIO
package import DispatchAIO
package import NIOCore

/// A range of a file in chunks, as an `AsyncSequence`: those that the page cache has are read in
/// place, one for each `next`. From the first that it has not, some are read ahead.
package struct AIOByteBufferChunks: AsyncSequence, Sendable {
  package typealias Element = ByteBuffer

  let context: AIOContext
  let file: AIOFile
  let range: Range<Int64>
  /// The number of bytes of a chunk, 1 or more; the last one may have fewer.
  let chunkLength: Int
  /// Whether errors become those of NIO's file system.
  let mapsErrors: Bool
  /// The number of chunks that are read at once.
  private static var readAhead: Int { 3 }

  package init(
    context: AIOContext, file: AIOFile, range: Range<Int64>, chunkLength: Int,
    mapsErrors: Bool = false
  ) {
    self.context = context
    self.file = file
    self.range = range
    self.chunkLength = chunkLength
    self.mapsErrors = mapsErrors
  }

  package func makeAsyncIterator() -> Iterator { Iterator(source: self) }

  /// A class, so that dropping it cancels what is under way.
  package final class Iterator: AsyncIteratorProtocol {
    private struct Read {
      let task: Task<ByteBuffer, any Error>
      let count: Int
    }

    private let source: AIOByteBufferChunks
    /// The offset of the next chunk to read.
    private var offset: Int64
    private var reads: [Read] = []
    private var isOver = false

    init(source: AIOByteBufferChunks) {
      self.source = source
      offset = source.range.lowerBound
    }

    deinit { for read in reads { read.task.cancel() } }

    package func next() async throws -> ByteBuffer? {
      try await next(isolation: nil)
    }

    package func next(isolation actor: isolated (any Actor)?) async throws -> ByteBuffer? {
      guard !isOver else { return nil }
      do {
        try Task.checkCancellation()
        if reads.isEmpty, let count = takeCount() {
          let from = offset - Int64(count)
          if let chunk = try source.file.readByteBufferNow(from: from, count: count) {
            return delivered(chunk, count)
          }
          start(from, count, isUncached: true)
        }
        while reads.count < AIOByteBufferChunks.readAhead, let count = takeCount() {
          start(offset - Int64(count), count)
        }
        guard let read = reads.first else {
          isOver = true
          return nil
        }
        let chunk = try await withTaskCancellationHandler {
          try await read.task.value
        } onCancel: {
          read.task.cancel()
        }
        reads.removeFirst()
        return delivered(chunk, read.count)
      } catch {
        end()
        if source.mapsErrors, let error = error as? AIOError { throw error.forFileSystem() }
        throw error
      }
    }

    /// Takes a chunk off the range.
    ///
    /// - Returns: Its number of bytes; `nil` at the end.
    private func takeCount() -> Int? {
      let count = Int(Swift.min(Int64(source.chunkLength), source.range.upperBound - offset))
      guard count > 0 else { return nil }
      offset += Int64(count)
      return count
    }

    /// - Parameter isUncached: Whether the page cache has just been asked, and has not all of it.
    private func start(_ from: Int64, _ count: Int, isUncached: Bool = false) {
      let (context, file) = (source.context, source.file)
      let task = Task {
        if isUncached {
          return try await context.readUncachedByteBuffer(file, from: from, count: count)
        }
        return try await context.readByteBuffer(file, from: from, count: count)
      }
      reads.append(Read(task: task, count: count))
    }

    /// A chunk that is shorter than asked for is the last one: the file ends there.
    private func delivered(_ chunk: ByteBuffer, _ count: Int) -> ByteBuffer? {
      if chunk.readableBytes < count { end() }
      return chunk.readableBytes == 0 ? nil : chunk
    }

    private func end() {
      isOver = true
      for read in reads { read.task.cancel() }
      reads = []
    }
  }
}
#endif
