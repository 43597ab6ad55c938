// SPDX-License-Identifier: Apache-2.0
//
// Appends, and where they went. pwritev2(2) with RWF_APPEND and without an offset leaves the
// position of the open file behind what it wrote, which it found out under the inode's lock: so the
// answer is true whatever other threads and processes append meanwhile. The position belongs to the
// descriptor, hence the lock, which only threads that may sleep take.

internal import CKernel
internal import PlatformLibc

extension OffloadWorker where Attachment: ~Copyable {
  /// Appends for several requests of one file, by one call, unless the kernel takes only a part:
  /// then what is left is appended by the next, and has to be right behind it.
  mutating func append(_ slots: [UInt32]) {
    let table = table
    let file = table[request: slots[0]].file
    file.position.withLock { _ in
      var left = slots
      while !left.isEmpty {
        var start: Int64 = 0
        let answer = callAppend(file.descriptor, left, &start)
        if answer > 0 || answer == 0 && table[request: left[0]].length == 0 {
          left.removeFirst(divide(answer, from: start, among: left))
        } else {
          left.removeFirst(refuse(left, answer))
        }
      }
    }
  }

  private mutating func callAppend(
    _ descriptor: Int32, _ slots: [UInt32], _ start: inout Int64
  ) -> Int {
    batch.removeAll()
    for slot in slots { batch.appendVectors(of: table[request: slot]) }
    let flags = Int32(table[request: slots[0]].options.rawValue)
    return unsafe batch.withVectors { vectors, count in
      unsafe Int(ckernel_append(descriptor, vectors, Int32(count), flags, &start))
    }
  }

  /// Gives each request its part of what one call appended.
  ///
  /// - Parameter start: The offset at which the call began to write.
  /// - Returns: The number of requests that have ended.
  private func divide(_ count: Int, from start: Int64, among slots: [UInt32]) -> Int {
    var (at, left, ended) = (start, count, 0)
    for slot in slots where left > 0 || table[request: slot].length == 0 {
      let done = table[request: slot].resumeOffset
      if done == 0 { table[request: slot].offset = at }
      // Somebody else has appended between the two parts, and nothing can mend that.
      let isTorn = table[request: slot].chunkOffset != at
      let part = min(left, table[request: slot].length - done)
      (at, left) = (at + Int64(part), left - part)
      if isTorn {
        give(slot, -Int(EIO))
      } else if done + part == table[request: slot].length {
        give(slot, part)
      } else {
        table[request: slot].resumeOffset = done + part
        table[request: slot].transferred = done + part
        break
      }
      ended += 1
    }
    return ended
  }

  /// Ends the request whose turn it was when the kernel refused; all, if they were to be durable:
  /// see `Request.isDurableAppend`.
  ///
  /// - Returns: The number of requests that have ended.
  private func refuse(_ slots: [UInt32], _ answer: Int) -> Int {
    // With 0 the kernel takes no more, and does not say why.
    let answer = answer == 0 ? -Int(EIO) : answer
    let ended = table[request: slots[0]].isDurableAppend ? slots.count : 1
    for slot in slots.prefix(ended) { give(slot, answer) }
    return ended
  }
}
