// SPDX-License-Identifier: Apache-2.0

public import Dispatch
internal import Synchronization
internal import SystemPackage

/// Asynchronous file I/O on a Dispatch queue: a kernel AIO context whose completions are handled on
/// a serial queue, beside the sockets and timers that the queue serves.
///
/// Corresponds to `io_setup(2)`, `io_submit(2)` and `io_getevents(2)` with an `eventfd(2)`.
///
/// ```swift
/// let loop = DispatchQueue(label: "loop")
/// let context = try AIOContext(queueDepth: 64, queue: loop)
/// let file = try AIOFile.open("/var/lib/data", .readOnly)
/// let buffer = AIOBuffer(count: 4096)
/// try context.read(file, at: 0, into: buffer) { result in
///   // On `loop`.
///   print(result)
/// }
/// ```
///
/// ## Guarantees
/// - Every accepted request completes exactly once: with a result, an error, or as cancelled.
///   A verb that throws has accepted nothing.
/// - A read or a write transfers all that was asked for, or fails; only the end of the file makes a
///   read shorter. An error says how many bytes were transferred before it
///   (``AIOError/transferred``).
/// - Every method may be called from any thread, and from inside completion handlers, except
///   ``process()``, and ``beforeSubmit(_:)``, which is for the context's queue.
/// - Completion handlers run on the context's queue, or on the queue that the request named, never
///   inside the call that made the request.
/// - The requests of a file go to the kernel in the order in which they were accepted, except those
///   that are offloaded; the kernel completes them in any order. Files share its room fairly, so
///   that one whose requests hang leaves room for the others.
/// - The context's queue never sleeps in the disk. A request that would make the kernel sleep is
///   offloaded to threads that may (``Options/offloadThreads``), and completes like the others. The
///   README lists the exceptions, each with its bound.
/// - A context that is dropped without ``close(queue:completion:)`` finishes its requests, runs
///   their handlers, and then frees its resources.
public final class AIOContext: Sendable {
  /// Tuning options; the defaults suit most programs.
  public struct Options: Sendable {
    /// The lowest queue depth to accept, 1 to the depth asked for, if `fs.aio-max-nr` has no room
    /// for all of it. The depth is halved until there is room; ``AIOContext/queueDepth`` says what
    /// it has become. If `nil`, the depth is never lowered.
    public var minimumQueueDepth: Int?

    /// The number of threads that work at a time on what the loop must not block in; 1 to 64.
    ///
    /// A thread whose system call takes longer than 20 ms does not count, and is replaced, up to
    /// eight times this number in all. Of one file at most one write, one sync, and half of this
    /// number of reads are under way on them. A thread exists while it has something to do.
    ///
    /// Without kernel AIO they do all the work: one file may have all of them, and there may be up
    /// to sixteen times this number.
    public var offloadThreads = 8

    /// The behaviour of a context where kernel AIO does not work.
    public enum WithoutKernelAIO: Sendable, Hashable {
      /// Making the context throws ``AIOError/Code/unavailable``; unless the build has no kernel
      /// AIO at all (the trait `ThreadsOnly`, or macOS), or the environment says to do without.
      case fail
      /// Every request is a system call on an offload thread, which is much slower.
      case threads
    }

    /// The behaviour where kernel AIO does not work, as in a sandbox that forbids it.
    public var withoutKernelAIO = WithoutKernelAIO.fail

    /// The thread from which a request reaches the kernel.
    public enum Submission: Sendable, Hashable {
      /// The loop submits what cannot make the kernel sleep, and offload threads the rest.
      case nonblocking
      /// The loop submits everything as it is, as other users of Linux AIO do: an append, a write
      /// into a hole, or a buffered request stops the loop for as long as it takes. This is for
      /// comparison, and for kernels whose `RWF_NOWAIT` does not work.
      case inline
    }

    /// The thread from which a request reaches the kernel.
    public var submission = Submission.nonblocking

    /// The way a turn of the loop waits for completions that it expects soon.
    ///
    /// A wakeup through the queue's source takes two hand-overs between threads, which cost more
    /// than a read from a fast disk.
    public enum Waiting: Sendable, Hashable {
      /// The loop sleeps in the completion ring (`io_getevents(2)`), for up to 500 us at a time,
      /// while requests are in flight, or sources of the context are active, and events have been
      /// arriving that soon. Requests from other threads and ``AIOContext/async(_:)`` end the wait.
      /// Other blocks of the queue, Dispatch's sources and timers included, wait for no longer than
      /// one such sleep, 100 us of handlers, and the batch of handlers that runs then. While those
      /// blocks make requests themselves, the loop does not wait.
      case sleeping
      /// As `sleeping`, but while one or two requests are in flight the loop looks at the ring over
      /// and over, for up to this duration at a time, 0 to 10 ms. This is the fastest on an idle
      /// machine, at up to twice the processor time, for which a container with a processor quota
      /// is stopped later.
      case spinning(upTo: Duration)
      /// The loop does not wait: it gives the queue back at once, and the source wakes it.
      case source
    }

