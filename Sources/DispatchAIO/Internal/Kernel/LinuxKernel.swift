// SPDX-License-Identifier: Apache-2.0

#if os(Linux) && !ThreadsOnly
internal import CLibAIO
internal import CKernel
internal import PlatformLibc
internal import Synchronization
internal import SystemPackage

/// The real kernel's AIO context, through libaio.
///
/// - Safety: `@unchecked Sendable` because the handle is a constant, and the kernel takes the calls
///   of a context from any thread at once.
@safe
struct LinuxKernel: Kernel, @unchecked Sendable {
  /// Whether this build has it: see NoKernelAIO.swift.
  static let isBuilt = true
  /// Room for the poll request, the timer of waits, and completions that `wake` makes: several
  /// threads may be about to, while the loop has stopped waiting already.
  private static let extraRoom = 6
  /// A descriptor that is always readable: an eventfd that has counted one, and is never read. The
  /// process has one, from its first context on; -1 before that.
  private static let readableDescriptor = Atomic<Int32>(-1)

  /// The poll of that descriptor, made when it is there. Safe because it does not change.
  nonisolated(unsafe) private static let wakeBlock = {
    let block = UnsafeMutablePointer<ControlBlock>.allocate(capacity: 1)
    unsafe block.initialize(
      to: ControlBlock(
        .pollReadable, readableDescriptor.load(ordering: .relaxed), tag: ReservedTag.wake,
        event: nil))
    return unsafe block
  }()

  private let context: io_context_t
  private let waitTimer = WaitTimer()

  /// Makes what `wake` needs: later there may be no descriptors left.
  private static func prepareWake() throws(Errno) {
    guard readableDescriptor.load(ordering: .relaxed) < 0 else { return }
    let descriptor = ckernel_event_create()
    guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
    ckernel_event_signal(descriptor)
    let (isFirst, _) = readableDescriptor.compareExchange(
      expected: -1, desired: descriptor, ordering: .relaxed)
    if !isFirst { close(descriptor) }
  }

  /// `io_setup(2)`, and, the first time, `eventfd(2)`.
  ///
  /// - Parameter room: The number of requests that may be in flight. The kernel promises room for
  ///   the completions of that many, and of `extraRoom` more.
  init(room: Int) throws(Errno) {
    try Self.prepareWake()
    var context: io_context_t?
    let answer = unsafe io_setup(Int32(room + Self.extraRoom), &context)
    guard answer == 0, let context = unsafe context else { throw Errno(rawValue: -answer) }
    unsafe self.context = unsafe context
    ckernel_happens_after(identity)
  }

