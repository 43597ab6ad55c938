// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc
import ServerSupport

/// A copier of pieces between two files, several at once. The actor and its tasks run on the
/// context's queue: what they share, the next piece, needs no lock, and no request changes threads.
actor Copier {
  private let context: AIOContext
  private let source: AIOFile
  private let destination: AIOFile
  private let chunk: Int
  private let progress: ProgressBar
  private var extents: ArraySlice<Range<Int64>> = []

  nonisolated var unownedExecutor: UnownedSerialExecutor {
    context.executor.asUnownedSerialExecutor()
  }

  init(
    _ context: AIOContext, from source: AIOFile, to destination: AIOFile, chunk: Int,
    _ progress: ProgressBar
  ) {
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

  private func next() -> Range<Int64>? {
    guard let extent = extents.first else { return nil }
    let end = min(extent.upperBound, extent.lowerBound + Int64(chunk))
    if end == extent.upperBound {
      extents.removeFirst()
    } else {
      extents[extents.startIndex] = end..<extent.upperBound
    }
    return extent.lowerBound..<end
  }

  private func copyPieces() async throws {
    guard !extents.isEmpty else { return }
    var buffer = AIOUniqueBuffer(count: chunk)
    while let piece = next() {
      try await read(piece, of: source, into: &buffer)
      // The bytes written beyond the piece are in a hole, or behind the end, where they are cut
      // off.
      let length = destination.alignment.roundUp(piece.count)
      buffer.withUnsafeMutableBytes {
        _ = UnsafeMutableRawBufferPointer(rebasing: $0[piece.count..<length])
          .initializeMemory(as: UInt8.self, repeating: 0)
      }
      try await context.write(
        destination, at: piece.lowerBound, from: buffer, range: 0..<length)
      progress.add(piece.count)
    }
  }

  private func comparePieces() async throws {
    guard !extents.isEmpty else { return }
    var buffer = AIOUniqueBuffer(count: chunk)
    var other = AIOUniqueBuffer(count: chunk)
    while let piece = next() {
      try await read(piece, of: source, into: &buffer)
      try await read(piece, of: destination, into: &other)
      let isEqual = buffer.withUnsafeBytes { a in
        other.withUnsafeBytes { b in memcmp(a.baseAddress!, b.baseAddress!, piece.count) == 0 }
      }
      guard isEqual else {
        throw Failure(
          """
          the copy differs from \(source.path ?? "") between bytes \(piece.lowerBound) and \
          \(piece.upperBound); the source may have been changed meanwhile
          """)
      }
      progress.add(piece.count)
    }
  }

  private func read(
    _ piece: Range<Int64>, of file: AIOFile, into buffer: inout AIOUniqueBuffer
  ) async throws {
    let length = file.alignment.roundUp(piece.count)
    let count = try await context.read(
      file, at: piece.lowerBound, into: &buffer, range: 0..<length)
    guard count >= piece.count else {
      throw Failure("\(file.path ?? "") became shorter while it was copied")
    }
  }
}
