// SPDX-License-Identifier: Apache-2.0
//
// Writes of one file that continue each other, made by one `pwritev(2)`: the kernel would take them
// one by one under the inode's lock, and wait for the disk for each that extends the file. Each
// request has its own result, also if the kernel transfers only a part, or refuses.

extension RequestTable where Attachment: ~Copyable {
  /// The most bytes of a write that is made together with others, of which there are up to
  /// `OffloadQueue.mostContinuations`.
  static var largestJoinedWrite: Int { 128 << 10 }

  /// Whether the second write begins where the first ends, so that one system call may do both.
  /// Both are in the offload queue, whose lock the caller holds.
  func continues(_ first: UInt32, _ second: UInt32) -> Bool {
    canJoin(first) && canJoin(second)
      // The options are those of the call: a durable write makes those durable that it is made
      // with, and must not be made with those of others.
      && self[request: first].options == self[request: second].options
      && self[request: first].anyRangeWrite == self[request: second].anyRangeWrite
      // At the end of the file, whatever their offsets.
      && (self[request: first].file.traits.appends || self[request: first].options.contains(.append)
        || self[request: first].chunkOffset + Int64(self[request: first].chunkLength)
          == self[request: second].chunkOffset)
  }

  /// Whether a write is a small system call that transfers all that is left of its request.
  private func canJoin(_ slot: UInt32) -> Bool {
    self[request: slot].route == .syscall && self[request: slot].verb == .write
      && self[request: slot].length > 0 && !self[request: slot].options.contains(.atomic)
      && self[request: slot].length - self[request: slot].resumeOffset
        == self[request: slot].chunkLength
      && self[request: slot].chunkLength <= Self.largestJoinedWrite
      && self[request: slot].operation.elements <= 4
  }
}

extension Operation {
  /// The number of its pieces of memory.
  var elements: Int {
    switch self {
    case .read(let memory), .write(let memory): memory.elements
    case .fsync, .fdatasync: 0
    }
  }
}

/// The division of one call's count of bytes among several writes.
enum ContiguousWrites {
  /// Divides the count of a call among the writes of a run.
  ///
  /// - Parameter lengths: The numbers of bytes of the writes, in order.
  /// - Returns: The number of writes that are whole, and the number of bytes transferred of the
  ///   next.
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
