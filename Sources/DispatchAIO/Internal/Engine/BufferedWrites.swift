// SPDX-License-Identifier: Apache-2.0
//
// The writes of any range to a direct file. What is not whole blocks cannot be written past the
// page cache: a block at the edge would have to be read, changed and written again, which is not
// safe against another such write to the block, and one beyond the end would make the file too long
// until it is truncated, which is not safe against others that extend it, nor against a crash. So
// these writes go through the page cache, by a second descriptor without O_DIRECT, and the kernel
// does all of that under the inode's lock, as for the writes of a file opened `.automatic`.
//
// Whole blocks go past the page cache, by the file's own descriptor, but by a system call: that
// holds the inode's lock until the disk has the bytes. Were it asynchronous, a write to a part of
// the same page could read the page meanwhile, and write it back later with what it had before.
// A block device has no such lock, and a file that appends no offset: theirs all are buffered.
//
// A direct read sees them: the kernel writes their pages back first (refusing RWF_NOWAIT, so that a
// thread makes the read). A sync of the file's own descriptor covers them, as it is of the inode.

internal import CKernel
internal import PlatformLibc
internal import Synchronization

/// The way of a write of any range to a direct file.
enum AnyRangeWrite {
  /// By the file's own descriptor.
  case wholeBlocks
  /// Through the page cache.
  case buffered
}

extension Operation {
  /// The way of a write of any range; `nil` if the file takes it as it is.
  func anyRangeWrite(_ file: OpenFile, _ offset: Int64) -> AnyRangeWrite? {
    guard file.bufferedWrites != nil, case .write(let memory) = self else { return nil }
    let (traits, alignment) = (file.traits, file.traits.alignment)
    guard !traits.isBlockDevice, !traits.appends, alignment.hasMasks else { return .buffered }
    var (lengths, addresses) = (Int(offset), UInt(0))
    for index in 0..<memory.elements {
      let bytes = unsafe memory[index]
      lengths |= bytes.count
      if bytes.count > 0 { addresses |= UInt(bitPattern: bytes.baseAddress) }
    }
    let isAligned =
      lengths & (alignment.offset - 1) == 0 && addresses & UInt(alignment.memory - 1) == 0
    return isAligned ? .wholeBlocks : .buffered
  }
}

/// The second descriptor of one file; shared by every context that uses the file.
final class BufferedWrites: Sendable {
  /// The descriptor; -1 if there is none yet.
  private let descriptor = Atomic<Int32>(-1)

  /// - Returns: `nil` for a file that takes writes of any range by its own descriptor.
  init?(_ traits: OpenFile.Traits) {
    guard traits.isDirect, traits.isWritable, traits.alignment != .none else { return nil }
  }

  deinit { close() }

  /// Opens the descriptor, unless that was done before. By an offload thread, which may sleep, and
  /// which holds the file.
  ///
  /// - Returns: The descriptor, or a negative errno, after which the next call tries again.
  func open(_ file: Int32) -> Int32 {
    let known = descriptor.load(ordering: .acquiring)
    if known >= 0 { return known }
    let opened = ckernel_reopen_buffered(file)
    guard opened >= 0 else { return opened }
    let (isFirst, other) = descriptor.compareExchange(
      expected: -1, desired: opened, ordering: .acquiringAndReleasing)
    if isFirst { return opened }
    // Another context's thread was faster.
    PlatformLibc.close(opened)
    return other
  }

  /// Closes the descriptor. The file has been released by every request. May sleep.
  func close() {
    let open = descriptor.exchange(-1, ordering: .acquiring)
    if open >= 0 { PlatformLibc.close(open) }
  }
}
