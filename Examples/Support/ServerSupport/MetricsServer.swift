// SPDX-License-Identifier: Apache-2.0
//
// `--metrics` of the servers: one small HTTP answer on a port of its own, or a Unix socket. Each
// connection has one request, which is answered with what the server counts at that time. There
// are few of them at a time, each for a short while and in little memory, so that who asks too
// often, too slowly or nonsense keeps others from asking, and the server from nothing.

import ArgumentParser
import DispatchAIO
import Logging

/// `--metrics ADDRESS:PORT` or `--metrics unix:PATH`.
public struct MetricsAddress: ExpressibleByArgument, Sendable {
  let address: Listener.Address

  public init?(argument: String) {
    if argument.hasPrefix("unix:") {
      address = .unix(path: RawArgument.path(String(argument.dropFirst(5))))
      return
    }
    guard let colon = argument.lastIndex(of: ":"), colon > argument.startIndex,
      let port = UInt16(argument[argument.index(after: colon)...])
    else { return nil }
    var host = argument[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
    guard !host.isEmpty else { return nil }
    address = .tcp(host: String(host), port: port)
  }
}

/// The option of the servers that have metrics.
public struct MetricsOptions: ParsableArguments {
  @Option(
    name: .customLong("metrics"),
    help: ArgumentHelp(
      """
      Serve /metrics in Prometheus' text format there, over HTTP: ADDRESS:PORT, or unix:PATH. Port \
      0 picks a free one, which the log tells.
      """, valueName: "where"))
  public var address: MetricsAddress?

  public init() {}
}

/// - Safety: `@unchecked Sendable` because it is confined to the queue of the context that it is
///   activated in, from then on.
public final class MetricsServer: @unchecked Sendable {
  /// The most connections at a time; more are closed at once.
  static let limit = 8
  /// How long a connection may last.
  static let timeout = Duration.seconds(10)

  /// Gathers the server's own numbers, and gives them to `reply`, on any thread.
  public typealias Collect = (_ reply: @escaping @Sendable (MetricsText) -> Void) -> Void

  private let listener: Listener
  private let logger: Logger
  private var collect: Collect = { $0(MetricsText()) }
  private var connections: [ObjectIdentifier: MetricsConnection] = [:]

  /// Listens at an address.
  public init(_ address: MetricsAddress, logger: Logger) throws(ListenError) {
    self.logger = logger
    do throws(ListenError) {
      listener = try Listener(address.address)
    } catch {
      throw ListenError(description: "--metrics: \(error)")
    }
  }

  /// Starts to answer. On the context's queue.
  ///
  /// - Parameters:
  ///   - context: in whose ring the sockets are.
  ///   - contexts: whose statistics follow the server's own numbers; with the trait Metrics, so
  ///     does what else is reported to swift-metrics.
  ///   - collect: called on its queue for each request.
  public func activate(
    in context: AIOContext, contexts: [AIOContext], _ collect: @escaping Collect
  ) throws(AIOError) {
    let contexts = try ContextMetrics(contexts)
    self.collect = { reply in
      collect { own in
        var text = own
        contexts.add(to: &text)
        reply(text)
      }
    }
    try listener.activate(in: context) { [unowned self] in
      switch $0 {
      case .success(let (socket, _)): accept(socket, context)
      case .failure(let errno): logger.error("--metrics: cannot accept a connection: \(errno)")
      }
    }
    logger.notice("metrics on \(listener.name)")
  }

  private func accept(_ socket: Int32, _ context: AIOContext) {
    guard connections.count < Self.limit else {
      logger.warning("--metrics: refused: \(connections.count) connections are the most")
      closeSocket(socket)
      return
    }
    do throws(AIOError) {
      let connection = try MetricsConnection(socket, in: context, collect: collect) {
        [weak self] in
        self?.connections[$0] = nil
      }
      connections[ObjectIdentifier(connection)] = connection
      try connection.activate(timeout: Self.timeout)
    } catch {
      logger.error("--metrics: cannot watch a connection: \(error)")
    }
  }

  /// Stops to answer, and closes all connections. On the queue.
  public func close() {
    listener.close()
    for connection in Array(connections.values) { connection.close() }
  }
}
