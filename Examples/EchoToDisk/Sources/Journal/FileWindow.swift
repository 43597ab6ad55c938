// SPDX-License-Identifier: Apache-2.0
//
// Reading a file of which parts may be unreadable. Blocks the calling thread.

import Glibc
import SystemPackage

/// A part of a file in memory, read ahead. What the disk cannot read is read block by block, and
/// what remains unreadable is zeros, and known. Confined to one thread.
final class FileWindow {
  /// `pread(2)`, or what a test has in its place.
  typealias Read = (FileDescriptor, Int, UnsafeMutableRawBufferPointer) throws -> Int

  /// The size of the blocks that are read one by one where the disk has an error.
  static let block = 4096
  /// How far the first call reads ahead: most files are opened for the sake of their beginning.
  static let beginning = 16 << 10
  /// How far the others do.
  static let readAhead = 1 << 20

  let descriptor: FileDescriptor
  let size: Int
  private let read: Read
  /// Allocated as it is needed.
  private var window = UnsafeMutableRawBufferPointer(start: nil, count: 0)
  private var start = 0
  private var count = 0
  /// The blocks that are unreadable, by their numbers.
  private var unreadable: [Int: Errno] = [:]

  /// Takes over the descriptor.
  init(_ descriptor: FileDescriptor, size: Int, read: @escaping Read = FileWindow.systemRead) {
    (self.descriptor, self.size, self.read) = (descriptor, size, read)
  }

  deinit {
    try? descriptor.close()
    window.deallocate()
  }

  static func systemRead(
    _ descriptor: FileDescriptor, _ offset: Int, _ bytes: UnsafeMutableRawBufferPointer
  ) throws -> Int {
    try descriptor.read(fromAbsoluteOffset: Int64(offset), into: bytes)
  }

  /// Discards what was read ahead, so that the next call reads the file as it is now.
  func discard() { count = 0 }

  /// `length` bytes of the file, valid until the next call; zeros where it is unreadable. `nil` if
  /// it ends before.
  func bytes(at offset: Int, _ length: Int) -> UnsafeRawBufferPointer? {
    guard offset >= 0, length >= 0, length <= size, offset <= size - length else { return nil }
    if offset < start || offset + length > start + count {
      let first = offset & ~(Self.block - 1)
      reserve(offset + length - first, upTo: size - first)
      fill(from: first)
      guard offset + length <= start + count else { return nil }
    }
    return .init(
      rebasing: UnsafeRawBufferPointer(window)[(offset - start)..<(offset - start + length)])
  }

  /// The first place in a range that is unreadable, and why.
  func failure(in range: Range<Int>) -> (offset: Int, error: Errno)? {
    guard !unreadable.isEmpty, !range.isEmpty else { return nil }
    for number in range.lowerBound / Self.block...(range.upperBound - 1) / Self.block {
      if let error = unreadable[number] {
        return (max(range.lowerBound, number * Self.block), error)
      }
    }
    return nil
  }

  /// Makes room for a number of bytes, and what is read ahead of them.
  private func reserve(_ needed: Int, upTo most: Int) {
    let ahead = window.isEmpty ? Self.beginning : Self.readAhead
    guard window.count < max(needed, min(ahead, most)) else { return }
    window.deallocate()
    let count = min(needed + ahead, most)
    window = .allocate(
      byteCount: (count + Self.block - 1) & ~(Self.block - 1), alignment: Self.block)
  }

  private func fill(from first: Int) {
    (start, count) = (first, 0)
    let end = min(window.count, size - first)
    while count < end {
      do {
        let got = try read(descriptor, start + count, .init(rebasing: window[count..<end]))
        if got == 0 { break }
        count += got
      } catch Errno.interrupted {
        continue
      } catch {
        guard fillByBlocks(upTo: end) else { break }
      }
    }
    // The bytes of a file that is being cut are not there.
  }

  /// Reads block by block up to the end of a stretch of 64 KiB.
  ///
  /// - Returns: `false` at the end of the file.
  private func fillByBlocks(upTo end: Int) -> Bool {
    let stop = min(end, count + (64 << 10))
    while count < stop {
      let block = min(Self.block - (start + count) % Self.block, end - count)
      do {
        let got = try read(
          descriptor, start + count, .init(rebasing: window[count..<count + block]))
        if got == 0 { return false }
        count += got
      } catch Errno.interrupted {
        continue
      } catch {
        UnsafeMutableRawBufferPointer(rebasing: window[count..<count + block])
          .initializeMemory(as: UInt8.self, repeating: 0)
        unreadable[(start + count) / Self.block] = error as? Errno ?? .ioError
        count += block
      }
    }
    return true
  }
}
