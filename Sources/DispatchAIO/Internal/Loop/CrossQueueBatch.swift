// SPDX-License-Identifier: Apache-2.0

internal import Dispatch

/// Where the result of a request goes.
struct Delivery: Sendable {
  let completion: AIOCompletion
  /// `nil`: the loop's own queue, where it is called in place.
  let queue: DispatchQueue?
}

/// Whose slots they are.
protocol SlotOwner: AnyObject, Sendable {
  /// Takes a slot back whose request is over. From any thread.
  func giveBack(_ slot: UInt32)
}

/// The completions of one turn whose handlers run on other queues than the loop's: one block for
/// each queue. A request's slot counts as in use until its handler begins, so that a queue that
/// does not keep up is felt by whoever makes requests (`.full`), and not by the memory.
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

  /// Few queues, so that looking through them beats hashing: no more than one turn has completions.
  private var destinations: [Destination] = []
  /// How many blocks there have been.
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
  ///   - group: entered until the handlers have run.
  ///   - owner: gets the slots back, each before its handler runs.
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
