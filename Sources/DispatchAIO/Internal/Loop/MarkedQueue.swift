// SPDX-License-Identifier: Apache-2.0

internal import Dispatch

/// A context's queue, with a mark by which one can ask whether one is on it.
///
/// Dispatch frees a mark by a block on a global queue. It looks after the threads of those once a
/// second, which takes a descriptor, and ends the process if there is none. So a queue of the
/// library's own keeps its mark, and is used again, unless somebody else holds it by then. The mark
/// of a caller's queue has to go with the context.
///
/// - Safety: `@unchecked Sendable` because nothing changes: `queue` is a variable so that `deinit`
///   can ask who holds it.
final class MarkedQueue: @unchecked Sendable {
  private struct Marked {
    let queue: DispatchQueue
    let mark: DispatchSpecificKey<Void>
  }

  /// The library's own that nobody has: as many as there were contexts at once, at the most.
  private static let spare = Lock<[Marked]>([])

  /// The one reference of the library's: others go through this.
  private(set) var queue: DispatchQueue
  private let mark: DispatchSpecificKey<Void>
  private let isCallers: Bool

  /// - Parameter queue: The caller's; if `nil`, one of the library's own.
  init(_ queue: DispatchQueue?) {
    isCallers = queue != nil
    if queue == nil, let marked = Self.spare.withLock({ $0.popLast() }) {
      (self.queue, mark) = (marked.queue, marked.mark)
      return
    }
    self.queue = queue ?? DispatchQueue(label: "DispatchAIO.loop")
    mark = DispatchSpecificKey()
    self.queue.setSpecific(key: mark, value: ())
  }

  deinit {
    if isCallers || !isKnownUniquelyReferenced(&queue) {
      queue.setSpecific(key: mark, value: nil)
    } else {
      Self.spare.withLock { $0.append(Marked(queue: queue, mark: mark)) }
    }
  }

  /// Whether the caller is on the queue.
  var isCurrent: Bool { DispatchQueue.getSpecific(key: mark) != nil }
}
