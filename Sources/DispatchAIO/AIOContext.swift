// SPDX-License-Identifier: Apache-2.0

public import Dispatch
internal import Synchronization
internal import SystemPackage

/// Asynchronous file I/O on a Dispatch queue: a kernel AIO context whose completions are handled on
/// a serial queue, beside the sockets and timers that the queue serves.
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
/// - Every method may be called from any thread, and from inside completion handlers, but for
///   ``process()``.
/// - Completion handlers run on the context's queue, or on the queue that the request named, never
///   inside the call that made the request.
/// - Requests go to the kernel in the order in which they were accepted, as far as there is room,
///   and as far as they need not wait for the disk to be taken; the kernel completes them in any
///   order.
/// - The context's queue never sleeps in the disk. What would make the kernel sleep is offloaded to
///   threads that may (``Options/offloadThreads``), and completes like the rest. (The exceptions, each
///   with its bound, are listed in the README.)
/// - A context that is dropped without ``close(queue:completion:)`` finishes its requests, runs
///   their handlers, and then frees what it has.
///
/// Beneath are `io_submit(2)`, `io_getevents(2)` and an `eventfd(2)`.
public final class AIOContext: Sendable {
  /// Tuning options; the defaults suit most programs.
  public struct Options: Sendable {
    /// How far the queue depth may be lowered where `fs.aio-max-nr` does not have room for all of
    /// it, by halves; ``AIOContext/queueDepth`` tells what became of it. If `nil`, the depth is never lowered.
    public var minimumQueueDepth: Int?

    /// How many threads may work at a time on what the loop must not block in; 1 to 64. A thread
    /// whose system call takes longer than 20 ms does not count, and is replaced, up to eight times as
    /// many in all. They exist while they have something to do.
    public var offloadThreads = 8

    /// What to do where there is no kernel AIO.
    public enum WithoutKernelAIO: Sendable, Hashable {
      /// Throw ``AIOError/Code/unavailable``.
      case fail
      /// Make every request a system call on the offload threads: much slower, and works.
      case threads
    }

    public var withoutKernelAIO = WithoutKernelAIO.fail

    /// How requests reach the kernel.
    public enum Submission: Sendable, Hashable {
      /// From the loop what cannot make the kernel sleep; the rest from offload threads.
      case nonblocking
      /// Everything from the loop, as it is, as other users of Linux AIO do: an append, a write
      /// into a hole, or a buffered request stops the loop for as long as it takes. For comparison,
      /// and for kernels whose `RWF_NOWAIT` does not work.
      case inline
    }

    public var submission = Submission.nonblocking

    /// How a turn of the loop waits for what it expects soon. To be woken through a source takes two
    /// hand-overs between threads, which cost more than a fast disk does.
    public enum Waiting: Sendable, Hashable {
      /// Asleep in the completion ring (`io_getevents(2)`), for up to 500 us at a time, while requests
      /// are in flight and completions have been arriving that soon. Requests from other threads end
      /// the wait. The queue's other blocks (sockets, timers) are kept waiting for no longer than one
      /// such wait, 100 us of handlers, and the handler that runs then; while they make requests, the
      /// loop does not wait.
      case sleeping
      /// As `sleeping`, but with one or two requests in flight looking at the ring over and over, for
      /// up to so long at a time, 0 to 10 ms: the fastest there is on an idle machine, at up to twice
      /// the processor time. A container with a processor quota is stopped for what it burns.
      case spinning(upTo: Duration)
      /// Never: the queue is given back at once, and the source wakes it.
      case source
    }

    public var waiting = Waiting.sleeping

    public init() {}
  }

  /// How many requests the kernel works on at once, at the most.
  public var queueDepth: Int { loop.settings.queueDepth }

  /// How many requests can wait behind those.
  public var pendingLimit: Int { loop.settings.pendingLimit }

  /// Whether requests go to kernel AIO, rather than to threads: see
  /// ``Options/WithoutKernelAIO/threads``.
  public var usesKernelAIO: Bool { loop.settings.policy != .threadsOnly }

  /// The serial queue that the context works on.
  public var queue: DispatchQueue { loop.queue }

