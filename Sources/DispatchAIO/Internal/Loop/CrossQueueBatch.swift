// SPDX-License-Identifier: Apache-2.0

internal import Dispatch

/// The destination of the result of a request.
///
/// Not copyable, because each copy would retain and release what it holds.
enum Delivery: ~Copyable, Sendable {
  /// A closure, and the queue to call it on; `nil` for the loop's own, where it is called in place.
  case callback(AIOCompletion, queue: DispatchQueue?)
  /// A suspended task, and whether it is isolated to an actor.
  case task(Resumption<Result<Int, AIOError>>, isIsolated: Bool)

  /// Delivers a result in this call, whatever the queue.
  consuming func complete(_ result: Result<Int, AIOError>) {
    switch consume self {
    case .callback(let completion, _): completion(result)
    // Resumed once, since a request completes once.
    case .task(let resumption, _): resumption.resume(returning: result)
    }
  }
}

/// The owner of the slots.
protocol SlotOwner: AnyObject, Sendable {
  /// Takes back the slot of a request that has ended. From any thread.
  func giveBack(_ slot: UInt32)
}

/// The completions of one turn whose handlers run on other queues than the loop's: one block for
/// each queue. A request's slot counts as in use until its handler begins, so that a queue that
/// does not keep up leads to refused requests (`.full`), and not to more memory.
struct CrossQueueBatch {
  private struct Result {
    let completion: AIOCompletion
    let result: Swift.Result<Int, AIOError>
    let slot: UInt32
  }

  private struct Destination {
    let queue: DispatchQueue
    var results: [Result]
  }

  /// The queues are few, so that a linear search is faster than hashing.
  private var destinations: [Destination] = []
  /// The number of blocks that were dispatched.
  private(set) var hops = 0

  var isEmpty: Bool {
    @inline(__always) get { destinations.isEmpty }
  }

  mutating func add(
    _ completion: @escaping AIOCompletion, _ result: Swift.Result<Int, AIOError>, slot: UInt32,
    to queue: DispatchQueue
  ) {
    let result = Result(completion: completion, result: result, slot: slot)
    if let index = destinations.firstIndex(where: { $0.queue === queue }) {
      destinations[index].results.append(result)
    } else {
      destinations.append(Destination(queue: queue, results: [result]))
    }
  }

  /// - Parameters:
  ///   - group: Is entered until the handlers have run.
  ///   - owner: Gets each slot back before its handler runs.
  mutating func flush(_ group: DispatchGroup, for owner: some SlotOwner) {
    guard !destinations.isEmpty else { return }
    for destination in destinations {
      let results = destination.results
      destination.queue.async(group: group) {
        for result in results {
          owner.giveBack(result.slot)
          result.completion(result.result)
        }
      }
    }
    hops += destinations.count
    destinations.removeAll(keepingCapacity: true)
  }
}