    /// The way a turn of the loop waits for completions that it expects soon.
    public var waiting = Waiting.sleeping

    /// Makes options that all have their defaults.
    public init() {}
  }

  /// The number of requests of one file that the kernel works on at once, at the most.
  ///
  /// Several files together may have half as many again, so that files whose requests hang leave
  /// room for the others: a file gets at most twice the room that is left.
  public var queueDepth: Int { loop.settings.queueDepth }

  /// The number of requests that the context accepts beyond ``queueDepth``.
  ///
  /// A request counts from its acceptance until its completion handler begins, also if that is on
  /// another queue, so that a queue that does not keep up is noticed here and not in the memory.
  public var pendingLimit: Int { loop.settings.pendingLimit }

  /// Whether requests go to kernel AIO. If `false`, each is a system call on an offload thread: see
  /// ``Options/WithoutKernelAIO/threads``, and <doc:Operating> for the environment variable
  /// `DISPATCH_AIO_KERNEL` and the trait `ThreadsOnly`.
  public var usesKernelAIO: Bool { loop.kernel.takesRequests }

  /// The serial queue that the context works on. One of the library's serves another context once
  /// this one has closed and is gone, if nobody holds it then; a Dispatch source on it does not.
  public var queue: DispatchQueue { loop.queue }

  /// An executor that runs actors on the context's ``queue``.
  public let executor: AIOExecutor

  /// An executor that runs tasks on the context's ``queue``, for `Task(executorPreference:)` and
  /// its like.
  public let taskExecutor: AIOTaskExecutor

  let loop: Loop
  /// The memory of the reads whose buffers the library makes.
  let memoryPool: MemoryPool
  /// A number of this context's own, which its requests carry.
  let number: UInt32
  private static let numbers = Atomic<UInt32>(0)

  /// Makes a context. Corresponds to `io_setup(2)`.
  ///
  /// A context is meant to last: the kernel takes tens of milliseconds to free one.
  ///
  /// - Parameters:
  ///   - queueDepth: The number of requests of one file that the kernel may work on at once; 1 to
  ///     65536. The kernel is asked for half as many again, for several files together. All
  ///     contexts of the machine share `fs.aio-max-nr`, 65536 unless it was raised.
  ///   - queue: The serial queue to work on, and to run completion handlers on; one of the
  ///     library's, for this context only, unless given. One of Dispatch's global queues is
  ///     refused; any other concurrent queue is a programmer error, and traps as soon as two turns
  ///     of the loop overlap.
  ///   - pendingLimit: The number of requests to accept beyond `queueDepth`; 0 to 524288. A verb
  ///     throws ``AIOError/Code/full`` once `queueDepth + pendingLimit` requests have been accepted
  ///     whose completion handlers have not begun.
  ///   - options: Tuning options; the defaults suit most programs.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/invalidOption``,
  ///   ``AIOError/Code/contextLimit`` if `fs.aio-max-nr` is used up, ``AIOError/Code/unavailable``
  ///   if kernel AIO does not work here, ``AIOError/Code/descriptorLimit`` if there are too few
  ///   file descriptors or epoll watches for the context and for Dispatch, ``AIOError/Code/forked``
  ///   in a process that was forked off one with a context, or ``AIOError/Code/system``.
  public init(
    queueDepth: Int = 128, queue: DispatchQueue? = nil, pendingLimit: Int = 1024,
    options: Options = Options()
  ) throws(AIOError) {
    try Self.check("queueDepth", queueDepth, 1...65536)
    try Self.check("pendingLimit", pendingLimit, 0...524_288)
    try Self.check("minimumQueueDepth", options.minimumQueueDepth ?? queueDepth, 1...queueDepth)
    try Self.check("offloadThreads", options.offloadThreads, 1...64)
    let wait = try Self.waitSettings(options.waiting)
    // Any other concurrent queue is known by two turns that overlap.
    if let queue, queue.label.hasPrefix("com.apple.root.") { throw .concurrentQueue(queue.label) }
    if case .unknown(let value) = KernelChoice.ofProcess { throw .unknownKernel(value) }
    // Before anything is made: in a child, to destroy it could wait for a lock of the runtime's
    // that another thread held at the fork.
    if Fork.isChild { throw .forked(AIOError.Subject(operation: .createContext)) }
    Fork.watch()
    var settings = Loop.Settings(
      queueDepth: queueDepth, pendingLimit: pendingLimit,
      policy: options.submission == .inline ? .inline : .nonblocking,
      offloadThreads: options.offloadThreads, wait: wait)
    do throws(Errno) {
      try DispatchProbe.checkDescriptors()
      let kernel = try Self.makeKernel(&settings, options)
      let loop = try Loop(settings, kernel: kernel, queue: queue)
      if let failure = DispatchProbe.failure() {
        loop.close(nil)
        throw failure
      }
      self.loop = loop
      executor = AIOExecutor(loop.jobs)
      taskExecutor = AIOTaskExecutor(executor, loop.jobs)
    } catch {
      throw .settingUp(errno: error, queueDepth: queueDepth)
    }
    memoryPool = MemoryPool(limit: 16 << 20)
    number = Self.numbers.wrappingAdd(1, ordering: .relaxed).newValue
  }

