// SPDX-License-Identifier: Apache-2.0

import CSockets
import Dispatch
import Glibc
import SystemPackage

/// A timer of 100 ms that needs no descriptor when it is scheduled.
///
/// Dispatch makes its timers' descriptor when the first is scheduled: a listener that pauses
/// because the process has no descriptor left would never continue.
///
/// - Safety: `@unchecked Sendable` because it is confined to the queue it is activated on.
final class RetryTimer: @unchecked Sendable {
  private static let nanoseconds: Int64 = 100_000_000

  private let descriptor: Int32
  private var source: (any DispatchSourceRead)?

  init() throws(ListenError) {
    descriptor = csockets_timer()
    guard descriptor >= 0 else {
      throw ListenError(description: "cannot make a timer: \(Errno(rawValue: -descriptor))")
    }
  }

  deinit {
    // The source owns the descriptor once there is one.
    if let source { source.cancel() } else { Glibc.close(descriptor) }
  }

  /// - Parameter body: called on `queue` for each time that was scheduled.
  func activate(on queue: DispatchQueue, _ body: @escaping () -> Void) {
    let source = DispatchSource.makeReadSource(fileDescriptor: descriptor, queue: queue)
    let descriptor = descriptor
    source.setEventHandler {
      var count: UInt64 = 0
      if read(descriptor, &count, 8) == 8 { body() }
    }
    source.setCancelHandler { Glibc.close(descriptor) }
    source.activate()
    self.source = source
  }

  func schedule() { csockets_set_timer(descriptor, Self.nanoseconds) }

  func cancel() { source?.cancel() }
}
