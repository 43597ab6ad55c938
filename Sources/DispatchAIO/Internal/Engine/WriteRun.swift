// SPDX-License-Identifier: Apache-2.0
//
// Writes of one file that continue each other, made by one `pwritev(2)`: the kernel would take them
// one by one under the inode's lock, and wait for the disk for each that extends the file. Each
// request has its own result, also when the kernel takes a part of all, or refuses.

extension RequestTable {
  /// The most bytes that one call writes for several requests.
  static var longestRun: Int { 1 << 20 }

  /// Whether the write in one slot goes on where the write in another ends, so that one system call
  /// may do both. Both wait in the offload queue, whose lock the caller has.
  func continues(_ first: UInt32, _ second: UInt32) -> Bool {
    canJoin(first) && canJoin(second)
      // With O_APPEND, wherever they say.
      && (self[request: first].file.traits.appends
        || self[request: first].chunkOffset + Int64(self[request: first].chunkLength)
          == self[request: second].chunkOffset)
  }

  /// Whether a write is whole, small, and a system call.
  private func canJoin(_ slot: UInt32) -> Bool {
    self[request: slot].route == .syscall && self[request: slot].verb == .write
      && self[request: slot].length > 0
      && self[request: slot].length - self[request: slot].resumeOffset
        == self[request: slot].chunkLength
      && self[request: slot].chunkLength <= Self.longestRun / 8
      && self[request: slot].operation.elements <= 4
  }
}

extension Operation {
  /// How many pieces of memory it has.
  var elements: Int {
    switch self {
    case .read(let memory), .write(let memory): memory.elements
    case .fsync, .fdatasync: 0
    }
  }
}

/// What one call's count of bytes means for each of several writes.
enum WriteRun {
  /// How far a call that moved `count` bytes got in a run of writes.
  ///
  /// - Parameter lengths: of the writes, in order.
  /// - Returns: how many writes are whole, and how many bytes of the next were moved.
  static func split(_ count: Int, _ lengths: some Sequence<Int>) -> (whole: Int, rest: Int) {
    var left = count
    var whole = 0
    for length in lengths {
      guard left >= length else { break }
      left -= length
      whole += 1
    }
    return (whole, left)
  }
}