  let loop: Loop
  /// Tells this context's requests from another's.
  let number: UInt32
  private static let numbers = Atomic<UInt32>(0)

  /// Makes a context. `io_setup(2)`, which takes some time: not for one operation each.
  ///
  /// - Parameters:
  ///   - queueDepth: How many requests the kernel may work on at once: 1 to 65536. All contexts of
  ///     the machine share `fs.aio-max-nr`, 65536 unless it was raised.
  ///   - queue: The serial queue to work on, and to run completion handlers on; a new one of the
  ///     context's own unless given. A concurrent queue is a programmer error, and traps as soon as two turns of the
  ///     loop meet.
  ///   - pendingLimit: How many requests may wait behind those in the kernel: 0 to 524288. Beyond
  ///     it, verbs throw ``AIOError/Code/full``.
  ///   - options: What is seldom needed.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/contextLimit`` when `fs.aio-max-nr` is
  ///   used up, ``AIOError/Code/unavailable`` where there is no AIO,
  ///   ``AIOError/Code/invalidOption``, ``AIOError/Code/forked`` in a process that was forked off one
  ///   that had a context, or ``AIOError/Code/system``, for example when the
  ///   process is out of file descriptors.
  public init(
    queueDepth: Int = 128, queue: DispatchQueue? = nil, pendingLimit: Int = 1024,
    options: Options = Options()
  ) throws(AIOError) {
    try Self.check("queueDepth", queueDepth, 1...65536)
    try Self.check("pendingLimit", pendingLimit, 0...524_288)
    try Self.check("minimumQueueDepth", options.minimumQueueDepth ?? queueDepth, 1...queueDepth)
    try Self.check("offloadThreads", options.offloadThreads, 1...64)
    let wait = try Self.waitSettings(options.waiting)
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
    } catch {
      throw .settingUp(errno: error, queueDepth: queueDepth)
    }
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

  /// - Parameter settings: what becomes of the queue depth, and of the policy.
  private static func makeKernel(
    _ settings: inout Loop.Settings, _ options: Options
  ) throws(Errno) -> LinuxKernel {
    while true {
      do throws(Errno) {
        if let failure = KernelProbe.failure { throw failure }
        return try LinuxKernel(room: FileShares.room(queueDepth: settings.queueDepth))
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
        settings.policy = .threadsOnly
        return .absent
      }
    }
  }

  deinit {
    loop.close(nil)
  }

  /// Takes in what was asked for, submits it, and runs the completions that are there, without
  /// waiting for any. The context does this by itself whenever there is something to do; call it
  /// to have it done now.
  ///
  /// On the context's ``queue`` only, and neither from inside a completion handler nor by a task or an
  /// actor that the loop runs: these are programmer errors, and trap.
  ///
  /// - Returns: How many completions were run, or sent to the queues they go to. When there are
  ///   many, only part of them, and the rest follows by itself once the caller has left the queue;
  ///   who stays on it calls again until this is 0. 0 after the context has closed.
  @discardableResult
  public func process() -> Int {
    loop.turnByHand()
  }

  /// How much the context has done, and is doing. From any thread, and cheap.
  public var statistics: AIOStatistics { loop.statistics }

  /// Cancels a request that has not reached the kernel. From any thread.
  ///
  /// - Returns: Whether it will complete as cancelled. The kernel cancels no file I/O, so that a
  ///   request it has (all up to ``queueDepth`` get there soon) completes normally.
  @discardableResult
  public func cancel(_ request: AIORequest) -> AIOCancellation {
    guard request.context == number else { return .alreadyCompleted }
    return loop.cancel(request.id)
  }

  /// Closes the context: refuses new requests, lets the accepted ones complete, then frees the
  /// kernel's context off the loop. Never blocks. From any thread, and from completion handlers.
  ///
  /// - Parameters:
  ///   - queue: Where to call back; the context's own queue unless given.
  ///   - completion: Called once everything has been freed, after every completion handler has
  ///     returned. Closing again calls back too.
  public func close(queue: DispatchQueue? = nil, completion: (@Sendable () -> Void)? = nil) {
    guard let completion, let queue else { return loop.close(completion) }
    loop.close { queue.async(execute: completion) }
  }
}
