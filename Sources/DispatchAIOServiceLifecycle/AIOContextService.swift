// SPDX-License-Identifier: Apache-2.0

#if ServiceLifecycle
public import DispatchAIO
public import ServiceLifecycle

/// A context as a service of swift-service-lifecycle.
///
/// ```swift
/// let group = ServiceGroup(
///   services: [AIOContextService(context), server],
///   gracefulShutdownSignals: [.sigterm], logger: logger)
/// try await group.run()
/// ```
///
/// - At a graceful shutdown the context refuses new requests, completes those that it has accepted,
///   and frees what it has: ``DispatchAIO/AIOContext/close(isolation:)``. The service ends once all
///   completion handlers have returned. So it does if its task is cancelled, because what the
///   kernel has cannot be cancelled.
/// - A service group shuts its services down one after the other, the last of them first: a context
///   is listed before those that use it.
/// - If anything else closes the context, the service does not end before it is told to.
public struct AIOContextService: Service {
  /// The context.
  public let context: AIOContext

  /// Makes a service of a context.
  public init(_ context: AIOContext) {
    self.context = context
  }

  /// Waits for the graceful shutdown, or for its task to be cancelled, and closes the context.
  public func run() async throws {
    // A cancellation is an end like the other.
    try? await gracefulShutdown()
    await context.close()
  }
}
#endif
