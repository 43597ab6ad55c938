// SPDX-License-Identifier: Apache-2.0
//
// The bytes of an answer, as FlyingFox asks for them: the next ones once it has written the last to
// the socket. What the page cache has is read in place, on the thread that writes it; the first
// chunk that it has not, and what follows, is read by the context, the next two chunks while this
// one is being written.

#if FlyingFox
internal import DispatchAIO
internal import FlyingSocks

/// A range of a file, chunk by chunk.
struct FileBody: AsyncBufferedSequence {
  typealias Element = UInt8

  /// The number of bytes that are read, and written to the socket, at once.
  static let chunkSize = 128 << 10

  private let file: AIOFile
  private let range: Range<Int64>
  private let context: AIOContext
  /// The iterator that read the first chunk, before the head of the answer was sent.
  private let first: Lock<AsyncIterator?>

  /// Reads the first chunk.
  ///
  /// - Parameter range: A range of the file, not empty.
  init(_ file: AIOFile, _ range: Range<Int64>, context: AIOContext) async throws {
    self.file = file
    self.range = range
    self.context = context
    var iterator = AsyncIterator(file, range, context)
    try await iterator.readChunk()
    first = Lock(iterator)
  }

  func makeAsyncIterator() -> AsyncIterator {
    first.withLock { $0.take() } ?? AsyncIterator(file, range, context)
  }

  struct AsyncIterator: AsyncBufferedIteratorProtocol {
    private let file: AIOFile
    /// What has not been read, or has not been taken from `chunks`.
    private var range: Range<Int64>
    private let context: AIOContext
    /// What is left of the last chunk.
    private var rest = FileBytes()
    private var chunks: AIOChunks.AsyncIterator?

    fileprivate init(_ file: AIOFile, _ range: Range<Int64>, _ context: AIOContext) {
      (self.file, self.range, self.context) = (file, range, context)
    }

    mutating func next() async throws -> UInt8? {
      try await nextBuffer(suggested: 1)?.first
    }

    mutating func nextBuffer(suggested count: Int) async throws -> FileBytes? {
      if rest.isEmpty {
        guard !range.isEmpty else { return nil }
        try await readChunk()
      }
      let part = rest.prefix(count)
      rest = rest.dropFirst(part.count)
      return part
    }

    /// Reads the next chunk into `rest`.
    ///
    /// - Throws: `SocketError.disconnected` if the file has become shorter than its answer's head
    ///   says, which only the end of the connection tells; ``AIOError``.
    fileprivate mutating func readChunk() async throws {
      let chunk = try await nextChunk()
      rest = FileBytes(buffer: chunk, bounds: 0..<chunk.count)
      range = range.lowerBound + Int64(chunk.count)..<range.upperBound
    }

    private mutating func nextChunk() async throws -> AIOBuffer {
      let wanted = Int(Swift.min(Int64(FileBody.chunkSize), range.upperBound - range.lowerBound))
      if chunks == nil {
        // The last buffer, which nobody refers to any more, is the next.
        rest = FileBytes()
        let buffer = try context.makeBuffer(count: wanted)
        if let count = try file.readNow(at: range.lowerBound, into: buffer) {
          guard count == wanted else { throw SocketError.disconnected }
          return buffer
        }
        chunks = context.chunks(
          of: file, size: FileBody.chunkSize, readAhead: 2, range: range
        ).makeAsyncIterator()
      }
      guard let chunk = try await chunks?.next(), chunk.count == wanted else {
        throw SocketError.disconnected
      }
      return chunk
    }
  }
}

/// Bytes of a buffer, as a collection.
struct FileBytes: RandomAccessCollection {
  let buffer: AIOBuffer
  let bounds: Range<Int>

  var startIndex: Int { bounds.lowerBound }
  var endIndex: Int { bounds.upperBound }

  subscript(position: Int) -> UInt8 {
    // Within the bounds, which are within the buffer.
    unsafe buffer.bytes.unsafeLoad(fromByteOffset: position, as: UInt8.self)
  }

  subscript(bounds: Range<Int>) -> FileBytes {
    FileBytes(buffer: buffer, bounds: bounds)
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
  private static let none = AIOBuffer(count: 0)

  /// No bytes.
  init() { self.init(buffer: Self.none, bounds: 0..<0) }
}
#endif
