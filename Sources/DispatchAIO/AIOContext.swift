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
/// - Requests go to the kernel in the order in which they were accepted, as far as there is room;
///   the kernel completes them in any order.
/// - A context that is dropped without ``close(queue:completion:)`` finishes its requests, runs
///   their handlers, and then frees what it has.
///
/// Beneath are `io_submit(2)`, `io_getevents(2)` and an `eventfd(2)`.
public final class AIOContext: Sendable {
  /// How many requests the kernel works on at once, at the most.
  public let queueDepth: Int

  /// How many requests can wait behind those.
  public let pendingLimit: Int

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
  ///     context's own unless given. A concurrent queue is a programmer error, and traps.
  ///   - pendingLimit: How many requests may wait behind those in the kernel: 0 to 524288. Beyond
  ///     it, verbs throw ``AIOError/Code/full``.
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/contextLimit`` when `fs.aio-max-nr` is
  ///   used up, ``AIOError/Code/unavailable`` where there is no AIO,
  ///   ``AIOError/Code/invalidQueueDepth``, or ``AIOError/Code/system``, for example when the
  ///   process is out of file descriptors.
  public init(
    queueDepth: Int = 128, queue: DispatchQueue? = nil, pendingLimit: Int = 1024
  ) throws(AIOError) {
    let subject = AIOError.Subject(operation: .createContext)
    guard (1...65536).contains(queueDepth) else {
      throw AIOError(
        .invalidQueueDepth, subject,
        .text("a queueDepth of \(queueDepth) was given; it must be from 1 to 65536"))
    }
    guard (0...524_288).contains(pendingLimit) else {
      throw AIOError(
        .invalidQueueDepth, subject,
        .text("a pendingLimit of \(pendingLimit) was given; it must be from 0 to 524288"))
    }
    do {
      loop = try Loop(queueDepth: queueDepth, pendingLimit: pendingLimit, queue: queue)
    } catch {
      throw .settingUp(errno: error, queueDepth: queueDepth)
    }
    self.queueDepth = queueDepth
    self.pendingLimit = pendingLimit
    number = Self.numbers.add(1, ordering: .relaxed).newValue
  }

  deinit {
    loop.close(nil)
  }

  /// Takes in what was asked for, submits it, and runs the completions that are there, without
  /// waiting for any. The context does this by itself whenever there is something to do; call it
  /// to have it done now.
  ///
  /// On the context's ``queue`` only, and not from inside a completion handler: both are programmer
  /// errors, and trap.
  ///
  /// - Returns: How many completions were run, or sent to the queues they go to. When there are
  ///   many, only part of them, and the rest follows by itself; 0 after the context has closed.
  @discardableResult
  public func process() -> Int {
    loop.turnByHand()
  }

  /// Cancels a request that has not reached the kernel. From any thread.
  ///
  /// - Returns: Whether it will complete as cancelled. The kernel cancels no file I/O, so that a
  ///   request it has (all up to ``queueDepth`` get there soon) completes normally.
  @discardableResult
  public func cancel(_ request: AIORequest) -> AIOCancellation {
    guard request.context == number else { return .alreadyCompleted }
    return loop.cancel(request.key)
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
