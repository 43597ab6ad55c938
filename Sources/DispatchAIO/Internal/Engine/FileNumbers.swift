// SPDX-License-Identifier: Apache-2.0

/// Small numbers for open files, unique among those that are open, so that what an engine and an
/// offload pool count for each file lies in an array.
enum FileNumbers {
  private struct State {
    var free: [UInt32] = []
    var next: UInt32 = 0
  }

  private static let state = Lock(State())

  static func take() -> UInt32 {
    state.withLock { state in
      if let number = state.free.popLast() { return number }
      defer { state.next += 1 }
      return state.next
    }
  }

  /// Gives a number back that nobody uses any more.
  static func give(_ number: UInt32) {
    state.withLock { $0.free.append(number) }
  }
}
