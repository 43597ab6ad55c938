// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
internal import SystemPackage

/// What the parts of a direct request must be multiples of, in bytes.
///
/// Asked of each file, because it differs from one to the next: 512 on most disks, 4096 on disks
/// with 4096-byte sectors, nothing at all on tmpfs and on buffered files. Powers of two on every
/// file system known; nothing here relies on it.
public struct AIOAlignment: Hashable, Sendable {
  /// What the address of the memory must be a multiple of.
  public let memory: Int

  /// What the offset in the file and the length of each buffer must be multiples of.
  public let offset: Int

  /// No demands: a buffered file's, or tmpfs's.
  static var none: AIOAlignment { AIOAlignment(memory: 1, offset: 1) }

  /// The smallest multiple of ``offset`` that is not below `count`; `Int.max` where that has no
  /// number.
  public func roundUp(_ count: Int) -> Int {
    let rest = rest(count)
    guard rest > 0 else { return count }
    let (rounded, overflow) = count.addingReportingOverflow(offset - rest)
    return overflow ? .max : rounded
  }

  /// The largest multiple of ``offset`` that is not above `count`; `Int.min` where that has no
  /// number.
  public func roundDown(_ count: Int) -> Int {
    let (rounded, overflow) = count.subtractingReportingOverflow(rest(count))
    return overflow ? .min : rounded
  }

  /// How many bytes one system call moves at the most (0x7ffff000, where the kernel cuts longer
  /// ones), so that what is left of a longer request begins at a multiple of ``offset``.
  var maximumTransfer: Int { max(offset, roundDown(0x7fff_f000)) }

  /// Whether both demands are powers of two, so that one mask each tells what is aligned.
  var hasMasks: Bool {
    @inline(__always) get { offset & (offset - 1) | memory & (memory - 1) == 0 }
  }

  /// How far `count` is above a multiple of ``offset``; 0 or more, for negative numbers too.
  private func rest(_ count: Int) -> Int {
    if offset & (offset - 1) == 0 { return count & (offset - 1) }
    let rest = count % offset
    return rest < 0 ? rest + offset : rest
  }

  /// Asks what an open file demands of direct I/O: `statx(2)` with `STATX_DIOALIGN` (Linux 6.1),
  /// then `BLKSSZGET` for a block device, then 4096, which every known device accepts.
  ///
  /// - Returns: `nil` when the file takes `O_DIRECT` but does buffered I/O all the same, as ext4
  ///   does with `data=journal`.
  static func ask(
    _ descriptor: Int32, isBlockDevice: Bool, fileSystem: FileSystemKind
  ) -> AIOAlignment? {
    // A file in memory does not answer, or demands nothing: there is no disk beneath. FUSE hands any
    // bytes to the process that answers.
    if fileSystem == .memory || fileSystem == .fuse { return AIOAlignment.none }
    var answer = clinux_dio_alignment()
    if unsafe clinux_dio_alignment(descriptor, &answer) == 1 {
      guard answer.offset > 0 else { return nil }
      return AIOAlignment(memory: max(1, Int(answer.memory)), offset: Int(answer.offset))
    }
    if isBlockDevice {
      let sector = clinux_block_device_sector_size(descriptor)
      if sector > 0 { return AIOAlignment(memory: Int(sector), offset: Int(sector)) }
    }
    return AIOAlignment(memory: 4096, offset: 4096)
  }
}
