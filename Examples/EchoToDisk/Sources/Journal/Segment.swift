// SPDX-License-Identifier: Apache-2.0
//
// A segment file on its writing side: opening one that exists, and making one. Both block the
// calling thread, so the loop does neither (see SegmentSupply).

import DispatchAIO
import Glibc
import SystemPackage

/// A segment file, open for writing.
struct Segment: Sendable {
  static let unfinishedSuffix = ".making"

  let file: AIOFile
  let number: UInt64
  /// The number of bytes that the offset of every batch is a multiple of.
  let unit: Int
  let size: Int

  /// Opens a segment that exists. `nil` if its batches are laid out for smaller sectors than the
  /// disk has.
  ///
  /// - Parameter syncs: whether a write is durable when it completes (`O_DSYNC`): one request, and
  ///   one turn of the loop, where there would be a write and then an fdatasync.
  init?(_ path: FilePath, _ header: SegmentHeader, syncs: Bool) throws {
    file = try Self.open(path, syncs: syncs)
    guard header.unit % file.alignment.offset == 0 else { return nil }
    number = header.segment
    unit = header.unit
    size = header.size
  }

  private static func open(_ path: FilePath, syncs: Bool) throws -> AIOFile {
    try AIOFile.open(path, .writeOnly, options: syncs ? .init(rawValue: O_DSYNC) : [])
  }

  /// Makes a segment of `size` bytes, filled with zeros. The file has a temporary name until it is
  /// complete and durable.
  ///
  /// The zeros are written, not only reserved, because a write to a reserved block changes the
  /// file's extent map, which makes every fdatasync a commit of the filesystem's journal.
  ///
  /// Blocks the calling thread, for as long as it takes to write `size` bytes.
  init(
    making number: UInt64, in directory: FilePath, journal: UInt64, size: Int, syncs: Bool
  ) throws {
    let path = directory.appending(JournalFormat.fileName(of: number))
    let unfinished = FilePath(path.string + Self.unfinishedSuffix)
    do {
      // Without O_DSYNC: for the zeros, one fsync at the end is enough.
      let file = try AIOFile.open(unfinished, .readWrite, options: [.create, .truncate])
      unit = max(512, file.alignment.offset)
      self.size = size
      self.number = number
      try file.preallocate(0..<Int64(size))
      let descriptor = file.fileDescriptor
      let zeros = AIOBuffer(count: min(size, 1 << 20))
      var offset = 0
      while offset < size {
        let piece = zeros[..<min(zeros.count, size - offset)]
        offset += try piece.withUnsafeBytes {
          try descriptor.writeAll(toAbsoluteOffset: Int64(offset), $0)
        }
      }
      let header = SegmentHeader(
        unit: unit, journal: journal, segment: number, size: size,
        created: JournalFormat.now())
      let first = zeros[..<unit]
      first.withUnsafeMutableBytes { header.write(to: $0) }
      _ = try first.withUnsafeBytes { try descriptor.writeAll(toAbsoluteOffset: 0, $0) }
      guard fsync(descriptor.rawValue) == 0 else { throw Errno(rawValue: errno) }
      guard rename(unfinished.string, path.string) == 0 else { throw Errno(rawValue: errno) }
      let directory = try FileDescriptor.open(directory, .readOnly, options: .directory)
      defer { try? directory.close() }
      guard fsync(directory.rawValue) == 0 else { throw Errno(rawValue: errno) }
      // Under its final name, which error messages show.
      self.file = try Self.open(path, syncs: syncs)
    } catch {
      unlink(unfinished.string)
      throw error
    }
  }
}
