// SPDX-License-Identifier: Apache-2.0

/// The requests that wait for room in the kernel, in order: a list through the slots of the table,
/// so that it needs no memory and a cancelled request leaves it from the middle at once.
struct PendingQueue {
  static var end: UInt32 { .max }

  private(set) var first = PendingQueue.end
  private var last = PendingQueue.end
  private(set) var count = 0

  @inline(__always)
  func after<Attachment>(_ slot: UInt32, in table: RequestTable<Attachment>) -> UInt32 {
    table[slot].next
  }

  @inline(__always)
  mutating func append<Attachment>(_ slot: UInt32, in table: RequestTable<Attachment>) {
    insert(slot, between: last, and: PendingQueue.end, in: table)
  }

  @inline(__always)
  mutating func prepend<Attachment>(_ slot: UInt32, in table: RequestTable<Attachment>) {
    insert(slot, between: PendingQueue.end, and: first, in: table)
  }

  @inline(__always)
  mutating func remove<Attachment>(_ slot: UInt32, in table: RequestTable<Attachment>) {
    let (before, after) = (table[slot].previous, table[slot].next)
    if before == PendingQueue.end { first = after } else { table[before].next = after }
    if after == PendingQueue.end { last = before } else { table[after].previous = before }
    count -= 1
  }

  @inline(__always)
  private mutating func insert<Attachment>(
    _ slot: UInt32, between before: UInt32, and after: UInt32, in table: RequestTable<Attachment>
  ) {
    table[slot].previous = before
    table[slot].next = after
    if before == PendingQueue.end { first = slot } else { table[before].next = slot }
    if after == PendingQueue.end { last = slot } else { table[after].previous = slot }
    count += 1
  }
}
