// SPDX-License-Identifier: Apache-2.0

/// A first-in, first-out list of slots, linked through the table: it needs no memory of its own,
/// and a slot leaves it from the middle in constant time. A slot is in one list at most.
struct SlotList {
  static var end: UInt32 { .max }

  private(set) var first = SlotList.end
  private var last = SlotList.end
  private(set) var count = 0

  var isEmpty: Bool { count == 0 }

  @inline(__always)
  mutating func append<Attachment: ~Copyable>(_ slot: UInt32, in table: RequestTable<Attachment>) {
    insert(slot, between: last, and: SlotList.end, in: table)
  }

  @inline(__always)
  mutating func prepend<Attachment: ~Copyable>(_ slot: UInt32, in table: RequestTable<Attachment>) {
    insert(slot, between: SlotList.end, and: first, in: table)
  }

  @inline(__always)
  mutating func remove<Attachment: ~Copyable>(_ slot: UInt32, in table: RequestTable<Attachment>) {
    let (before, after) = (table[slot].previous, table[slot].next)
    if before == SlotList.end { first = after } else { table[before].next = after }
    if after == SlotList.end { last = before } else { table[after].previous = before }
    count -= 1
  }

  @inline(__always)
  mutating func popFirst<Attachment: ~Copyable>(in table: RequestTable<Attachment>) -> UInt32? {
    guard first != SlotList.end else { return nil }
    let slot = first
    remove(slot, in: table)
    return slot
  }

  @inline(__always)
  private mutating func insert<Attachment: ~Copyable>(
    _ slot: UInt32, between before: UInt32, and after: UInt32, in table: RequestTable<Attachment>
  ) {
    table[slot].previous = before
    table[slot].next = after
    if before == SlotList.end { first = slot } else { table[before].next = slot }
    if after == SlotList.end { last = slot } else { table[after].previous = slot }
    count += 1
  }
}
