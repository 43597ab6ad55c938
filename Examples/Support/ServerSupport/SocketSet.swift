// SPDX-License-Identifier: Apache-2.0
//
// The readiness of any number of sockets, on one Dispatch queue, through one Dispatch source.
//
// A DispatchSource per connection costs eight system calls and two thread hand-overs for every
// event (the source is one-shot, and armed anew by Dispatch's manager thread each time), and
// libdispatch on Linux has open reports of crashes and of lost registrations when many sources
// come and go (swift-corelibs-libdispatch issues 949 and 833). So the connections are registered,
// once each and edge-triggered, with an epoll set of our own, whose descriptor is one source.
//
// Even so each event that finds the queue idle costs the two hand-overs, which on an idle machine
// is several times what it takes to answer a request. A set that *lingers* saves them: having
// found events, the source's handler sleeps in the epoll set a moment longer, for the next ones.
// While it does, the queue's other blocks wait; so it leaves after `longestStay` whatever comes,
// and blocks from other threads are `post`ed to the set, which wakes it.

import CSockets
import Dispatch
import Glibc
import SystemPackage

/// What a socket is ready for. Edge-triggered: said once, and again only after the socket was not
/// ready in between; so remember it until a call answers EAGAIN.
public struct Readiness: OptionSet, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  public static var readable: Readiness { Readiness(rawValue: EPOLLIN.rawValue) }
  public static var writable: Readiness { Readiness(rawValue: EPOLLOUT.rawValue) }
  /// Nothing will come any more, or the socket has failed: to read tells which.
  public static var hungUp: Readiness {
    Readiness(rawValue: EPOLLRDHUP.rawValue | EPOLLHUP.rawValue | EPOLLERR.rawValue)
  }
}

public protocol SocketHandler: AnyObject {
  /// On the set's queue.
  func socket(isReadyFor readiness: Readiness)
}

/// Sockets watched together. Everything is called on the set's queue, and calls back there; but
/// for `post`, which may be called from any thread.
///
/// - Safety: `@unchecked Sendable` because it is confined to its queue, but for the mail, which is
///   behind a lock.
public final class SocketSet: @unchecked Sendable {
  /// How long a set that lingers keeps its queue from other blocks, in nanoseconds.
  public static let longestStay: Int64 = 10_000_000

  private let descriptor: Int32
  private let doorbell: Int32
  /// Ticks while the set lingers: to wait with a timeout would set a timer for every event.
  private let ticker: Int32
  private var hasTicked = false
  /// Whether there were any since the last tick.
  private var hadEvents = false
  private let source: any DispatchSourceRead
  private let queue: DispatchQueue
  private var handlers: [UInt64: any SocketHandler] = [:]
  private var lastToken = SocketSet.lastReservedToken
  /// Called for each round of events with what tells the sockets.
  private let round: (() -> Void) -> Void
  /// How often it ticks, in nanoseconds; 0: the set does not linger.
  private let linger: Int64
  /// An eventfd to watch while lingering.
  private let companion: Int32?
  /// Whether events are being looked for, or handled.
  public private(set) var isLooking = false
  private let mail = Lock<[@Sendable () -> Void]>([])

  private static let doorbellToken: UInt64 = 1
  private static let companionToken: UInt64 = 2
  private static let tickerToken: UInt64 = 3
  private static let lastReservedToken: UInt64 = 3

  /// - Parameters:
  ///   - linger: for how long to wait for more events when there were some, before giving the queue
  ///     back to Dispatch; up to twice as long.
  ///   - companion: an eventfd that has a Dispatch source of its own, and is watched besides while
  ///     the set lingers, so that `round` is called when it counts. Not the set's to close.
  ///   - round: called on the queue for each round of events, with what tells the sockets of them;
  ///     to call that, and then to act on all of them together.
  public init(
    queue: DispatchQueue, linger: Duration = .zero, companion: Int32? = nil,
    round: @escaping (_ tell: () -> Void) -> Void
  ) throws(Errno) {
    self.queue = queue
    self.linger = Int64(linger / .nanoseconds(1))
    self.companion = companion
    descriptor = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    doorbell = csockets_eventfd()
    ticker = csockets_timer()
    self.round = round
    source = DispatchSource.makeReadSource(fileDescriptor: descriptor, queue: queue)
    let descriptors = [descriptor, doorbell, ticker]
    source.setCancelHandler {
      for descriptor in descriptors where descriptor >= 0 { Glibc.close(descriptor) }
    }
    source.setEventHandler { [weak self] in _ = self?.look() }
    source.activate()
    guard doorbell >= 0 else { throw Errno(rawValue: -doorbell) }
    guard ticker >= 0 else { throw Errno(rawValue: -ticker) }
    try control(EPOLL_CTL_ADD, doorbell, EPOLLIN.rawValue | EPOLLET.rawValue, Self.doorbellToken)
    try control(EPOLL_CTL_ADD, ticker, EPOLLIN.rawValue | EPOLLET.rawValue, Self.tickerToken)
    if let companion { try control(EPOLL_CTL_ADD, companion, 0, Self.companionToken) }
  }

