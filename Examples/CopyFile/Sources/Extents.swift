// SPDX-License-Identifier: Apache-2.0

import Glibc
import SystemPackage

/// Which parts of a file hold data, in order: everything else reads as zeros.
enum Extents {
  // What Linux calls them; the C library has them under names that Swift does not see.
  private static let seekData: Int32 = 3
  private static let seekHole: Int32 = 4

  /// Asks the filesystem: `lseek(2)`, which can sleep in the disk. A filesystem that does not keep
  /// track says that all is data.
  ///
  /// - Parameter alignment: What the beginnings are rounded down to.
  static func data(
    of descriptor: FileDescriptor, size: Int64, alignment: Int64
  ) throws(Errno) -> [Range<Int64>] {
    var extents: [Range<Int64>] = []
    var offset: Int64 = 0
    while offset < size {
      let start = lseek(descriptor.rawValue, off_t(offset), seekData)
      if start < 0 {
        // ENXIO: nothing but a hole from here on.
        if errno == ENXIO { break }
        if errno == EINVAL || errno == EOPNOTSUPP { return [0..<size] }
        throw Errno(rawValue: errno)
      }
      let end = lseek(descriptor.rawValue, start, seekHole)
      guard end > start else {
        // The file has become shorter in between: the read will tell.
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

  /// The parts that are in any of `extents`, each once.
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
