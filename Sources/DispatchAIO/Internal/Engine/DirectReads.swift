// SPDX-License-Identifier: Apache-2.0
//
// The reads of a file opened `.automatic` that the page cache refuses: they are submitted as
// O_DIRECT through a second descriptor, into the same kernel context, in place of an offload
// thread. The rules:
//
//   - The second descriptor is opened by the offload thread that makes the first read refused, and
//     by no other: the loop never waits for it. Where it cannot be had, the file is a buffered one;
//     where descriptors or memory are lacking, the next refusal after a second tries again.
//   - A read is tried in the page cache first, with RWF_NOWAIT; after four refusals in a row one in
//     64 is (see NowaitPredictor), and the others are direct at once. A trial that is refused
//     makes the kernel read its bytes into the page cache (Linux 5.10), so that what is read
//     64 times is cached, and noticed. Where a quarter of the reads is of blocks that were
//     read before, it is one in two: they are a working set, which memory may have room for. One
//     block in 512 is looked at to know it, so that 256 numbers tell a set of up to some 500,000
//     blocks from a file that is read once (spatial sampling: Waldspurger et al., "SHARDS", FAST
//     2015).
//   - A read that begins in a block from which one of the last 256 or so direct reads began is
//     tried in the page cache in any case. If it is refused again, an offload thread reads it
//     through the page cache: one for each file at a time, of at most 16 MiB.
//   - A read of more than one copy (256 KiB) is tried only if cachestat(2) says that it is cached,
//     where that may be asked: the kernel would read ahead what is then read directly, too.
//   - The direct attempt has RWF_NOWAIT, too: pages of its range that are dirty, a lock or a full
//     device queue refuse it, and an offload thread reads it through the page cache. So a read sees
//     what was written before it, by whichever way, and the loop never writes pages back.

internal import CKernel
internal import PlatformLibc
internal import Synchronization

/// The second descriptor of one file, and the blocks read lately through it; shared by every
/// context that uses the file.
///
/// - Safety: `@unchecked Sendable` because the tables are allocated once, before there is a
///   descriptor, freed by `deinit`, and have atomic elements; the rest are constants and atomics.
@safe
final class DirectReads: @unchecked Sendable {
  /// The most bytes of a read that is brought into the page cache.
  static var largestFill: Int { 16 << 20 }
  /// The number of blocks remembered, twice: 2 KiB for each file.
  private static var recentCount: Int { 256 }
  /// The time after which an attempt to open that failed for lack of descriptors or memory is
  /// repeated, in nanoseconds.
  private static var openingInterval: UInt64 { 1_000_000_000 }

  /// What `state` is while there is no descriptor.
  private static var unopened: Int32 { -1 }
  private static var opening: Int32 { -2 }
  private static var unavailable: Int32 { -3 }

  /// The descriptor, or one of the numbers above. It is stored after the alignment.
  private let state: Atomic<Int32>
  private let memoryAlignment: Atomic<Int>
  private let offsetAlignment: Atomic<Int>
  /// The time before which it is not tried to open.
  private let nextOpening = Atomic<UInt64>(0)
  /// Whether the page cache has refused a read.
  private let isWanted = Atomic<Bool>(false)
  /// Whether an offload thread brings a range into the page cache.
  private let isFilling = Atomic<Bool>(false)
  /// Two tables of the numbers of blocks, plus 1, each in the place that its hash has: those of
  /// late, and after them those that are looked at to know whether a working set is read. Allocated
  /// with the descriptor, because most files that are opened for a moment are cached.
  private let tables = unsafe Atomic<UnsafeMutablePointer<Atomic<UInt32>>?>(nil)
  /// The number of reads of sampled blocks, and of those that were there, since it was last known.
  private let sampleReads = Atomic<UInt32>(0)
  private let sampleHits = Atomic<UInt32>(0)
  private let rereads = Atomic<Bool>(false)
  private let isBlockDevice: Bool
  private let fileSystem: FileSystemKind

  /// - Returns: `nil` for a file whose reads are never made past the page cache: one that has none,
  ///   or whose requests all are system calls, and those of network file systems, whose answers
  ///   by the two ways may differ.
  init?(_ traits: OpenFile.Traits) {
    guard traits.isAutomatic, traits.isReadable, !traits.isMemory, !traits.needsSystemCalls,
      traits.fileSystem != .network
    else { return nil }
    state = Atomic(Self.unopened)
    memoryAlignment = Atomic(1)
    offsetAlignment = Atomic(1)
    isBlockDevice = traits.isBlockDevice
    fileSystem = traits.fileSystem
  }

  deinit {
    close()
    guard let tables = unsafe tables.load(ordering: .acquiring) else { return }
    unsafe tables.deinitialize(count: 2 * Self.recentCount)
    unsafe tables.deallocate()
  }

  // MARK: The descriptor

  /// Whether reads may be direct, now or once the descriptor has been opened.
  var isUsable: Bool {
    @inline(__always) get { state.load(ordering: .relaxed) != Self.unavailable }
  }

  /// The descriptor with O_DIRECT; `nil` if there is none.
  var descriptor: Int32? {
    @inline(__always) get {
      let descriptor = state.load(ordering: .acquiring)
      return descriptor >= 0 ? descriptor : nil
    }
  }

  /// The alignment of the descriptor's reads: both are powers of two, of at most 64 KiB.
  var alignment: BlockAlignment {
    @inline(__always) get {
      BlockAlignment(
        memory: memoryAlignment.load(ordering: .relaxed),
        offset: offsetAlignment.load(ordering: .relaxed))
    }
  }

  /// Learns that the page cache has refused a read, which an offload thread gets.
  func wasRefused() { isWanted.store(true, ordering: .relaxed) }

