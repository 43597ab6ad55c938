// SPDX-License-Identifier: Apache-2.0

internal import Dispatch

/// Where the result of a request goes.
struct Delivery: Sendable {
  let completion: AIOCompletion
  /// `nil`: the loop's own queue, where it is called in place.
  let queue: DispatchQueue?
}

/// The completions of one turn that go to other queues than the loop's: one hop per queue.
struct Departures {
  private struct Departure {
    let queue: DispatchQueue
    var results: [(completion: AIOCompletion, result: Result<Int, AIOError>)]
  }

  /// Few queues, so that looking through them beats hashing.
  private var departures: [Departure] = []
  /// How many hops there have been.
  private(set) var sent = 0

  /// How many queues `send` will hop to.
  var hops: Int { departures.count }

  mutating func add(
    _ completion: @escaping AIOCompletion, _ result: Result<Int, AIOError>, to queue: DispatchQueue
  ) {
    if let index = departures.firstIndex(where: { $0.queue === queue }) {
      departures[index].results.append((completion, result))
    } else {
      departures.append(Departure(queue: queue, results: [(completion, result)]))
    }
  }

  /// - Parameter group: entered until the handlers have run.
  mutating func send(_ group: DispatchGroup) {
    guard !departures.isEmpty else { return }
    for departure in departures {
      let results = departure.results
      departure.queue.async(group: group) {
        for (completion, result) in results { completion(result) }
      }
    }
    sent += departures.count
    departures.removeAll(keepingCapacity: true)
  }
}
