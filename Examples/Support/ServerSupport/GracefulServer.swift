// SPDX-License-Identifier: Apache-2.0
//
// How the servers' programs serve: until a signal, and then until all is answered.

import Dispatch
import Glibc
import Logging

#if ServiceLifecycle
import DispatchAIO
import ServiceLifecycle
#endif

/// A server that answers what it has received before it ends.
public protocol GracefulServer: AnyObject, Sendable {
  /// The serial queue that it is on.
  var queue: DispatchQueue { get }

  /// Starts to serve. Once, off the queue. Whoever starts it keeps it until it has ended.
  ///
  /// - Parameter whenEnded: called once, on the queue, when the server has ended: after
  ///   ``shutDown(because:)``, or because nothing is left to serve. With the exit status of its
  ///   program.
  /// - Throws: if its sockets cannot be watched.
  func start(whenEnded: @escaping @Sendable (_ status: Int32) -> Void) throws

  /// Accepts no more, answers what it has received, and ends. On the queue, after `start`; a second
  /// call does nothing.
  ///
  /// - Parameter reason: for the log: the signal.
  func shutDown(because reason: String)
}

extension Program {
  /// Serves until SIGTERM or a signal like it (``ShutdownSignals``), and ends the process with the
  /// server's status. On the main thread.
  ///
  /// With the trait ServiceLifecycle it does so in a group of swift-service-lifecycle, which the
  /// signal shuts down.
  ///
  /// - Parameter ready: called once, on the server's queue, when connections and signals are
  ///   handled.
  /// - Throws: if the server does not start.
  public static func serve(
    _ server: some GracefulServer, logger: Logger, ready: @escaping @Sendable () -> Void
  ) throws -> Never {
    let exit: @Sendable (Int32) -> Void = {
      LogRateLimit.shared.reportAll()
      Glibc.exit($0)
    }
    #if ServiceLifecycle
    let shutDown = try startGroup(of: server, logger: logger, whenEnded: exit)
    #else
    try server.start(whenEnded: exit)
    let shutDown = { server.shutDown(because: $0) }
    #endif
    let signals = ShutdownSignals(queue: server.queue, whenInstalled: ready) { shutDown($1) }
    withExtendedLifetime(signals) { ShutdownSignals.runQueuesForever() }
  }

  #if ServiceLifecycle
  /// Runs a server in a service group.
  ///
  /// - Returns: what shuts the group down.
  private static func startGroup(
    of server: some GracefulServer, logger: Logger,
    whenEnded: @escaping @Sendable (Int32) -> Void
  ) throws -> @Sendable (_ signal: String) -> Void {
    let (isStarted, failure) = (DispatchSemaphore(value: 0), Lock((any Error)?.none))
    let service = GracefulServerService(server) { error in
      failure.withLock { $0 = error }
      isStarted.signal()
    }
    let group = ServiceGroup(
      configuration: .init(
        services: [
          // A server that has nothing left to serve is no failure.
          .init(service: service, successTerminationBehavior: .gracefullyShutdownGroup)
        ], logger: logger))
    Task {
      do {
        try await group.run()
        whenEnded(0)
      } catch let ending as GracefulServerService.Failure {
        whenEnded(ending.status)
      }
    }
    isStarted.wait()
    if let failure = failure.withLock({ $0 }) { throw failure }
    return { signal in
      service.reason.withLock { $0 = signal }
      Task { await group.triggerGracefulShutdown() }
    }
  }
  #endif
}
