// SPDX-License-Identifier: Apache-2.0
//
// Locks of byte ranges, for the requests on one export that must not overlap. Aligned writes
// *share* their ranges; a read-modify-write of the blocks around an unaligned write, and zeroing
// and discarding on the worker queue, are *exclusive*. Reads lock nothing: whoever reads what is
// being written gets the bytes before or after it, block by block, and what was written before is
// read whichever way it was written, which the kernel sees to.
//
// Nearly all requests share. On the fast path they only count themselves, in one atomic, and check
// whether there is an exclusive request. An exclusive request announces itself, after which nobody
// takes the fast path; it waits until those that took it are done, and then for the requests that
// it overlaps, in order of arrival. Which those are is known by an IntervalIndex.

import DispatchAIO
import Synchronization

/// The locked ranges of an export. Called from any thread.
final class RangeLocks: Sendable {
  /// A range that is locked, or waited for, as its owner knows it.
  enum Ticket: Hashable {
    /// A range that is only counted: shared, on the fast path.
    case counted
    /// A range with an entry of its own, by its number.
    case listed(UInt64)
  }

  private struct Entry {
    let range: Range<UInt64>
    let isExclusive: Bool
    var isGranted = false
    /// The entries that wait for the end of this one, and are looked at again then.
    var waiters: [UInt64] = []
    let granted: @Sendable (Ticket) -> Void
  }

  private struct State {
    /// By number, which is the order of arrival.
    var entries: [UInt64: Entry] = [:]
    var shared = IntervalIndex()
    var exclusive = IntervalIndex()
    /// The exclusive entries that wait for those that are only counted.
    var waitingForCounted: [UInt64] = []
    var lastID: UInt64 = 0
  }

  /// The number of shared ranges on the fast path.
  private let counted = Atomic<Int>(0)
  /// The number of exclusive requests that hold or wait; changed under the lock only.
  private let exclusives = Atomic<Int>(0)
  private let state = Lock(State())

  /// Locks a range.
  ///
  /// - Parameter granted: called later, on any thread, if the range cannot be locked now.
  /// - Returns: the ticket to `release`, and whether the range is locked; if not, `granted` will be
  ///   called with the ticket, unless it is withdrawn.
  @inline(__always)
  func acquire(
    _ range: Range<UInt64>, exclusive: Bool,
    granted: @autoclosure () -> (@Sendable (Ticket) -> Void)
  ) -> (ticket: Ticket, isGranted: Bool) {
    if !exclusive {
      counted.add(1, ordering: .sequentiallyConsistent)
      if exclusives.load(ordering: .sequentiallyConsistent) == 0 { return (.counted, true) }
      uncount()
    }
    return list(range, exclusive, granted())
  }

  @inline(__always)
  func release(_ ticket: Ticket) {
    switch ticket {
    case .counted: uncount()
    case .listed(let id): _ = unlist(id, evenIfGranted: true)
    }
  }

  /// Gives up a range that is waited for.
  ///
  /// - Returns: whether it is given up; if not, it has been granted: `granted` is called, and the
  ///   ticket has to be released.
  func withdraw(_ ticket: Ticket) -> Bool {
    guard case .listed(let id) = ticket else { return false }
    return unlist(id, evenIfGranted: false)
  }

  @inline(__always)
  private func uncount() {
    let (_, new) = counted.subtract(1, ordering: .sequentiallyConsistent)
    if new == 0 && exclusives.load(ordering: .sequentiallyConsistent) != 0 { countedAreDone() }
  }

  private func list(
    _ range: Range<UInt64>, _ isExclusive: Bool, _ granted: @escaping @Sendable (Ticket) -> Void
  ) -> (ticket: Ticket, isGranted: Bool) {
    state.withLock { state in
      if isExclusive {
        exclusives.add(1, ordering: .sequentiallyConsistent)
      } else if exclusives.load(ordering: .sequentiallyConsistent) == 0 {
        counted.add(1, ordering: .sequentiallyConsistent)
        return (.counted, true)
      }
      state.lastID += 1
      let id = state.lastID
      state.entries[id] = Entry(range: range, isExclusive: isExclusive, granted: granted)
      let isGranted = grant(id, &state)
      if isExclusive {
        state.exclusive.insert(range, id: id)
      } else {
        state.shared.insert(range, id: id)
      }
      return (.listed(id), isGranted)
    }
  }

  /// Grants an entry its range, or has it wait for the one thing that it is looked at again after:
  /// the latest of those that come before it, behind which most of the others are done, too.
  private func grant(_ id: UInt64, _ state: inout State) -> Bool {
    // Those that were withdrawn are in the lists of others still.
    guard let entry = state.entries[id], !entry.isGranted else { return false }
    if entry.isExclusive && counted.load(ordering: .sequentiallyConsistent) != 0 {
      state.waitingForCounted.append(id)
      return false
    }
    var blocker = state.exclusive.last(overlapping: entry.range, before: id)
    if entry.isExclusive, let other = state.shared.last(overlapping: entry.range, before: id) {
      blocker = max(blocker ?? 0, other)
    }
    if let blocker {
      state.entries[blocker]!.waiters.append(id)  // What is in an index has an entry.
      return false
    }
    state.entries[id]!.isGranted = true  // It was found above.
    return true
  }

  private func unlist(_ id: UInt64, evenIfGranted: Bool) -> Bool {
    var waiters: [(UInt64, Entry)] = []
    let isUnlisted = state.withLock { state in
      guard let entry = state.entries[id] else {
        preconditionFailure("a range was released twice")
      }
      if entry.isGranted && !evenIfGranted { return false }
      state.entries[id] = nil
      if entry.isExclusive {
        state.exclusive.remove(entry.range, id: id)
        exclusives.subtract(1, ordering: .sequentiallyConsistent)
      } else {
        state.shared.remove(entry.range, id: id)
      }
      waiters = grant(entry.waiters, &state)
      return true
    }
    for (id, entry) in waiters { entry.granted(.listed(id)) }
    return isUnlisted
  }

  private func countedAreDone() {
    let granted = state.withLock { state in
      let waiting = state.waitingForCounted
      state.waitingForCounted.removeAll(keepingCapacity: true)
      return grant(waiting, &state)
    }
    for (id, entry) in granted { entry.granted(.listed(id)) }
  }

  /// Grants those of the entries that may have their ranges now.
  private func grant(_ ids: [UInt64], _ state: inout State) -> [(UInt64, Entry)] {
    var granted: [(UInt64, Entry)] = []
    for id in ids where grant(id, &state) {
      if let entry = state.entries[id] { granted.append((id, entry)) }
    }
    return granted
  }
}