  private static func check(
    _ name: String, _ value: Int, _ range: ClosedRange<Int>
  ) throws(AIOError) {
    guard !range.contains(value) else { return }
    throw AIOError(
      .invalidOption, AIOError.Subject(operation: .createContext),
      .text(
        """
        a \(name) of \(value) was given; it must be from \(range.lowerBound) to \
        \(range.upperBound)
        """))
  }

  private static func waitSettings(
    _ waiting: Options.Waiting
  ) throws(AIOError) -> AdaptiveWait.Settings {
    switch waiting {
    case .source: return .init(sleepBound: 0)
    case .sleeping: return .init(sleepBound: 500_000)
    case .spinning(let bound):
      guard bound >= .zero, bound <= .milliseconds(10) else {
        throw AIOError(
          .invalidOption, AIOError.Subject(operation: .createContext),
          .text("waiting: .spinning(upTo: \(bound)) was given; it must be from 0 to 10 ms"))
      }
      let nanoseconds = UInt64(bound / .nanoseconds(1))
      return .init(sleepBound: max(500_000, nanoseconds), spinBound: nanoseconds)
    }
  }

  /// - Parameter settings: Its queue depth becomes that which the kernel has room for.
  private static func makeKernel(
    _ settings: inout Loop.Settings, _ options: Options
  ) throws(Errno) -> SystemKernel {
    if KernelChoice.ofProcess == .threads { return .threads(ThreadKernel()) }
    while true {
      do throws(Errno) {
        if let failure = KernelProbe.failure { throw failure }
        return .aio(try LinuxKernel(room: FileShares.room(queueDepth: settings.queueDepth)))
      } catch {
        if error == .resourceTemporarilyUnavailable {
          let least = options.minimumQueueDepth ?? settings.queueDepth
          guard settings.queueDepth > least else { throw error }
          settings.queueDepth = max(least, settings.queueDepth / 2)
          continue
        }
        guard options.withoutKernelAIO == .threads,
          AIOError.settingUp(errno: error, queueDepth: settings.queueDepth).code == .unavailable
        else { throw error }
        return .threads(ThreadKernel())
      }
    }
  }

  deinit {
    loop.close(nil)
  }

  /// Runs a turn of the loop now: submits the requests that were made, reaps the completions that
  /// are there, and runs their handlers. It never waits for a completion. The context does the same
  /// by itself whenever there is something to do.
  ///
  /// The call must be made on the context's ``queue``, and neither inside a completion handler nor
  /// by a task or an actor that the loop runs: anything else is a programmer error, and traps.
  ///
  /// - Returns: The number of completions that were run, or sent to the queues they are for; 0
  ///   after the context has closed. A turn ends after 256 completions or about 1 ms. The rest
  ///   follows by itself once the caller has left the queue; a caller that stays on it repeats the
  ///   call until it returns 0.
  @discardableResult
  public func process() -> Int {
    loop.turnByHand()
  }

  /// The counts of what the context has done and is doing, as of a moment ago: a request that has
  /// just completed may not be counted before the loop's turn has ended. May be read from any
  /// thread, and is cheap.
  public var statistics: AIOStatistics { loop.statistics }

  /// Cancels a request that has not reached the kernel: one that waits to be submitted, for its
  /// file's share of the kernel's room, or for an offload thread. May be called from any thread,
  /// and never blocks.
  ///
  /// - Returns: ``AIOCancellation/cancelled`` if the request completes as cancelled. The kernel
  ///   cancels no file I/O, so that a request that it has, or that an offload thread has begun,
  ///   completes normally.
  @discardableResult
  public func cancel(_ request: AIORequest) -> AIOCancellation {
    guard request.context == number else { return .alreadyCompleted }
    return loop.cancel(request.id)
  }

  /// Closes the context: refuses new requests, completes the accepted ones, then frees the kernel's
  /// context off the loop. Corresponds to `io_destroy(2)`.
  ///
  /// May be called from any thread, and from completion handlers, and never blocks. Requests of
  /// tasks that wait for a slot end with ``AIOError/Code/contextClosed``.
  ///
  /// - Parameters:
  ///   - queue: The queue to call back on; the context's own queue unless given.
  ///   - completion: Called once everything has been freed, after every completion handler has
  ///     returned. A second `close` calls back as well.
  public func close(queue: DispatchQueue? = nil, completion: (@Sendable () -> Void)? = nil) {
    guard let completion, let queue else { return loop.close(completion) }
    loop.close { queue.async(execute: completion) }
  }
}
