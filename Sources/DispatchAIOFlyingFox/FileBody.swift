// SPDX-License-Identifier: Apache-2.0
//
// The bytes of an answer, as FlyingFox asks for them: the next ones once it has written the last to
// the socket. What the page cache has is read in place, on the thread that writes it; the first
// chunk that it has not, and what follows, is read by the context, the next chunk while this one is
// being written.

#if FlyingFox
internal import DispatchAIO
internal import FlyingSocks

/// A range of a file, chunk by chunk.
struct FileBody: AsyncBufferedSequence {
  typealias Element = UInt8

  /// The number of bytes that are read, and written to the socket, at once.
  static let chunkSize = 128 << 10

  let file: AIOFile
  let range: Range<Int64>
  let context: AIOContext
  let buffers: ChunkBuffers
  /// The first chunk, which was read before the head of the answer was sent.
  private let first: Lock<FileBytes?>

  /// Reads the first chunk.
  ///
  /// - Parameter range: A range of the file, not empty.
  init(
    _ file: AIOFile, _ range: Range<Int64>, context: AIOContext, buffers: ChunkBuffers
  ) async throws {
    self.file = file
    self.range = range
    self.context = context
    self.buffers = buffers
    first = Lock(nil)
    var reader = AsyncIterator(self)
    let chunk = try await reader.nextChunk()
    first.withLock { $0 = chunk }
  }

  func makeAsyncIterator() -> AsyncIterator {
    var iterator = AsyncIterator(self)
    if let chunk = first.withLock({ $0.take() }) { iterator.resume(with: chunk) }
    return iterator
  }

  struct AsyncIterator: AsyncBufferedIteratorProtocol {
    private let body: FileBody
    private var offset: Int64
    /// What is left of the last chunk.
    private var rest = FileBytes()
    /// The buffer that the last chunk was read into in place. FlyingFox copies a chunk before it
    /// asks for the next.
    private var buffer: AIOBuffer?
    private var chunks: AIOChunks.AsyncIterator?

    fileprivate init(_ body: FileBody) {
      self.body = body
      offset = body.range.lowerBound
    }

    fileprivate mutating func resume(with chunk: FileBytes) {
      rest = chunk
      offset += Int64(chunk.count)
      buffer = chunk.isInPlace ? chunk.buffer : nil
    }

    mutating func next() async throws -> UInt8? {
      try await nextBuffer(suggested: 1)?.first
    }

    mutating func nextBuffer(suggested count: Int) async throws -> FileBytes? {
      if rest.isEmpty {
        guard offset < body.range.upperBound else {
          if let buffer = buffer.take() { body.buffers.give(buffer) }
          return nil
        }
        let chunk = try await nextChunk()
        rest = chunk
        offset += Int64(chunk.count)
      }
      let part = rest.prefix(count)
      rest = rest.dropFirst(part.count)
      return part
    }

    /// - Throws: `SocketError.disconnected` if the file has become shorter than its answer's head
    ///   says, which only the end of the connection tells; ``AIOError``.
    fileprivate mutating func nextChunk() async throws -> FileBytes {
      let wanted = Int(Swift.min(Int64(FileBody.chunkSize), body.range.upperBound - offset))
      if chunks == nil {
        let buffer = buffer.take() ?? body.buffers.take()
        if let count = try body.file.readNow(at: offset, into: buffer[..<wanted]) {
          guard count == wanted else { throw SocketError.disconnected }
          self.buffer = buffer
          return FileBytes(buffer: buffer, bounds: 0..<count, isInPlace: true)
        }
        body.buffers.give(buffer)
        chunks = body.context.chunks(
          of: body.file, size: FileBody.chunkSize, readAhead: 2,
          range: offset..<body.range.upperBound
        ).makeAsyncIterator()
      }
      guard let buffer = try await chunks?.next(), buffer.count == wanted else {
        throw SocketError.disconnected
      }
      return FileBytes(buffer: buffer, bounds: 0..<wanted, isInPlace: false)
    }
  }
}

/// Bytes of a buffer, as a collection.
struct FileBytes: RandomAccessCollection {
  let buffer: AIOBuffer
  let bounds: Range<Int>
  /// Whether the buffer is one of ``ChunkBuffers``.
  let isInPlace: Bool

  var startIndex: Int { bounds.lowerBound }
  var endIndex: Int { bounds.upperBound }

  subscript(position: Int) -> UInt8 {
    // Within the bounds, which are within the buffer.
    unsafe buffer.bytes.unsafeLoad(fromByteOffset: position, as: UInt8.self)
  }

  subscript(bounds: Range<Int>) -> FileBytes {
    FileBytes(buffer: buffer, bounds: bounds, isInPlace: isInPlace)
  }

  /// How `Data` copies the bytes at once.
  func withContiguousStorageIfAvailable<Result>(
    _ body: (UnsafeBufferPointer<UInt8>) throws -> Result
  ) rethrows -> Result? {
    // The pointer is valid during the call, and bytes may be read as what they are.
    try unsafe buffer[bounds].withUnsafeBytes { bytes in
      try unsafe bytes.withMemoryRebound(to: UInt8.self) { try unsafe body($0) }
    }
  }
}

extension FileBytes {
  init() { self.init(buffer: ChunkBuffers.none, bounds: 0..<0, isInPlace: false) }
}

/// Buffers of one chunk, to be used again: what is read in place takes no time for filling new
/// memory with zeros.
final class ChunkBuffers: Sendable {
  /// The number of buffers kept.
  private static let limit = 32
  static let none = AIOBuffer(count: 0)

  private let free = Lock<[AIOBuffer]>([])

  func take() -> AIOBuffer {
    free.withLock { $0.popLast() } ?? AIOBuffer(count: FileBody.chunkSize)
  }

  /// - Parameter buffer: A buffer that nobody uses any more.
  func give(_ buffer: AIOBuffer) {
    free.withLock { free in
      if free.count < Self.limit { free.append(buffer) }
    }
  }
}
#endif
