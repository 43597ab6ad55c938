// SPDX-License-Identifier: Apache-2.0
//
// What the engine knows of a file: its descriptor, for how long that number still means this file
// (a request that waits behind the queue depth must never go down to a number that was closed and
// given to another file in the meantime), and which of its requests would make the kernel sleep.

internal import Glibc
internal import Synchronization
internal import SystemPackage

/// An open file descriptor that is closed once nobody needs it any more: its owner has let go, and
/// every accepted request has completed.
final class OpenFile: Sendable {
  let descriptor: Int32
  /// As the file was opened; `nil` for an adopted descriptor without a name. For error messages.
  let path: FilePath?
  let traits: Traits
  /// Of all open files, this one's own.
  let number = FileNumbers.take()
  /// What its requests have taught so far.
  let predictor: NowaitPredictor

  /// What never changes while the descriptor is open.
  struct Traits: Sendable {
    var isReadable = true
    var isWritable = true
    /// Its I/O goes past the page cache.
    var isDirect = true
    /// A regular file with no disk beneath (tmpfs, ramfs, hugetlbfs): to copy memory is all that a
    /// request does.
    var isMemory = false
    /// Its size is what it is.
    var isBlockDevice = false
    /// Every write goes to the end of the file, whatever its offset says (O_APPEND).
    var appends = false
    /// Every write waits until the disk has it: O_DSYNC, O_SYNC, or a file system that is mounted
    /// so.
    var syncsWrites = false
    /// What a direct request must be a multiple of.
    var alignment = AIOAlignment(memory: 1, offset: 1)
    /// Which device the file is on (`st_dev`), or a block device is (`st_rdev`).
    var device: UInt64 = 0
    var fileSystem = FileSystemKind.local

    /// Whether a direct read that ends within a block has met the end of the file.
    var isLocal: Bool {
      @inline(__always) get { fileSystem == .local || fileSystem == .memory }
    }

    /// Whether kernel AIO gives other answers than the system calls: FUSE (0 for a file whose size
    /// says 0), /proc and /sys (EINVAL).
    var needsSystemCalls: Bool {
      @inline(__always) get { fileSystem == .fuse || fileSystem == .pseudo }
    }

    /// The most bytes of one attempt: the kernel's MAX_RW_COUNT, as a multiple of the alignment.
    var maximumTransfer: Int {
      @inline(__always) get { alignment.maximumTransfer }
    }
  }

  /// How many requests hold the file, and in `closing` whether its owner has let go.
  private let uses = Atomic<UInt32>(0)
  private static var closing: UInt32 { 1 << 31 }

  /// Runs once, when the descriptor is no longer needed, on whichever thread released it last; it
  /// must not sleep there.
  private let onLastRelease: @Sendable (Int32) -> Void
  private let isReleased = Atomic<Bool>(false)

  /// - Parameter size: of the file, when it was opened.
  init(
    descriptor: Int32, path: FilePath?, traits: Traits, size: Int64 = .max,
    onLastRelease: @escaping @Sendable (Int32) -> Void
  ) {
    self.descriptor = descriptor
    self.path = path
    self.traits = traits
    predictor = NowaitPredictor(traits, size: size)
    self.onLastRelease = onLastRelease
  }

  deinit {
    close()
    FileNumbers.give(number)
  }

  /// Holds the file for a request. `false`: it has been closed.
  @inline(__always)
  func retain() -> Bool {
    let (old, _) = uses.add(1, ordering: .acquiring)
    if old & Self.closing == 0 { return true }
    release()
    return false
  }

  /// Gives up the hold of a request.
  @inline(__always)
  func release() {
    let (_, new) = uses.subtract(1, ordering: .acquiringAndReleasing)
    if new == Self.closing { lastReleased() }
  }

  /// Closes the file for its owner: no request may hold it from now on.
  func close() {
    let (old, _) = uses.bitwiseOr(Self.closing, ordering: .acquiringAndReleasing)
    if old == 0 { lastReleased() }
  }

  var isClosed: Bool { uses.load(ordering: .acquiring) & Self.closing != 0 }

  /// A hold that came after the owner let go makes the count pass through 0 once more.
  private func lastReleased() {
    if !isReleased.exchange(true, ordering: .relaxed) { onLastRelease(descriptor) }
  }
}
