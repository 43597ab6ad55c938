// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc
import Logging

/// The accepting of a server's connections: up to a limit, beyond which they are closed at once,
/// and counted.
///
/// - Safety: `@unchecked Sendable` because it is confined to the queue of the context it is
///   activated in.
public final class Acceptor: @unchecked Sendable {
  private let listeners: [Listener]
  private let limit: Int
  private let logger: Logger
  private var count: () -> Int = { 0 }
  private var take: (Int32, String) throws -> Void = { _, _ in }
  private var accepted = 0
  private var refused = 0

  /// - Parameter limit: the most connections at a time (`--max-connections`).
  public init(_ listeners: [Listener], limit: Int, logger: Logger) {
    (self.listeners, self.limit, self.logger) = (listeners, limit, logger)
  }

  /// Starts to accept.
  ///
  /// - Parameters:
  ///   - context: in whose ring the listeners are watched; both closures are called on its queue.
  ///   - count: the number of connections that there are.
  ///   - take: takes a non-blocking socket and its peer's address. If it throws, the socket is
  ///     closed here.
  /// - Throws: if a listener cannot be watched.
  public func activate(
    in context: AIOContext, count: @escaping () -> Int,
    take: @escaping (_ socket: Int32, _ peer: String) throws -> Void
  ) throws(AIOError) {
    (self.count, self.take) = (count, take)
    for listener in listeners {
      try listener.activate(in: context) { [unowned self] in
        switch $0 {
        case .success(let (socket, peer)): accept(socket, peer)
        case .failure(let errno): logger.error("cannot accept a connection: \(errno)")
        }
      }
    }
  }

  /// Accepts a socket that is connected already. On the queue.
  public func accept(_ socket: Int32, _ peer: String) {
    let count = count()
    guard count < limit else {
      refused += 1
      logger.warning("refused \(peer): \(count) connections are the most (--max-connections)")
      Glibc.close(socket)
      return
    }
    do {
      try take(socket, peer)
      accepted += 1
    } catch {
      logger.error("cannot watch the connection from \(peer): \(error)")
      Glibc.close(socket)
    }
  }

  /// Stops to accept; further connections are refused by the kernel. On the queue.
  public func close() {
    for listener in listeners { listener.close() }
  }

  /// Adds the numbers of a server's connections. On the queue.
  ///
  /// - Parameter prefix: the beginning of their names.
  public func addMetrics(to text: inout MetricsText, prefix: String) {
    text.add(.gauge, "\(prefix)_connections", "Connections.", count())
    text.add(
      .counter, "\(prefix)_connections_accepted_total", "Connections accepted.", accepted)
    text.add(
      .counter, "\(prefix)_connections_refused_total", "Connections refused.", refused)
  }

  /// The beginning of a server's line of statistics.
  public var statistics: String {
    "\(count()) connections, \(accepted) accepted, \(refused) refused"
  }
}
