// SPDX-License-Identifier: Apache-2.0

/// Small numbers for open files, unique among those that are open, so that the counts that an
/// engine and an offload pool keep for each file are in an array.
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

  /// Returns a number whose file is no longer open.
  static func give(_ number: UInt32) {
    state.withLock { $0.free.append(number) }
  }
}
