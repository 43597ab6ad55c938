// SPDX-License-Identifier: Apache-2.0
//
// The sockets that tasks wait for, in an epoll set of their own, one-shot: a wait is one system
// call of the set, epoll_ctl, and its event takes the socket out of the set's sight. The pool makes
// another before a wait for reading, which asks whether the socket listens. A context's own poll,
// or a source that is suspended and resumed, takes two of the set, one of them after the event.
//
// Nobody tells when FlyingFox closes a socket, and its number is soon another's. So nothing is
// believed of a number: each wait asks the kernel to watch it, as one that it knows (MOD) or, if
// that is refused, as a new one (ADD).

#if FlyingFox
internal import CKernel
internal import DispatchAIO
internal import FlyingSocks
internal import Glibc

/// The waits of a pool. Not thread-safe: it is under the pool's lock.
struct SocketWaits {
  typealias Continuation = UnsafeContinuation<Void, any Error>

  /// One suspension of a task.
  ///
  /// - Safety: `@unchecked Sendable` because what changes is under the lock of its pool; `@safe`
  ///   because the continuation is resumed by who has taken it out.
  @safe
  final class Wait: @unchecked Sendable {
    let fd: Int32
    fileprivate let events: AIOPollEvents
    /// The task, until it is resumed, which whoever takes the continuation does, once.
    fileprivate var continuation: Continuation?
    var isCancelled = false

    init(_ fd: Int32, _ events: Socket.Events) {
      self.fd = fd
      var polled: AIOPollEvents = []
      if events.contains(.read) { polled.formUnion([.readable, .readHangUp]) }
      if events.contains(.write) { polled.insert(.writable) }
      self.events = polled
    }
  }

  /// A task that is to be resumed, outside of the lock.
  ///
  /// - Safety: `@safe` because its maker resumes it once.
  @safe
  struct Resumption {
    fileprivate let continuation: Continuation
    fileprivate let error: (any Error)?

    func resume() {
      if let error {
        unsafe continuation.resume(throwing: error)
      } else {
        unsafe continuation.resume()
      }
    }
  }

  /// The waits of one number. More than one is rare: a task that reads and one that writes.
  private struct Watched {
    var first: Wait?
    var others: [Wait] = []
    /// Whether the number was in the set when it was last looked at.
    var isKnown = false

    var events: AIOPollEvents {
      others.reduce(first?.events ?? []) { $0.union($1.events) }
    }
  }

  /// EPOLLONESHOT.
  private static let oneShot: UInt32 = 1 << 30

  /// The epoll set.
  let set: Int32
  /// By number.
  private var watched: [Watched] = []

  /// - Throws: `SocketError.failed`.
  init() throws(SocketError) {
    set = ckernel_poll_set_create()
    guard set >= 0 else { throw Self.failure(-set) }
  }

  static func failure(_ errno: Int32) -> SocketError {
    // The sentence is a C string of the system's, copied at once.
    .failed(type: "epoll", errno: errno, message: unsafe String(cString: strerror(errno)))
  }

  /// Adds a wait.
  ///
  /// - Throws: `SocketError.failed` if the number cannot be watched; the continuation is then the
  ///   caller's.
  mutating func add(_ wait: Wait, _ continuation: Continuation) throws(SocketError) {
    let fd = Int(wait.fd)
    guard fd >= 0 else { throw Self.failure(EBADF) }
    if fd >= watched.count {
      watched += Array(repeating: Watched(), count: fd + 64 - watched.count)
    }
    let answer = watch(wait.fd, watched[fd].events.union(wait.events))
    guard answer == 0 else { throw Self.failure(-answer) }
    unsafe wait.continuation = continuation
    if watched[fd].first == nil {
      watched[fd].first = wait
    } else {
      watched[fd].others.append(wait)
    }
  }

  private mutating func watch(_ fd: Int32, _ events: AIOPollEvents) -> Int32 {
    let (events, data) = (events.rawValue | Self.oneShot, UInt64(UInt32(bitPattern: fd)))
    var answer: Int32
    if watched[Int(fd)].isKnown {
      answer = ckernel_poll_set_modify(set, fd, events, data)
      if answer == -ENOENT { answer = ckernel_poll_set_add(set, fd, events, data) }
    } else {
      answer = ckernel_poll_set_add(set, fd, events, data)
      if answer == -EEXIST { answer = ckernel_poll_set_modify(set, fd, events, data) }
    }
    watched[Int(fd)].isKnown = answer == 0
    return answer
  }

  /// Takes a wait out. The set's event for it finds nobody.
  ///
  /// - Returns: `nil` if it has ended.
  mutating func remove(_ wait: Wait, _ error: any Error) -> Resumption? {
    guard let continuation = unsafe wait.continuation.take() else { return nil }
    let fd = Int(wait.fd)
    if watched[fd].first === wait {
      watched[fd].first = watched[fd].others.popLast()
    } else {
      watched[fd].others.removeAll { $0 === wait }
    }
    return unsafe Resumption(continuation: continuation, error: error)
  }

  /// Takes out the waits whose sockets are ready: those of up to 64 sockets.
  mutating func takeReady(into resumptions: inout [Resumption]) {
    unsafe withUnsafeTemporaryAllocation(of: ckernel_readiness.self, capacity: 64) { buffer in
      let count = unsafe ckernel_poll_set_ready(set, buffer.baseAddress, 64)
      for index in 0..<max(0, Int(count)) {
        let event = unsafe buffer[index]
        take(
          Int32(bitPattern: UInt32(truncatingIfNeeded: event.data)),
          AIOPollEvents(rawValue: event.events), &resumptions)
      }
    }
  }

  private mutating func take(
    _ fd: Int32, _ events: AIOPollEvents, _ resumptions: inout [Resumption]
  ) {
    // As FlyingFox has it: the end of the stream is read, if there is something to read before it.
    let isOver =
      events.contains(.error)
      || !events.contains(.readable) && !events.isDisjoint(with: [.hangUp, .readHangUp])
    func end(_ wait: Wait) -> Bool {
      guard !events.isDisjoint(with: wait.events.union([.error, .hangUp])),
        let continuation = unsafe wait.continuation.take()
      else { return false }
      unsafe resumptions.append(
        Resumption(
          continuation: continuation, error: isOver ? SocketError.disconnected : nil))
      return true
    }
    // Moved out, so that it is not copied.
    var entry = Watched()
    swap(&entry, &watched[Int(fd)])
    if let first = entry.first, end(first) { entry.first = nil }
    if !entry.others.isEmpty {
      entry.others.removeAll(where: end)
      if entry.first == nil { entry.first = entry.others.popLast() }
    }
    swap(&entry, &watched[Int(fd)])
    // The others wait on. If that fails, the number is nobody's any more, and they wait until they
    // are cancelled, as those of any socket that is closed under them.
    let rest = watched[Int(fd)].events
    if !rest.isEmpty { _ = watch(fd, rest) }
  }

  /// Takes out all waits.
  mutating func takeAll(_ error: any Error) -> [Resumption] {
    let waits = watched.flatMap { ($0.first.map { [$0] } ?? []) + $0.others }
    watched = []
    return waits.compactMap { wait in
      unsafe wait.continuation.take().map {
        unsafe Resumption(continuation: $0, error: error)
      }
    }
  }
}
#endif
