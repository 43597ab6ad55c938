// SPDX-License-Identifier: Apache-2.0
//
// The memory of one direct attempt: the request's own where everything is aligned, else a bounce
// buffer that covers the blocks of its range. Pure functions of a request, which its completion
// repeats.

/// The memory of one direct attempt.
enum DirectTransfer: Equatable {
  /// The request's own, for so many bytes.
  case inPlace(count: Int)
  /// A bounce buffer, for `count` bytes of the file from `start` on: whole blocks, of which the
  /// request gets `wanted` bytes from its own offset on.
  case bounced(start: Int64, count: Int, wanted: Int)
}

extension Request where Attachment: ~Copyable {
  /// The memory of its next direct attempt.
  ///
  /// - Parameter alignment: That of the direct descriptor.
  /// - Returns: `nil` if there is none: the request is no read, has no bytes, or is not aligned and
  ///   reads into the caller's own memory. The loop does not touch that, because it may be a
  ///   mapping whose file has become shorter, for which the kernel answers EFAULT, and the
  ///   process dies.
  func directTransfer(_ alignment: BlockAlignment) -> DirectTransfer? {
    guard case .read(let memory) = operation else { return nil }
    let left = length - resumeOffset
    // Whole blocks up to the largest offset have no number.
    guard left > 0, chunkOffset < Int64.max - Int64(2 * BounceBuffers.size) else { return nil }
    let isInPlace =
      Int(chunkOffset) & (alignment.offset - 1) == 0
      && memory.isAligned(from: resumeOffset, alignment)
    let whole = alignment.roundDown(min(left, alignment.maximumTransfer))
    // Where the length alone is not aligned, a long read is in place up to its last block.
    if isInPlace, whole == left || whole > BounceBuffers.size {
      return .inPlace(count: whole)
    }
    guard !memory.isForeign else { return nil }
    let start = alignment.roundDown(Int(chunkOffset))
    let head = Int(chunkOffset) - start
    let wanted = min(left, BounceBuffers.size - head)
    return .bounced(
      start: Int64(start), count: alignment.roundUp(head + wanted), wanted: wanted)
  }

  /// Copies bytes of a bounce buffer to the memory of the next attempt.
  func copy(_ bytes: UnsafeRawBufferPointer) {
    guard case .read(let memory) = operation else { return }
    var toSkip = resumeOffset
    var done = 0
    for index in 0..<memory.elements where done < bytes.count {
      let piece = unsafe memory[index]
      let skipped = min(toSkip, piece.count)
      let count = min(piece.count - skipped, bytes.count - done)
      toSkip -= skipped
      guard count > 0 else { continue }
      // In bounds by the two minima; the request owns the memory.
      unsafe UnsafeMutableRawBufferPointer(rebasing: piece[skipped..<skipped + count])
        .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[done..<done + count]))
      done += count
    }
  }
}

extension Memory {
  /// Whether direct reads may fill it from the byte at `start` on. Lengths count for all pieces but
  /// a single one, whose request looks at its own.
  fileprivate func isAligned(from start: Int, _ alignment: BlockAlignment) -> Bool {
    let mask = UInt(bitPattern: alignment.memory - 1)
    switch self {
    case .piece(let piece):
      return unsafe (UInt(bitPattern: piece.bytes.baseAddress) &+ UInt(bitPattern: start)) & mask
        == 0
    case .buffers, .raws, .constants:
      guard start & (max(alignment.memory, alignment.offset) - 1) == 0 else { return false }
      return (0..<elements).allSatisfy {
        let bytes = unsafe self[$0]
        return unsafe bytes.count & (alignment.offset - 1) == 0
          && (bytes.isEmpty || UInt(bitPattern: bytes.baseAddress) & mask == 0)
      }
    }
  }
}
