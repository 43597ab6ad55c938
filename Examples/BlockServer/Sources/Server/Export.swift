// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Glibc
import SystemPackage

/// Why a file cannot be served, in words for the server's user.
struct ExportError: Error, CustomStringConvertible {
  let description: String
}

/// A file or block device, and what the requests on it share. Used by all loops.
final class Export: Sendable {
  let description: ExportDescription
  let path: FilePath
  let file: AIOFile
  /// The same file through the page cache, for what is done off the loops.
  let plain: FileDescriptor
  let isBlockDevice: Bool
  /// What offset and length of a direct request are multiples of.
  let block: UInt64
  /// What exclusive ranges are multiples of: at least a page of the page cache, because what goes
  /// through that cache changes whole pages.
  let page: UInt64
  /// The part of the file in whole blocks. What lies behind it can be read directly, because a read
  /// ends with the file, but not written.
  let wholeBlocks: UInt64
  let ranges = RangeLocks()
  /// Where calls that may sleep are made, one after the other.
  let worker: DispatchQueue

  /// Opens a file. Blocks the calling thread.
  init(name: String, path: FilePath, readOnly: Bool) throws {
    self.path = path
    let mode = readOnly ? FileDescriptor.AccessMode.readOnly : .readWrite
    do {
      do throws(AIOError) {
        file = try AIOFile.open(path, mode)
      } catch {
        guard error.code == .directUnsupported else { throw error }
        // Through the page cache, then; the loop still does not sleep.
        file = try AIOFile.open(path, mode, caching: .buffered)
      }
      plain = try FileDescriptor.open(path, mode, options: .closeOnExec)
      // What keeps overlapping requests apart does so within one export: a second, of this server or
      // another, must not write. (Some filesystems have no locks.)
      let lock = readOnly ? LOCK_SH : LOCK_EX
      if flock(plain.rawValue, lock | LOCK_NB) != 0, errno == EWOULDBLOCK {
        try plain.close()
        throw ExportError(
          description: """
            \(path) is an export already, of this server or another, and one of the two may write: \
            serve it under one name, or each time with --read-only
            """)
      }
    } catch let error as ExportError {
      throw error
    } catch let error as AIOError where error.code == .permissionDenied && !readOnly {
      throw ExportError(description: "\(error); --read-only serves what must not be written")
    } catch {
      throw ExportError(description: "cannot serve \(path): \(error)")
    }
    let size = UInt64(try file.size())
    var status = stat()
    fstat(plain.rawValue, &status)
    isBlockDevice = status.st_mode & S_IFMT == S_IFBLK
    block = UInt64(file.alignment.offset)
    page = max(4096, block)
    wholeBlocks = size / block * block
    worker = DispatchQueue(label: "aio-nbd.worker.\(name)")
    description = ExportDescription(
      name: name, size: size, isReadOnly: readOnly, preferredBlock: UInt32(page))
  }

  deinit {
    try? plain.close()
  }

  var size: UInt64 { description.size }

  @inline(__always)
  func down(_ offset: UInt64, to unit: UInt64) -> UInt64 { offset & ~(unit - 1) }
  @inline(__always)
  func up(_ offset: UInt64, to unit: UInt64) -> UInt64 { (offset + unit - 1) & ~(unit - 1) }

  /// The exclusive range for work on the bytes of `range`.
  func pages(_ range: Range<UInt64>) -> Range<UInt64> {
    down(range.lowerBound, to: page)..<up(range.upperBound, to: page)
  }
}
