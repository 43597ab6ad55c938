// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO

/// One of the loops of a server, with a share of its connections.
public protocol ServingLoop: AnyObject, Sendable {
  /// In whose ring its sockets are.
  var context: AIOContext { get }

  /// Serves a connection. From any thread.
  func add(_ socket: Int32, _ peer: String)
}

/// The loops of a server, and how many connections each has. The server itself is on the queue of
/// the first.
///
/// - Safety: `@unchecked Sendable` because it is confined to `queue`, but for the loops, which do
///   not change any more once it is made.
public final class ServingLoops<Loop: ServingLoop>: @unchecked Sendable {
  private var loops: [Loop] = []
  private var loads: [Int]
  private var whenClosed: () -> Void = {}

  public var context: AIOContext { loops[0].context }
  public var queue: DispatchQueue { context.queue }
  /// Those of all loops. From any thread.
  public var contexts: [AIOContext] { loops.map(\.context) }
  /// The number of connections. On the queue.
  public var connections: Int { loads.reduce(0, +) }

  /// Makes the loops.
  ///
  /// - Parameters:
  ///   - count: 1 or more.
  ///   - make: makes one, which calls `whenClosed` when the place of a connection is free, from any
  ///     thread.
  /// - Throws: what `make` throws.
  public init(
    count: Int,
    _ make: (_ number: Int, _ whenClosed: @escaping @Sendable () -> Void) throws -> Loop
  ) throws {
    loads = Array(repeating: 0, count: count)
    for number in 0..<count {
      loops.append(
        try make(number) { [weak self] in
          guard let self else { return }
          context.async { self.closed(on: number) }
        })
    }
  }

  /// Calls `body` each time that a connection's place has become free. On the queue, as `body` is.
  public func onClosed(_ body: @escaping () -> Void) { whenClosed = body }

  private func closed(on number: Int) {
    loads[number] -= 1
    whenClosed()
  }

  /// Starts to accept connections, each for the loop that has the fewest. On the queue.
  ///
  /// - Throws: if a listener cannot be watched.
  public func activate(_ acceptor: Acceptor) throws(AIOError) {
    try acceptor.activate(in: context) { [self] in
      connections
    } take: { [self] in
      assign($0, $1)
    }
  }

  /// Gives a connection to that loop.
  private func assign(_ socket: Int32, _ peer: String) {
    let least = loads.indices.min { loads[$0] < loads[$1] } ?? 0
    loads[least] += 1
    loops[least].add(socket, peer)
  }

  /// Asks every loop, and calls back on the queue with the sum of their answers.
  ///
  /// - Parameters:
  ///   - sum: the sum of no answers.
  ///   - add: adds an answer, on any thread, one at a time.
  ///   - ask: asks a loop, which calls `reply` once, on any thread.
  ///   - body: gets the sum.
  public func gather<Sum: Sendable, Answer>(
    _ sum: Sum, _ add: @escaping @Sendable (inout Sum, Answer) -> Void,
    _ ask: (_ loop: Loop, _ reply: @escaping @Sendable (Answer) -> Void) -> Void,
    then body: @escaping @Sendable (Sum) -> Void
  ) {
    let group = DispatchGroup()
    let total = Lock(sum)
    for loop in loops {
      group.enter()
      ask(loop) { answer in
        total.withLock { add(&$0, answer) }
        group.leave()
      }
    }
    group.notify(queue: queue) { body(total.withLock { $0 }) }
  }
}
