// SPDX-License-Identifier: Apache-2.0
//
// The readiness of any number of sockets, on one Dispatch queue, through one Dispatch source.
//
// A DispatchSource per connection costs eight system calls and two thread hand-overs for every
// event (the source is one-shot, and armed anew by Dispatch's manager thread each time), and
// libdispatch on Linux has open reports of crashes and of lost registrations when many sources
// come and go (swift-corelibs-libdispatch issues 949 and 833). So the connections are registered,
// once each and edge-triggered, with an epoll set of our own, whose descriptor is one source.

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

/// Sockets watched together. Everything is called on the set's queue, and calls back there.
public final class SocketSet {
  private let descriptor: Int32
  private let source: any DispatchSourceRead
  private var handlers: [UInt64: any SocketHandler] = [:]
  private var lastToken: UInt64 = 0
  /// Called when the sockets that were ready have been told.
  private let afterEvents: () -> Void
  private var isClosed = false

  /// - Parameter afterEvents: called on the queue after each round of events: the moment to act on
  ///   all of them together.
  public init(queue: DispatchQueue, afterEvents: @escaping () -> Void) throws(Errno) {
    descriptor = epoll_create1(Int32(EPOLL_CLOEXEC))
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    self.afterEvents = afterEvents
    source = DispatchSource.makeReadSource(fileDescriptor: descriptor, queue: queue)
    let descriptor = descriptor
    source.setCancelHandler { Glibc.close(descriptor) }
    source.setEventHandler { [weak self] in _ = self?.look() }
    source.activate()
  }

  deinit {
    source.cancel()
  }

  /// Watches a non-blocking socket.
  ///
  /// - Returns: what to `remove` it by.
  public func add(_ socket: Int32, _ handler: any SocketHandler) throws(Errno) -> UInt64 {
    lastToken += 1
    var event = epoll_event()
    event.events =
      EPOLLIN.rawValue | EPOLLOUT.rawValue | EPOLLRDHUP.rawValue | EPOLLET.rawValue
    event.data.u64 = lastToken
    guard epoll_ctl(descriptor, EPOLL_CTL_ADD, socket, &event) == 0 else {
      throw Errno(rawValue: errno)
    }
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

  /// Looks for ready sockets now, rather than when Dispatch says so.
  ///
  /// - Returns: whether there were any.
  @discardableResult
  public func look() -> Bool {
    let most = 128
    return withUnsafeTemporaryAllocation(of: epoll_event.self, capacity: most) { events in
      let count = epoll_wait(descriptor, events.baseAddress, Int32(most), 0)
      guard count > 0 else { return false }
      for event in events.prefix(Int(count)) {
        handlers[event.data.u64]?.socket(isReadyFor: Readiness(rawValue: event.events))
      }
      afterEvents()
      return true
    }
  }
}
