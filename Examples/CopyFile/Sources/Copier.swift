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

  /// Copies the bytes of `extents`.
  nonisolated func copy(_ extents: [Range<Int64>]) async throws {
    try await forEachPiece(of: extents) { try await $0.copyPieces() }
  }

  /// Copies from the beginning until a read says that this is the end, whatever the size says.
  ///
  /// - Returns: the number of bytes.
  func copyToEnd() async throws -> Int64 {
    var offset: Int64 = 0
    while true {
      // Less than was asked for is the end: a read is finished by the library.
      let buffer = try await context.read(source, from: offset, count: chunk)
      try await write(buffer, at: offset)
      progress.add(buffer.count)
      offset += Int64(buffer.count)
      if buffer.count < chunk { return offset }
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
    while let parts = next() { try await copy(parts: parts) }
  }

  // Not inlined: the optimizer of Swift 6.3 crashes over the two loops in one function.
  @inline(never)
  private func copy(parts: [Range<Int64>]) async throws {
    let piece = Self.span(of: parts)
    let buffer = try await read(piece, of: source)
    for part in parts {
      let start = Int(part.lowerBound - piece.lowerBound)
      try await write(buffer[start..<start + part.count], at: part.lowerBound)
      progress.add(part.count)
    }
  }

  private func write(_ buffer: AIOBuffer, at offset: Int64) async throws {
    do {
      // Whole blocks, many at a time.
      try await context.write(destination, at: offset, from: [buffer])
    } catch  where error.code == .misaligned {
      // The end of an extent.
      try await context.write(destination, contentsOf: buffer, at: offset)
    }
  }

  private static func span(of parts: [Range<Int64>]) -> Range<Int64> {
    parts[0].lowerBound..<parts[parts.count - 1].upperBound
  }

  private func comparePieces() async throws {
    while let parts = next() {
      let piece = Self.span(of: parts)
      let buffer = try await read(piece, of: source)
      let other = try await read(piece, of: destination)
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

  private func read(_ piece: Range<Int64>, of file: AIOFile) async throws -> AIOBuffer {
    let buffer = try await context.read(file, from: piece.lowerBound, count: piece.count)
    guard buffer.count == piece.count else { throw SourceEnded() }
    return buffer
  }
}