  @inline(__always)
  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>, count: Int)
    -> Int
  {
    // The kernel copies the control blocks and the vectors before it returns; only the data they
    // point to must stay, and the request table keeps that alive until the completion.
    if ckernel_masks_size_signal() != 0 {
      return Int(unsafe io_submit(context, count, requests.asLibAIO))
    }
    // Neither one of Dispatch's threads nor one that masks SIGXFSZ by itself, as the main thread: a
    // write past RLIMIT_FSIZE would end the process.
    var signal = ckernel_size_signal()
    unsafe ckernel_size_signal_block(&signal)
    defer { unsafe ckernel_size_signal_restore(&signal, 1) }
    return Int(unsafe io_submit(context, count, requests.asLibAIO))
  }

  /// Submits one request. The kernel copies the block; what watches a program's calls (Valgrind)
  /// looks at it once more when the request has completed, so that it stays until then.
  func submit(_ block: UnsafeMutablePointer<ControlBlock>) -> Int {
    var pointer: UnsafeMutablePointer<ControlBlock>? = unsafe block
    return unsafe submit(&pointer, count: 1)
  }

  @inline(__always)
  func reap(
    into events: UnsafeMutablePointer<CompletionEvent>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int {
    // Taken out of the ring in user space, without a system call. -1 says that the ring's layout is
    // unknown.
    let count = unsafe ckernel_aio_ring_reap(
      UnsafeMutableRawPointer(context), events, UInt32(capacity))
    if count > 0 || count == 0 && nanoseconds == 0 { return Int(count) }
    return unsafe call(into: events, capacity: capacity, waiting: nanoseconds)
  }

  /// Reaps by `io_getevents(2)`, whatever the ring's layout.
  func call(
    into events: UnsafeMutablePointer<CompletionEvent>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int {
    if nanoseconds > 0, waitTimer.set(nanoseconds, in: self) {
      return Int(unsafe io_getevents(context, 1, capacity, events.asLibAIO, nil))
    }
    var timeout = timespec(tv_sec: 0, tv_nsec: Int(nanoseconds))
    return Int(
      unsafe io_getevents(
        context, nanoseconds > 0 ? 1 : 0, capacity, events.asLibAIO, &timeout))
  }

  /// Ends the `reap` in which another thread waits, by a request that completes at once: a poll of
  /// a descriptor that is readable. Before Linux 4.18, which has no polls, the wait ends at its
  /// bound.
  func wake() {
    guard Self.readableDescriptor.load(ordering: .relaxed) >= 0 else { return }
    _ = unsafe submit(Self.wakeBlock)
  }

  func waitTimerFired() { waitTimer.fired() }

  /// The kernel's answer to one read.
  enum ReadAnswer: Equatable {
    /// `io_submit(2)` refused, with this errno: the memory is not used.
    case refused(Int32)
    /// No completion arrived in time, or it could not be asked for (an errno): the memory may be
    /// written to later.
    case lost(Int32)
    /// The completion's count of bytes, or a negative errno.
    case completed(Int)
  }

  /// Submits one read, and waits for its completion. On a context that is used for nothing else.
  ///
  /// - Parameter nanoseconds: The longest wait; below 1 s.
  func read(
    _ descriptor: Int32, into memory: UnsafeMutableRawBufferPointer, waiting nanoseconds: UInt64
  ) -> ReadAnswer {
    let block = UnsafeMutablePointer<ControlBlock>.allocate(capacity: 1)
    defer { unsafe block.deallocate() }
    unsafe block.initialize(to: ControlBlock(.read, descriptor, tag: 0, event: nil))
    unsafe block.pointee.setTransfer(memory.baseAddress, memory.count, at: 0, flags: 0)
    let submitted = unsafe submit(block)
    guard submitted == 1 else { return .refused(Int32(max(1, -submitted))) }
    var event = CompletionEvent()
    let reaped = unsafe call(into: &event, capacity: 1, waiting: nanoseconds)
    // The other tag is that of the wait's timer.
    guard reaped == 1, event.data == 0 else {
      return .lost(reaped < 0 ? Int32(-reaped) : ENOSYS)
    }
    return .completed(Int(event.result))
  }

  /// The address of the ring, which another context may get once this one is destroyed. The kernel
  /// maps and unmaps it unseen by the Thread Sanitizer, which has to be told that the earlier use
  /// of the memory has happened before the later.
  private var identity: UInt {
    // The number is only compared.
    unsafe UInt(bitPattern: context)
  }

  func destroy() {
    ckernel_happens_before(identity)
    unsafe io_destroy(context)
    waitTimer.close()
  }
}

extension UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?> {
  /// The same for libaio, whose types are the kernel's, against which the C target checks ours, and
  /// are looked at by C only.
  @inline(__always)
  fileprivate var asLibAIO: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?> {
    unsafe UnsafeMutableRawPointer(self).assumingMemoryBound(
      to: UnsafeMutablePointer<iocb>?.self)
  }
}

extension UnsafeMutablePointer<CompletionEvent> {
  /// As above.
  @inline(__always)
  fileprivate var asLibAIO: UnsafeMutablePointer<io_event> {
    unsafe UnsafeMutableRawPointer(self).assumingMemoryBound(to: io_event.self)
  }
}
#endif
