// SPDX-License-Identifier: Apache-2.0

#if ServiceLifecycle
import DispatchAIO
public import ServiceLifecycle

/// A server as a service of swift-service-lifecycle: at a graceful shutdown, or when its task is
/// cancelled, it answers what it has received, and ends.
public struct GracefulServerService: Service {
  /// The server ended, but not as it should have: the status that its program would exit with.
  public struct Failure: Error {
    public let status: Int32
  }

  private let server: any GracefulServer
  private let whenStarted: @Sendable ((any Error)?) -> Void
  /// Why the group shuts down, for the server's log.
  let reason = Lock("a graceful shutdown")

  /// - Parameter whenStarted: called when the server serves, or with the error that it met.
  public init(
    _ server: any GracefulServer,
    whenStarted: @escaping @Sendable ((any Error)?) -> Void = { _ in }
  ) {
    (self.server, self.whenStarted) = (server, whenStarted)
  }

  /// Serves until the graceful shutdown, or until nothing is left to serve.
  ///
  /// - Throws: ``Failure``, and what the server's start throws.
  public func run() async throws {
    let (ending, continuation) = AsyncStream<Int32>.makeStream()
    do {
      try server.start { continuation.yield($0) }
    } catch {
      whenStarted(error)
      throw error
    }
    whenStarted(nil)
    // A task of its own: what has been received is answered after a cancellation, too.
    let end = Task { await ending.first { _ in true } }
    let status = await withTaskCancellationOrGracefulShutdownHandler {
      await end.value
    } onCancelOrGracefulShutdown: {
      server.queue.async { server.shutDown(because: reason.withLock { $0 }) }
    }
    if let status, status != 0 { throw Failure(status: status) }
  }
}
#endif
