// SPDX-License-Identifier: Apache-2.0

internal import CKernel

/// What is known of the file systems that are mounted, so that the kernel is asked once for each.
enum Mounts {
  struct Facts: Sendable {
    var kind = FileSystemKind.other
    /// Every write waits for the disk, because it is mounted with `-o sync`.
    var isSynchronous = false
    /// Files have maps of blocks that the kernel reads while `io_submit(2)` lasts (ext4).
    var hasBlockMaps = false
  }

  /// The most mounts that are remembered.
  private static let limit = 256
  private static let all = Lock<[UInt64: Facts]>([:])

  /// The facts about a mount, if they are known.
  ///
  /// - Parameter mount: The number in `ckernel_status`.
  static func known(_ mount: UInt64) -> Facts? {
    mount == 0 ? nil : all.withLock { $0[mount] }
  }

  /// The facts about the mount of an open file: those that are known, or what `fstatfs(2)` says,
  /// for which a file system that is served elsewhere asks there, and so may sleep.
  ///
  /// - Parameter isWritable: Whether the file is written to: then the kernel is asked in any case,
  ///   because a mount can be made synchronous at any time.
  static func facts(_ descriptor: Int32, _ status: ckernel_status, isWritable: Bool) -> Facts {
    if !isWritable, let known = known(status.mount) { return known }
    var answer = ckernel_file_system()
    guard unsafe ckernel_file_system(descriptor, &answer) == 0 else { return Facts() }
    let facts = Facts(
      kind: FileSystemKind(magic: answer.magic), isSynchronous: answer.is_synchronous != 0,
      hasBlockMaps: answer.magic == 0xef53)
    if status.mount != 0 {
      all.withLock { all in
        if all.count >= limit { all.removeAll() }
        all[status.mount] = facts
      }
    }
    return facts
  }
}
