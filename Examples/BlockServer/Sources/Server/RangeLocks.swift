// SPDX-License-Identifier: Apache-2.0
//
// Locks of byte ranges, for the requests on one export that must not overlap. Reads and aligned
// writes *share* their ranges; a read-modify-write of the blocks around an unaligned write, and
// zeroing and discarding on the worker queue, are *exclusive*.
//
// Nearly all requests share. On the fast path they only count themselves, in one atomic, and check
// whether there is an exclusive request. An exclusive request announces itself, after which nobody
// takes the fast path; it waits until those that took it are done, and then for the requests that
// it overlaps, in order of arrival.

import DispatchAIO
import Synchronization

/// The locked ranges of an export. Called from any thread.
final class RangeLocks: Sendable {
  /// A locked range, as its holder knows it.
  enum Ticket: Equatable {
    /// A range that is only counted: shared, on the fast path.
    case counted
    /// A range with an entry of its own, by its number.
    case listed(UInt64)
  }

  private struct Entry {
    let id: UInt64
    let range: Range<UInt64>
    let isExclusive: Bool
    var isGranted = false
    let granted: @Sendable (Ticket) -> Void
  }

  private struct State {
    /// The entries, in order of arrival.
    var entries: [Entry] = []
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
  /// - Returns: the ticket to `release`; `nil` if `granted` will be called with it.
  @inline(__always)
  func acquire(
    _ range: Range<UInt64>, exclusive: Bool,
    granted: @autoclosure () -> (@Sendable (Ticket) -> Void)
  ) -> Ticket? {
    if !exclusive {
      counted.add(1, ordering: .sequentiallyConsistent)
      if exclusives.load(ordering: .sequentiallyConsistent) == 0 { return .counted }
      uncount()
    }
    return list(range, exclusive, granted())
  }

  @inline(__always)
  func release(_ ticket: Ticket) {
    switch ticket {
    case .counted: uncount()
    case .listed(let id): unlist(id)
    }
  }

  @inline(__always)
  private func uncount() {
    let (_, new) = counted.subtract(1, ordering: .sequentiallyConsistent)
    if new == 0 && exclusives.load(ordering: .sequentiallyConsistent) != 0 { grant() }
  }

  private func list(
    _ range: Range<UInt64>, _ isExclusive: Bool, _ granted: @escaping @Sendable (Ticket) -> Void
  ) -> Ticket? {
    state.withLock { state in
      if isExclusive {
        exclusives.add(1, ordering: .sequentiallyConsistent)
      } else if exclusives.load(ordering: .sequentiallyConsistent) == 0 {
        counted.add(1, ordering: .sequentiallyConsistent)
        return .counted
      }
      state.lastID += 1
      var entry = Entry(
        id: state.lastID, range: range, isExclusive: isExclusive, granted: granted)
      entry.isGranted = mayHave(entry, after: state.entries[...])
      state.entries.append(entry)
      return entry.isGranted ? .listed(entry.id) : nil
    }
  }

  private func mayHave(_ entry: Entry, after earlier: ArraySlice<Entry>) -> Bool {
    if entry.isExclusive && counted.load(ordering: .sequentiallyConsistent) != 0 { return false }
    return !earlier.contains {
      (entry.isExclusive || $0.isExclusive) && $0.range.overlaps(entry.range)
    }
  }

  private func unlist(_ id: UInt64) {
    state.withLock { state in
      guard let index = state.entries.firstIndex(where: { $0.id == id }) else {
        preconditionFailure("a range was released twice")
      }
      if state.entries.remove(at: index).isExclusive {
        exclusives.subtract(1, ordering: .sequentiallyConsistent)
      }
    }
    grant()
  }

  /// Grants the ranges that waiting requests may have now.
  private func grant() {
    let granted = state.withLock { state in
      var granted: [Entry] = []
      for index in state.entries.indices where !state.entries[index].isGranted {
        if mayHave(state.entries[index], after: state.entries[..<index]) {
          state.entries[index].isGranted = true
          granted.append(state.entries[index])
        }
      }
      return granted
    }
    for entry in granted { entry.granted(.listed(entry.id)) }
  }
}
