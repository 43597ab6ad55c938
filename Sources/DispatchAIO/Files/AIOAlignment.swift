// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
internal import SystemPackage

/// What the parts of a direct request must be multiples of, in bytes; powers of two.
///
/// Asked of each file, because it differs from one to the next: 512 on most disks, 4096 on disks
/// with 4096-byte sectors, nothing at all on tmpfs and on buffered files.
public struct AIOAlignment: Hashable, Sendable {
  /// What the address of the memory must be a multiple of.
  public let memory: Int

  /// What the offset in the file and the length of each buffer must be multiples of.
  public let offset: Int

  /// No demands: a buffered file's, or tmpfs's.
  static var none: AIOAlignment { AIOAlignment(memory: 1, offset: 1) }

  /// The smallest multiple of ``offset`` that is not below `count`.
  public func roundUp(_ count: Int) -> Int { (count + offset - 1) & ~(offset - 1) }

  /// The largest multiple of ``offset`` that is not above `count`.
  public func roundDown(_ count: Int) -> Int { count & ~(offset - 1) }

  /// Asks what an open file demands of direct I/O: `statx(2)` with `STATX_DIOALIGN` (Linux 6.1),
  /// then `BLKSSZGET` for a block device, then 4096, which every known device accepts.
  ///
  /// - Returns: `nil` when the file takes `O_DIRECT` but does buffered I/O all the same, as ext4
  ///   does with `data=journal`.
  static func ask(_ descriptor: Int32, isBlockDevice: Bool) -> AIOAlignment? {
    var answer = clinux_dio_alignment()
    if unsafe clinux_dio_alignment(descriptor, &answer) == 1 {
      guard answer.offset > 0 else { return nil }
      return AIOAlignment(memory: max(1, Int(answer.memory)), offset: Int(answer.offset))
    }
    // tmpfs does not answer, and takes direct I/O at any alignment: there is no disk beneath.
    if clinux_is_on_tmpfs(descriptor) == 1 { return AIOAlignment.none }
    if isBlockDevice {
      let sector = clinux_block_device_sector_size(descriptor)
      if sector > 0 { return AIOAlignment(memory: Int(sector), offset: Int(sector)) }
    }
    return AIOAlignment(memory: 4096, offset: 4096)
  }
}