  /// Opens the descriptor, if a read was refused, and that was not done or tried before. By an
  /// offload thread, which may sleep, and which holds the file.
  func openIfWanted(_ file: Int32) {
    guard state.load(ordering: .relaxed) == Self.unopened, isWanted.load(ordering: .relaxed),
      nextOpening.load(ordering: .relaxed) <= ckernel_monotonic_nanoseconds(),
      state.compareExchange(
        expected: Self.unopened, desired: Self.opening, ordering: .acquiring
      ).exchanged
    else { return }
    let answer = ckernel_reopen_direct(file)
    guard answer >= 0 else {
      let isForNow = [EMFILE, ENFILE, ENOMEM].contains(-answer)
      nextOpening.store(
        ckernel_monotonic_nanoseconds() &+ Self.openingInterval, ordering: .relaxed)
      state.store(isForNow ? Self.unopened : Self.unavailable, ordering: .releasing)
      return
    }
    // The kernel would read the map of the file's blocks in `io_submit`, as for a direct file.
    if !isBlockDevice { _ = ckernel_cache_block_map(answer) }
    let status = (try? ckernel_status(of: answer)) ?? ckernel_status()
    opened(
      answer,
      BlockAlignment.of(answer, status, isBlockDevice: isBlockDevice, fileSystem: fileSystem))
  }

  /// Makes an open descriptor that of the reads.
  ///
  /// - Parameter alignment: If `nil`, the file system does buffered I/O all the same.
  func opened(_ descriptor: Int32, _ alignment: BlockAlignment?) {
    guard let alignment, alignment.hasMasks, alignment.memory <= BounceBuffers.alignment,
      alignment.offset <= BounceBuffers.size / 2
    else {
      PlatformLibc.close(descriptor)
      state.store(Self.unavailable, ordering: .releasing)
      return
    }
    let tables = UnsafeMutablePointer<Atomic<UInt32>>.allocate(capacity: 2 * Self.recentCount)
    for index in 0..<2 * Self.recentCount { unsafe (tables + index).initialize(to: Atomic(0)) }
    unsafe self.tables.store(tables, ordering: .releasing)
    memoryAlignment.store(alignment.memory, ordering: .relaxed)
    offsetAlignment.store(alignment.offset, ordering: .relaxed)
    state.store(descriptor, ordering: .releasing)
  }

  /// Learns that the kernel does not read this way: from now on the file is a buffered one. The
  /// descriptor is closed with the file, because another context may be using it.
  func noteUnsupported() {
    let descriptor = state.exchange(Self.unavailable, ordering: .acquiringAndReleasing)
    if descriptor >= 0 { retired.store(descriptor, ordering: .releasing) }
  }

  /// The descriptor after `isUnsupported`.
  private let retired = Atomic<Int32>(-1)

  /// Closes the descriptor. The file has been released by every request. May sleep.
  func close() {
    for descriptor in [
      state.exchange(Self.unavailable, ordering: .acquiring),
      retired.exchange(-1, ordering: .acquiring),
    ] where descriptor >= 0 {
      PlatformLibc.close(descriptor)
    }
  }

  // MARK: Ranges that are read again

  /// Whether a direct read of late began in the block at `offset`. Now and then `true` or `false`
  /// where it is not so: reads are correct either way.
  @inline(__always)
  func wasRead(at offset: Int64) -> Bool {
    guard let tables = unsafe tables.load(ordering: .acquiring) else { return false }
    let (index, number) = Self.place(of: offset)
    return unsafe tables[index].load(ordering: .relaxed) == number
  }

  /// Remembers that a direct read begins in the block at `offset`.
  @inline(__always)
  func remember(_ offset: Int64) {
    guard let tables = unsafe tables.load(ordering: .acquiring) else { return }
    let (index, number) = Self.place(of: offset)
    unsafe tables[index].store(number, ordering: .relaxed)
  }

  /// Whether most reads are of a working set, as far as is known.
  var isRereading: Bool {
    @inline(__always) get { rereads.load(ordering: .relaxed) }
  }

  /// Looks at a read, if its block is one of those that are looked at.
  @inline(__always)
  func look(at offset: Int64) {
    // Not the first block, whose hash is 0: headers are read again for themselves.
    if Self.hash(offset) >> 20 & 511 == 511 { lookClosely(at: offset) }
  }

  private func lookClosely(at offset: Int64) {
    guard let tables = unsafe tables.load(ordering: .acquiring) else { return }
    let (index, number) = Self.place(of: offset)
    if unsafe tables[Self.recentCount + index].exchange(number, ordering: .relaxed) == number {
      sampleHits.wrappingAdd(1, ordering: .relaxed)
    }
    guard sampleReads.wrappingAdd(1, ordering: .relaxed).newValue % 64 == 0 else { return }
    rereads.store(sampleHits.exchange(0, ordering: .relaxed) >= 16, ordering: .relaxed)
  }

  private static func place(of offset: Int64) -> (index: Int, number: UInt32) {
    // In bounds: 8 bits.
    (Int(hash(offset) >> 56), UInt32(truncatingIfNeeded: offset >> 12) &+ 1)
  }

  /// Fibonacci hashing of the block's number (Knuth, "The Art of Computer Programming" 3, 6.4).
  @inline(__always)
  private static func hash(_ offset: Int64) -> UInt64 {
    (UInt64(bitPattern: offset) >> 12) &* 0x9e37_79b9_7f4a_7c15
  }

  /// Takes the right to bring a range into the page cache; `false` if another does so.
  func beginFill() -> Bool { !isFilling.exchange(true, ordering: .acquiring) }

  /// Returns that right.
  func endFill() { isFilling.store(false, ordering: .releasing) }
}
