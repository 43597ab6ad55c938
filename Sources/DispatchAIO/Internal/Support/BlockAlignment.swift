// SPDX-License-Identifier: Apache-2.0

internal import CKernel

/// The alignment that a file requires of direct requests, in bytes, and the arithmetic of whole
/// blocks. Every known file system requires powers of two, but nothing here relies on that.
struct BlockAlignment: Hashable, Sendable {
  /// The alignment of memory, 1 or more.
  let memory: Int
  /// The alignment within the file, 1 or more.
  let offset: Int

  /// The alignment of a file that requires none: a buffered one, or one on tmpfs.
  static var none: BlockAlignment { BlockAlignment(memory: 1, offset: 1) }

  /// The smallest multiple of `offset` that is at least `count`; `Int.max` if no `Int` is.
  func roundUp(_ count: Int) -> Int {
    let remainder = remainder(count)
    guard remainder > 0 else { return count }
    let (rounded, overflow) = count.addingReportingOverflow(offset - remainder)
    return overflow ? .max : rounded
  }

  /// The largest multiple of `offset` that is at most `count`; `Int.min` if no `Int` is.
  func roundDown(_ count: Int) -> Int {
    let (rounded, overflow) = count.subtractingReportingOverflow(remainder(count))
    return overflow ? .min : rounded
  }

  /// The most bytes that one system call transfers: 0x7ffff000, at which the kernel cuts longer
  /// ones, rounded down so that the next call of a longer request begins at a multiple of `offset`.
  var maximumTransfer: Int { max(offset, roundDown(0x7fff_f000)) }

  /// Whether both alignments are powers of two, so that one mask each tells what is aligned.
  var hasMasks: Bool {
    @inline(__always) get { offset & (offset - 1) | memory & (memory - 1) == 0 }
  }

  /// The distance of `count` from the next lower multiple of `offset`; 0 or more, also for
  /// negative numbers.
  private func remainder(_ count: Int) -> Int {
    if offset & (offset - 1) == 0 { return count & (offset - 1) }
    let remainder = count % offset
    return remainder < 0 ? remainder + offset : remainder
  }

  /// What an open file requires of direct I/O: what `statx(2)` says with `STATX_DIOALIGN` (Linux
  /// 6.1), then `BLKSSZGET` for a block device, then 4096, which every known device accepts.
  ///
  /// - Returns: `nil` if the file was opened with `O_DIRECT` but its file system does buffered I/O
  ///   all the same, as ext4 does with `data=journal`.
  static func of(
    _ descriptor: Int32, _ status: ckernel_status, isBlockDevice: Bool, fileSystem: FileSystemKind
  ) -> BlockAlignment? {
    // A memory file has no disk beneath, and does not answer or requires nothing. FUSE passes any
    // bytes to the process that serves it.
    if fileSystem == .memory || fileSystem == .fuse { return BlockAlignment.none }
    if status.has_alignment != 0 {
      guard status.offset_alignment > 0 else { return nil }
      return BlockAlignment(
        memory: max(1, Int(status.memory_alignment)), offset: Int(status.offset_alignment))
    }
    if isBlockDevice {
      let sector = ckernel_block_device_sector_size(descriptor)
      if sector > 0 { return BlockAlignment(memory: Int(sector), offset: Int(sector)) }
    }
    return BlockAlignment(memory: 4096, offset: 4096)
  }
}
