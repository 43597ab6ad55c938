// SPDX-License-Identifier: Apache-2.0

/// The alignment that a file requires of direct requests, in bytes.
///
/// The kernel is asked for each file, because files differ: 512 on most disks, 4096 on disks with
/// 4096-byte sectors, 1 on tmpfs, on FUSE and for buffered files. Every known file system requires
/// powers of two, but nothing here relies on that.
public struct AIOAlignment: Hashable, Sendable {
  private let blocks: BlockAlignment

  /// The alignment of memory, in bytes, 1 or more: the address of each buffer must be a multiple of
  /// it.
  public var memory: Int { blocks.memory }

  /// The alignment within the file, in bytes, 1 or more: a request's offset and the length of each
  /// of its buffers must be multiples of it.
  public var offset: Int { blocks.offset }

  init(_ blocks: BlockAlignment) { self.blocks = blocks }

  /// The smallest multiple of ``offset`` that is at least `count`; `Int.max` if no `Int` is.
  public func roundUp(_ count: Int) -> Int { blocks.roundUp(count) }

  /// The largest multiple of ``offset`` that is at most `count`; `Int.min` if no `Int` is.
  public func roundDown(_ count: Int) -> Int { blocks.roundDown(count) }
}
