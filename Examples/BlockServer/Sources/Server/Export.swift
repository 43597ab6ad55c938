// SPDX-License-Identifier: Apache-2.0

import CStorage
import DispatchAIO
import Glibc
import SystemPackage

/// The reason why a file cannot be served, as a sentence for the server's user.
struct ExportError: Error, CustomStringConvertible {
  let description: String
}

/// A file or block device that is served, with the locks that its requests share. Used by all
/// loops, from any thread.
final class Export: Sendable {
  let description: ExportDescription
  let path: FilePath
  let file: AIOFile
  /// A descriptor of the same file through the page cache, for the calls made on `worker`.
  let plain: FileDescriptor
  let isBlockDevice: Bool
  /// The size that offset and length of a direct request are multiples of.
  let block: UInt64
  /// The size that exclusive ranges are multiples of: at least a page, because a write through the
  /// page cache changes whole pages.
  let page: UInt64
  /// The size that the filesystem zeroes in multiples of on the disk, and the rest in the page
  /// cache.
  let zeroUnit: UInt64
  /// The end of the last whole block. The bytes behind it can be read directly, because a read ends
  /// with the file, but not written.
  let wholeBlocks: UInt64
  let ranges: RangeLocks
  /// Makes the calls that may block.
  let worker: Worker
  let syncs: SyncGate

  /// Opens a file. Blocks the calling thread.
  init(name: String, path: FilePath, readOnly: Bool) throws {
    self.path = path
    let mode = readOnly ? FileDescriptor.AccessMode.readOnly : .readWrite
    do {
      do throws(AIOError) {
        file = try AIOFile.open(path, mode)
      } catch {
        guard error.code == .directUnsupported else { throw error }
        // Through the page cache, then; the loop does not block on that, either.
        file = try AIOFile.open(path, mode, caching: .buffered)
      }
      plain = try FileDescriptor.open(path, mode, options: .closeOnExec)
      do {
        try Self.lock(plain, path, readOnly: readOnly)
      } catch {
        try plain.close()
        throw error
      }
    } catch let error as ExportError {
      throw error
    } catch let error as AIOError where error.code == .permissionDenied && !readOnly {
      throw ExportError(description: "\(error); --read-only serves what must not be written")
    } catch let error as AIOError where error.code == .unsupportedFile {
      throw ExportError(
        description: """
          cannot serve \(path): it is no regular file and no block device, and only those are \
          served
          """)
    } catch {
      throw ExportError(description: "cannot serve \(path): \(error)")
    }
    let size = UInt64(try file.size())
    var status = stat()
    fstat(plain.rawValue, &status)
    isBlockDevice = status.st_mode & S_IFMT == S_IFBLK
    block = UInt64(file.alignment.offset)
    page = max(4096, block)
    zeroUnit = max(page, UInt64(status.st_blksize))
    wholeBlocks = size / block * block
    ranges = RangeLocks()
    worker = Worker(label: "aio-nbd.worker.\(name)", ranges: ranges)
    syncs = SyncGate(isBuffered: file.caching == .buffered)
    description = ExportDescription(
      name: name, size: size, isReadOnly: readOnly, preferredBlock: UInt32(page))
  }

  deinit {
    try? plain.close()
  }

  /// Locks the file for as long as it is open: `ranges` keeps the requests of one export apart, and
  /// nobody else may write. (Some filesystems have no locks.)
  private static func lock(_ file: FileDescriptor, _ path: FilePath, readOnly: Bool) throws {
    // The exports of the file, in this server or another.
    let kind = readOnly ? LOCK_SH : LOCK_EX
    if flock(file.rawValue, kind | LOCK_NB) != 0, errno == EWOULDBLOCK {
      throw ExportError(
        description: """
          \(path) is an export already, of this server or another, and one of the two may write: \
          serve it under one name, or each time with --read-only
          """)
    }
    // Virtual machines, qemu-nbd, qemu-img.
    let use = readOnly ? CSTORAGE_READ : CSTORAGE_READ | CSTORAGE_WRITE
    if cstorage_lock_image(file.rawValue, use, CSTORAGE_WRITE | CSTORAGE_RESIZE) == -EAGAIN {
      throw ExportError(
        description: """
          \(path) is in use, by QEMU or another program that locks images as it does, and one of \
          the two may write: end that, or use it there and here for reading only (--read-only)
          """)
    }
  }

  var size: UInt64 { description.size }

  @inline(__always)
  func down(_ offset: UInt64, to unit: UInt64) -> UInt64 { offset & ~(unit - 1) }
  @inline(__always)
  func up(_ offset: UInt64, to unit: UInt64) -> UInt64 { (offset + unit - 1) & ~(unit - 1) }

  /// The range to lock exclusively for a change of `range`.
  func pages(_ range: Range<UInt64>) -> Range<UInt64> {
    down(range.lowerBound, to: page)..<up(range.upperBound, to: page)
  }
}