  deinit {
    source.cancel()
  }

  private func control(
    _ operation: Int32, _ socket: Int32, _ events: UInt32, _ token: UInt64
  ) throws(Errno) {
    var event = epoll_event()
    event.events = events
    event.data.u64 = token
    guard epoll_ctl(descriptor, operation, socket, &event) == 0 else {
      throw Errno(rawValue: errno)
    }
  }

  /// Watches a non-blocking socket.
  ///
  /// - Returns: what to `remove` it by.
  public func add(_ socket: Int32, _ handler: any SocketHandler) throws(Errno) -> UInt64 {
    lastToken += 1
    try control(
      EPOLL_CTL_ADD, socket,
      EPOLLIN.rawValue | EPOLLOUT.rawValue | EPOLLRDHUP.rawValue | EPOLLET.rawValue, lastToken)
    handlers[lastToken] = handler
    return lastToken
  }

  /// Forgets a socket; to be called before it is closed.
  public func remove(_ token: UInt64, _ socket: Int32) {
    // Events already taken from the kernel find no handler any more.
    handlers[token] = nil
    var event = epoll_event()
    epoll_ctl(descriptor, EPOLL_CTL_DEL, socket, &event)
  }

  /// Runs a block on the set's queue, soon, also while the set lingers there. From any thread.
  public func post(_ block: @escaping @Sendable () -> Void) {
    let isFirst = mail.withLock { mail in
      mail.append(block)
      return mail.count == 1
    }
    guard isFirst else { return }
    var one: UInt64 = 1
    _ = write(doorbell, &one, 8)
  }

  private func takeMail() {
    let blocks = mail.withLock { mail in
      let blocks = mail
      mail = []
      return blocks
    }
    for block in blocks { block() }
  }

  /// Looks for ready sockets now, rather than when Dispatch says so.
  ///
  /// - Returns: whether there were any.
  @discardableResult
  public func look() -> Bool {
    precondition(!isLooking)
    isLooking = true
    defer { isLooking = false }
    if linger == 0 {
      let found = handleEvents(waits: false)
      if !found { round {} }
      return found
    }
    // What was done outside of events, by blocks on the queue, is to be acted on, too.
    round {}
    let began = csockets_nanoseconds()
    var isWatching = false
    var found = false
    hadEvents = true
    while true {
      hasTicked = false
      if handleEvents(waits: isWatching) { found = true }
      if hasTicked {
        // A whole tick without events: there is nothing to wait for.
        if !hadEvents || csockets_nanoseconds() - began > Self.longestStay { break }
        hadEvents = false
        csockets_tick(ticker, linger)
      }
      if !isWatching {
        isWatching = true
        csockets_tick(ticker, linger)
        // Adding EPOLLIN looks at the counter at once: what it has counted is not missed.
        watchCompanion(EPOLLIN.rawValue | EPOLLET.rawValue)
      }
    }
    csockets_tick(ticker, 0)
    watchCompanion(0)
    return found
  }

  private func watchCompanion(_ events: UInt32) {
    if let companion {
      try? control(EPOLL_CTL_MOD, companion, events, Self.companionToken)
    }
  }

  /// - Returns: whether there were any, and a round for them.
  private func handleEvents(waits: Bool) -> Bool {
    let most = 128
    return withUnsafeTemporaryAllocation(of: epoll_event.self, capacity: most) { events in
      let count = epoll_wait(descriptor, events.baseAddress, Int32(most), waits ? -1 : 0)
      guard count > 0 else { return false }
      if count == 1 && events[0].data.u64 == Self.tickerToken {
        hasTicked = true
        return false
      }
      round {
        for event in events.prefix(Int(count)) {
          switch event.data.u64 {
          case Self.tickerToken: hasTicked = true
          case Self.doorbellToken: takeMail()
          case Self.companionToken: break
          case let token:
            handlers[token]?.socket(isReadyFor: Readiness(rawValue: event.events))
          }
        }
      }
      hadEvents = true
      return true
    }
  }
}
