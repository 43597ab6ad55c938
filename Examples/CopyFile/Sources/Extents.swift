// SPDX-License-Identifier: Apache-2.0

import Glibc
import SystemPackage

/// The parts of a file that hold data, in order. All others read as zeros.
enum Extents {
  // SEEK_DATA and SEEK_HOLE, which Swift does not import.
  private static let seekData: Int32 = 3
  private static let seekHole: Int32 = 4

  /// The extents of a file, from `lseek(2)`, which may block on the disk. All is data if the
  /// filesystem cannot tell.
  ///
  /// - Parameter alignment: the size that the beginnings are rounded down to a multiple of.
  static func data(
    of descriptor: FileDescriptor, size: Int64, alignment: Int64
  ) throws(Errno) -> [Range<Int64>] {
    var extents: [Range<Int64>] = []
    var offset: Int64 = 0
    while offset < size {
      let start = lseek(descriptor.rawValue, off_t(offset), seekData)
      if start < 0 {
        // ENXIO: a hole from here to the end.
        if errno == ENXIO { break }
        if errno == EINVAL || errno == EOPNOTSUPP { return [0..<size] }
        throw Errno(rawValue: errno)
      }
      let end = lseek(descriptor.rawValue, start, seekHole)
      guard end > start else {
        // The file has become shorter meanwhile, which the read will find.
        extents.append(Int64(start) / alignment * alignment..<size)
        break
      }
      if start < size {
        extents.append(Int64(start) / alignment * alignment..<min(Int64(end), size))
      }
      offset = Int64(end)
    }
    return merged(extents)
  }

  /// Whether a file is so many small parts that each disk request would be for a few KiB. Through
  /// the page cache it is copied several times faster then: the kernel reads ahead over the holes,
  /// and finds room for many parts at once.
  static func areFragments(_ extents: [Range<Int64>]) -> Bool {
    extents.count >= 256 && extents.reduce(0) { $0 + $1.count } / extents.count < 64 << 10
  }

  /// The union of `extents`, in order.
  static func merged(_ extents: [Range<Int64>]) -> [Range<Int64>] {
    var merged: [Range<Int64>] = []
    for extent in extents.sorted(by: { $0.lowerBound < $1.lowerBound }) where !extent.isEmpty {
      if let last = merged.last, extent.lowerBound <= last.upperBound {
        merged[merged.count - 1] =
          last.lowerBound..<max(last.upperBound, extent.upperBound)
      } else {
        merged.append(extent)
      }
    }
    return merged
  }
}
