// SPDX-License-Identifier: Apache-2.0
//
// A read of any range under way.

internal import PlatformLibc

/// The memory of a read of any range, whose whole blocks it covers, and the read itself while it is
/// under way: one object, so that a read allocates no more.
///
/// - Safety: `@unchecked Sendable`, as its superclass is, because `completion` is set before the
///   request is made, and taken by its one completion.
final class RangeRead: BufferStorage, @unchecked Sendable {
  var completion: AIOBufferCompletion?
  /// The offset in the file of the memory's first byte.
  let start: Int64
  /// The offset in the memory of the first byte that is wanted, and their number.
  private let (head, wanted): (Int, Int)
  /// The number of bytes to read.
  private let length: Int
  private let subject: AIOError.Subject

  /// - Throws: ``AIOError`` if there is no such range, or no memory.
  init(_ file: OpenFile, _ offset: Int64, _ count: Int, pool: MemoryPool) throws(AIOError) {
    subject = AIOError.Subject(
      operation: .read, path: file.path, descriptor: file.descriptor, offset: offset,
      length: count)
    guard offset >= 0 else { throw .negative(subject) }
    guard count >= 0 else {
      throw AIOError(
        .invalidOffset, subject, .text("\(count) bytes cannot be read; 0 or more can"))
    }
    guard offset <= Int64.max - Int64(count) else { throw .pastLargestOffset(subject) }
    let alignment = file.readAlignment
    start = Int64(alignment.roundDown(Int(offset)))
    head = Int(offset - start)
    wanted = count
    // No file has a byte in the block that holds the largest offset.
    let end = min(alignment.roundUp(Int(offset) + count), alignment.roundDown(.max))
    length = count == 0 ? 0 : max(0, end - Int(start))
    // The file may be shorter: what is not read is never touched, and takes no memory.
    guard let piece = pool.take(length) else { throw AIOError(errno: ENOMEM, subject) }
    super.init(piece, of: pool)
  }

  var operation: Operation {
    // Within the memory, which this keeps.
    unsafe .read(
      into: .piece(
        Piece(bytes: UnsafeMutableRawBufferPointer(start: base, count: length), owner: self)))
  }

  func complete(_ result: Result<Int, AIOError>) {
    let completion = completion.take()
    switch result {
    case .success(let count): completion?(.success(slice(count)))
    case .failure(let error): completion?(.failure(rebased(error)))
    }
  }

  /// The bytes that are wanted, of so many that were read.
  func slice(_ count: Int) -> AIOBuffer {
    AIOBuffer(self, head..<head + min(max(0, count - head), wanted))
  }

  /// The error with the range that was asked for.
  func rebased(_ error: AIOError) -> AIOError {
    error.rebased(subject, skipped: head)
  }
}

extension AIOError {
  /// The error of a read of a range, as that of a part of it, which begins `skipped` bytes later.
  func rebased(_ part: Subject, skipped: Int) -> AIOError {
    with(part, transferred: min(max(0, transferred - skipped), part.length ?? 0))
  }
}

extension OpenFile {
  /// The alignment of reads that take no copy.
  fileprivate var readAlignment: BlockAlignment {
    if let directReads, directReads.descriptor != nil { return directReads.alignment }
    return traits.alignment
  }
}
