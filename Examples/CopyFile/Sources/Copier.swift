// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc
import ServerSupport

/// The source has ended before the size that it had.
struct SourceEnded: Error {}

/// A copier of pieces between two files, several at once. The actor and its tasks run on the
/// context's queue: what they share, the next piece, needs no lock, and no request changes threads.
actor Copier {
  private let context: AIOContext
  private let source: AIOFile
  private let destination: AIOFile
  private let chunk: Int
  /// The largest hole that is read with the extents around it, as one piece.
  private let readGap: Int64
  private let progress: ProgressBar
  private var extents: ArraySlice<Range<Int64>> = []

  nonisolated var unownedExecutor: UnownedSerialExecutor {
    context.executor.asUnownedSerialExecutor()
  }

  init(
    _ context: AIOContext, from source: AIOFile, to destination: AIOFile, chunk: Int,
    readGap: Int64, _ progress: ProgressBar
  ) {
    self.readGap = readGap
    self.context = context
    self.source = source
    self.destination = destination
    self.chunk = chunk
    self.progress = progress
  }

  /// Copies the bytes of `extents`. Up to the alignment, more may be written, zeros.
  nonisolated func copy(_ extents: [Range<Int64>]) async throws {
    try await forEachPiece(of: extents) { try await $0.copyPieces() }
  }

  /// Copies from the beginning until a read says that this is the end, whatever the size says.
  ///
  /// - Returns: the number of bytes.
  func copyToEnd() async throws -> Int64 {
    var buffer = AIOUniqueBuffer(count: chunk)
    var offset: Int64 = 0
    while true {
      // Less than was asked for is the end: a read is finished by the library.
      let count = try await context.read(source, at: offset, into: &buffer, range: 0..<chunk)
      if count > 0 {
        let length = destination.alignment.roundUp(count)
        try await context.write(destination, at: offset, from: buffer, range: 0..<length)
      }
      progress.add(count)
      offset += Int64(count)
      if count < chunk { return offset }
    }
  }

  /// Compares the bytes of `extents`.
  nonisolated func compare(_ extents: [Range<Int64>]) async throws {
    try await forEachPiece(of: extents) { try await $0.comparePieces() }
  }

  /// Runs `body` in as many tasks as there may be requests in flight. Each takes one piece after
  /// the other, so that some read while others write.
  private nonisolated func forEachPiece(
    of extents: [Range<Int64>], _ body: @escaping @Sendable (Copier) async throws -> Void
  ) async throws {
    await set(extents)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for _ in 0..<context.queueDepth {
        group.addTask(executorPreference: context.taskExecutor) { try await body(self) }
      }
      // The first error cancels the others.
      try await group.waitForAll()
    }
  }

  private func set(_ extents: [Range<Int64>]) { self.extents = extents[...] }

  /// The extents, or parts of them, of the next piece: one of up to a chunk, or several with small
  /// holes between, that are in a chunk together.
  private func next() -> [Range<Int64>]? {
    guard let first = extents.first else { return nil }
    let limit = first.lowerBound + Int64(chunk)
    var parts: [Range<Int64>] = []
    while let extent = extents.first, extent.lowerBound < limit {
      if let last = parts.last, extent.lowerBound - last.upperBound > readGap { break }
      let end = min(extent.upperBound, limit)
      parts.append(extent.lowerBound..<end)
      if end < extent.upperBound {
        extents[extents.startIndex] = end..<extent.upperBound
        break
      }
      extents.removeFirst()
      if readGap == 0 { break }
    }
    return parts
  }

  private func copyPieces() async throws {
    guard !extents.isEmpty else { return }
    var buffer = AIOUniqueBuffer(count: chunk)
    while let parts = next() { try await copy(parts, through: &buffer) }
  }

  // Not inlined: the optimizer of Swift 6.3 crashes over the two loops in one function.
  @inline(never)
  private func copy(
    _ parts: [Range<Int64>], through buffer: inout AIOUniqueBuffer
  ) async throws {
    let piece = Self.span(of: parts)
    try await read(piece, of: source, into: &buffer)
    for part in parts { try await write(part, of: piece, from: &buffer) }
  }

  /// Writes a part of a piece that was read.
  private func write(
    _ part: Range<Int64>, of piece: Range<Int64>, from buffer: inout AIOUniqueBuffer
  ) async throws {
    let start = Int(part.lowerBound - piece.lowerBound)
    // The bytes written beyond the part are in a hole, or behind the end, where they are cut off.
    let end = start + destination.alignment.roundUp(part.count)
    buffer.withUnsafeMutableBytes {
      _ = UnsafeMutableRawBufferPointer(rebasing: $0[start + part.count..<end])
        .initializeMemory(as: UInt8.self, repeating: 0)
    }
    try await context.write(destination, at: part.lowerBound, from: buffer, range: start..<end)
    progress.add(part.count)
  }

  private static func span(of parts: [Range<Int64>]) -> Range<Int64> {
    parts[0].lowerBound..<parts[parts.count - 1].upperBound
  }

  private func comparePieces() async throws {
    guard !extents.isEmpty else { return }
    var buffer = AIOUniqueBuffer(count: chunk)
    var other = AIOUniqueBuffer(count: chunk)
    while let parts = next() {
      let piece = Self.span(of: parts)
      try await read(piece, of: source, into: &buffer)
      try await read(piece, of: destination, into: &other)
      let isEqual = buffer.withUnsafeBytes { a in
        other.withUnsafeBytes { b in memcmp(a.baseAddress!, b.baseAddress!, piece.count) == 0 }
      }
      guard isEqual else {
        throw Failure(
          """
          the copy differs from \(source.path?.escaped ?? "") between bytes \(piece.lowerBound) and \
          \(piece.upperBound); the source may have been changed meanwhile
          """)
      }
      progress.add(parts.reduce(0) { $0 + $1.count })
    }
  }

  private func read(
    _ piece: Range<Int64>, of file: AIOFile, into buffer: inout AIOUniqueBuffer
  ) async throws {
    let length = file.alignment.roundUp(piece.count)
    let count = try await context.read(
      file, at: piece.lowerBound, into: &buffer, range: 0..<length)
    guard count >= piece.count else { throw SourceEnded() }
  }
}
