// SPDX-License-Identifier: Apache-2.0
//
// A segment file on its writing side: opening one that exists, and making one. Both block the
// calling thread, so the loop does neither (see SegmentSupply).

import CJournal
import DispatchAIO
import Glibc
import SystemPackage

/// A segment file, open for writing.
struct Segment: Sendable {
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
    var options: FileDescriptor.OpenOptions = .noFollow
    if syncs { options.insert(.init(rawValue: O_DSYNC)) }
    return try AIOFile.open(path, .writeOnly, options: options)
  }

  /// The number of a new segment is taken by another file.
  struct NumberTaken: Error, CustomStringConvertible {
    let path: FilePath
    var description: String { "\(path) exists, and is no segment of this run; it is left as it is" }
  }

  /// Makes a segment of `size` bytes, filled with zeros. The file has a temporary name until it is
  /// complete and durable, and replaces no other.
  ///
  /// The zeros are written, not only reserved, because a write to a reserved block changes the
  /// file's extent map, which makes every fdatasync a commit of the filesystem's journal.
  ///
  /// Blocks the calling thread, for as long as it takes to write `size` bytes.
  init(
    making number: UInt64, in directory: OpenDirectory, _ directoryPath: FilePath,
    _ identity: JournalIdentity, size: Int, syncs: Bool
  ) throws {
    let name = JournalFormat.fileName(of: number)
    let unfinished = name + JournalFormat.unfinishedSuffix
    let path = directoryPath.appending(name)
    // Left by an attempt that failed, or put there by another; if it is a link, then the link.
    unlinkat(directory.file.rawValue, unfinished, 0)
    // Without O_DSYNC: for the zeros, one fsync at the end is enough.
    let made = try AIOFile.open(
      directoryPath.appending(unfinished), .readWrite,
      options: [.create, .exclusiveCreate, .noFollow], permissions: .ownerReadWrite)
    do {
      try Self.expect(made, unfinished, in: directory, directoryPath)
      unit = max(JournalFormat.smallestUnit, made.alignment.offset)
      self.size = size
      self.number = number
      try Self.fill(
        made,
        SegmentHeader(
          unit: unit, identity: identity, segment: number, size: size,
          created: JournalFormat.now()))
      let answer = cjournal_rename_new(directory.file.rawValue, unfinished, name)
      if answer == -EEXIST { throw NumberTaken(path: path) }
      guard answer == 0 else { throw Errno(rawValue: -answer) }
      guard fsync(directory.file.rawValue) == 0 else { throw Errno(rawValue: errno) }
      // Under its final name, which error messages show.
      file = try Self.open(path, syncs: syncs)
      try Self.expect(file, name, in: directory, directoryPath)
    } catch {
      unlinkat(directory.file.rawValue, unfinished, 0)
      throw error
    }
  }

  /// Fills a new file with zeros and its header, durably.
  private static func fill(_ file: AIOFile, _ header: SegmentHeader) throws {
    try file.preallocate(0..<Int64(header.size))
    let descriptor = file.fileDescriptor
    let zeros = AIOBuffer(count: min(header.size, 1 << 20))
    var offset = 0
    while offset < header.size {
      let piece = zeros[..<min(zeros.count, header.size - offset)]
      offset += try piece.withUnsafeBytes {
        try descriptor.writeAll(toAbsoluteOffset: Int64(offset), $0)
      }
    }
    let first = zeros[..<header.unit]
    first.withUnsafeMutableBytes { header.write(to: $0) }
    _ = try first.withUnsafeBytes { try descriptor.writeAll(toAbsoluteOffset: 0, $0) }
    guard fsync(descriptor.rawValue) == 0 else { throw Errno(rawValue: errno) }
  }

  /// Makes sure that a file is the one of that name in the directory that is locked: the path may
  /// lead to another directory by now.
  private static func expect(
    _ file: AIOFile, _ name: String, in directory: OpenDirectory, _ path: FilePath
  ) throws {
    var (opened, named) = (stat(), stat())
    guard fstat(file.fileDescriptor.rawValue, &opened) == 0,
      fstatat(directory.file.rawValue, name, &named, AT_SYMLINK_NOFOLLOW) == 0,
      opened.st_dev == named.st_dev, opened.st_ino == named.st_ino
    else {
      throw JournalError("\(path): the directory or \(name) in it has been replaced; start anew")
    }
  }
}
