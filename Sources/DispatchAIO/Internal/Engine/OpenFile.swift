// SPDX-License-Identifier: Apache-2.0
//
// A file as the engine knows it: its descriptor, which stays open while a request holds the file (a
// pending request must never be submitted to a number that was closed and given to another file in
// the meantime), and the predictor of which requests would make the kernel sleep.

internal import PlatformLibc
internal import Synchronization
internal import SystemPackage

/// An open file descriptor. It is closed once its owner has closed the file and every accepted
/// request on it has completed.
final class OpenFile: Sendable {
  let descriptor: Int32
  /// The path as it was given, for error messages; `nil` for an adopted descriptor without one.
  let path: FilePath?
  let traits: Traits
  /// The lengths of writes that the disk does not tear; `nil` if it has none.
  let atomicWriteUnit: ClosedRange<Int>?
  /// Held by whoever uses the descriptor's file position. Only threads that may sleep take it: it
  /// is held during system calls.
  let position = Lock(())
  /// A number that no other open file has.
  let number = FileNumbers.take()
  /// The predictor of the routes of its requests.
  let predictor: NowaitPredictor
  /// The second descriptor; `nil` if its reads are never made past the page cache. Whoever closes
  /// the file's descriptor closes this one, too.
  let directReads: DirectReads?
  /// The descriptor of writes of any range; `nil` if the file's own takes them. Whoever closes the
  /// file's descriptor closes this one, too.
  let bufferedWrites: BufferedWrites?

  /// The properties that never change while the descriptor is open.
  struct Traits: Sendable {
    var isReadable = true
    var isWritable = true
    /// Reads and writes bypass the page cache.
    var isDirect = true
    /// Opened `.automatic`: see `DirectReads`.
    var isAutomatic = false
    /// A regular file with no disk beneath (tmpfs, ramfs, hugetlbfs): a request only copies memory.
    var isMemory = false
    /// A block device, whose size does not change.
    var isBlockDevice = false
    /// Every write appends, whatever its offset (O_APPEND).
    var appends = false
    /// Every write waits until the disk has it: O_DSYNC, O_SYNC, or a file system that is mounted
    /// so.
    var syncsWrites = false
    /// The alignment that requests need.
    var alignment = BlockAlignment.none
    /// The device that the file is on (`st_dev`), or that a block device is (`st_rdev`).
    var device: UInt64 = 0
    var fileSystem = FileSystemKind.local

    /// Whether a direct read that ends within a block has reached the end of the file.
    var isLocal: Bool {
      @inline(__always) get { fileSystem.isLocal }
    }

    /// Whether kernel AIO gives other answers than the system calls: FUSE (0 for a file whose size
    /// says 0), /proc and /sys (EINVAL).
    var needsSystemCalls: Bool {
      @inline(__always) get { fileSystem == .fuse || fileSystem == .pseudo }
    }

    /// The route of a request that the loop must not submit: into the kernel context, if the kernel
    /// carries it out asynchronously.
    var offloadRoute: Route {
      @inline(__always) get { isDirect && !needsSystemCalls ? .offload : .syscall }
    }

    /// The most bytes of one attempt: the kernel's MAX_RW_COUNT, as a multiple of the alignment.
    var maximumTransfer: Int {
      @inline(__always) get { alignment.maximumTransfer }
    }
  }

  /// The number of requests that hold the file, and in the bit `closing` whether its owner has
  /// closed it.
  private let uses = Atomic<UInt32>(0)
  private static var closing: UInt32 { 1 << 31 }

  /// Runs once, when the descriptor is no longer needed, on whichever thread released it last; it
  /// must not sleep there.
  private let onLastRelease: @Sendable (Int32) -> Void
  private let isReleased = Atomic<Bool>(false)

  /// - Parameter size: The size of the file when it was opened, in bytes.
  init(
    descriptor: Int32, path: FilePath?, traits: Traits, size: Int64 = .max,
    atomicWriteUnit: ClosedRange<Int>? = nil,
    directReads: DirectReads? = nil, bufferedWrites: BufferedWrites? = nil,
    onLastRelease: @escaping @Sendable (Int32) -> Void
  ) {
    self.descriptor = descriptor
    self.path = path
    self.traits = traits
    self.atomicWriteUnit = atomicWriteUnit
    self.directReads = directReads
    self.bufferedWrites = bufferedWrites
    predictor = NowaitPredictor(traits, size: size, directReads: directReads)
    self.onLastRelease = onLastRelease
  }

  deinit {
    close()
    FileNumbers.give(number)
  }

  /// Holds the file for a request.
  ///
  /// - Returns: `false` if the file has been closed; it is then not held.
  @inline(__always)
  func retain() -> Bool {
    let (old, _) = uses.add(1, ordering: .acquiring)
    if old & Self.closing == 0 { return true }
    release()
    return false
  }

  /// Holds the file once more, for a caller that holds it.
  func retainHeld() { uses.add(1, ordering: .relaxed) }

  /// Ends the hold of a request.
  @inline(__always)
  func release() {
    let (_, new) = uses.subtract(1, ordering: .acquiringAndReleasing)
    if new == Self.closing { lastReleased() }
  }

  /// Closes the file for its owner: later calls of `retain` return `false`.
  func close() {
    let (old, _) = uses.bitwiseOr(Self.closing, ordering: .acquiringAndReleasing)
    if old == 0 { lastReleased() }
  }

  var isClosed: Bool { uses.load(ordering: .acquiring) & Self.closing != 0 }

  /// May be called twice: a `retain` that is refused makes the count pass through 0 once more.
  private func lastReleased() {
    if !isReleased.exchange(true, ordering: .relaxed) { onLastRelease(descriptor) }
  }
}
