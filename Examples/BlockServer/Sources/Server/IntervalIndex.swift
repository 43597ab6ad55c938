// SPDX-License-Identifier: Apache-2.0

/// An index of numbered ranges that may overlap: a treap by lower bound, in which each subtree
/// knows how far it reaches and which numbers it has. Adding, removing and most searches take the
/// logarithm of the number of ranges.
struct IntervalIndex {
  private struct Node {
    var range: Range<UInt64>
    var id: UInt64
    var left: Int32 = -1
    var right: Int32 = -1
    // Of the node and all below it.
    var end: UInt64
    var firstID: UInt64
    var lastID: UInt64

    init(_ range: Range<UInt64>, _ id: UInt64) {
      (self.range, self.id) = (range, id)
      (end, firstID, lastID) = (range.upperBound, id, id)
    }

    /// The heap's order: as good as random, since it mixes a number that counts up.
    var priority: UInt64 {
      var mixed = id &* 0x9e37_79b9_7f4a_7c15
      mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
      return mixed ^ (mixed >> 31)
    }

    mutating func include(_ child: Node) {
      end = max(end, child.end)
      firstID = min(firstID, child.firstID)
      lastID = max(lastID, child.lastID)
    }

    func isBefore(_ lowerBound: UInt64, _ other: UInt64) -> Bool {
      (range.lowerBound, id) < (lowerBound, other)
    }
  }

  private var nodes: [Node] = []
  private var unused: [Int32] = []
  private var root: Int32 = -1

  /// Adds a range.
  ///
  /// - Parameter id: its number, 1 or more, which no other range has.
  mutating func insert(_ range: Range<UInt64>, id: UInt64) {
    let new: Int32
    if let index = unused.popLast() {
      nodes[Int(index)] = Node(range, id)
      new = index
    } else {
      new = Int32(nodes.count)
      nodes.append(Node(range, id))
    }
    let (before, after) = split(root, range.lowerBound, id)
    root = merge(merge(before, new), after)
  }

  /// Removes a range that was added.
  mutating func remove(_ range: Range<UInt64>, id: UInt64) {
    root = removing(root, range.lowerBound, id)
  }

  /// The greatest number below `id` of a range that overlaps `range`; `nil` if there is none.
  func last(overlapping range: Range<UInt64>, before id: UInt64) -> UInt64? {
    var best: UInt64 = 0
    search(root, range, id, &best)
    return best == 0 ? nil : best
  }

  private func search(
    _ index: Int32, _ range: Range<UInt64>, _ id: UInt64, _ best: inout UInt64
  ) {
    guard index >= 0 else { return }
    let node = nodes[Int(index)]
    guard node.end > range.lowerBound && node.firstID < id && node.lastID > best else { return }
    if node.id < id && node.id > best && node.range.overlaps(range) { best = node.id }
    // All to the right begin where this one does, or later.
    let right = node.range.lowerBound < range.upperBound ? node.right : -1
    if lastID(node.left) > lastID(right) {
      search(node.left, range, id, &best)
      search(right, range, id, &best)
    } else {
      search(right, range, id, &best)
      search(node.left, range, id, &best)
    }
  }

  // MARK: The treap

  private func lastID(_ index: Int32) -> UInt64 { index < 0 ? 0 : nodes[Int(index)].lastID }

  /// Makes a node's summary that of its children and itself.
  private mutating func update(_ index: Int32) {
    var node = nodes[Int(index)]
    (node.end, node.firstID, node.lastID) = (node.range.upperBound, node.id, node.id)
    if node.left >= 0 { node.include(nodes[Int(node.left)]) }
    if node.right >= 0 { node.include(nodes[Int(node.right)]) }
    nodes[Int(index)] = node
  }

  /// The nodes before a place, and those after it.
  private mutating func split(
    _ index: Int32, _ lowerBound: UInt64, _ id: UInt64
  ) -> (before: Int32, after: Int32) {
    guard index >= 0 else { return (-1, -1) }
    if nodes[Int(index)].isBefore(lowerBound, id) {
      let (before, after) = split(nodes[Int(index)].right, lowerBound, id)
      nodes[Int(index)].right = before
      update(index)
      return (index, after)
    }
    let (before, after) = split(nodes[Int(index)].left, lowerBound, id)
    nodes[Int(index)].left = after
    update(index)
    return (before, index)
  }

  /// Two treaps as one, the nodes of which are all in order.
  private mutating func merge(_ before: Int32, _ after: Int32) -> Int32 {
    if before < 0 { return after }
    if after < 0 { return before }
    if nodes[Int(before)].priority > nodes[Int(after)].priority {
      nodes[Int(before)].right = merge(nodes[Int(before)].right, after)
      update(before)
      return before
    }
    nodes[Int(after)].left = merge(before, nodes[Int(after)].left)
    update(after)
    return after
  }

  private mutating func removing(_ index: Int32, _ lowerBound: UInt64, _ id: UInt64) -> Int32 {
    precondition(index >= 0, "a range is removed that was not added")
    let node = nodes[Int(index)]
    if node.id == id {
      unused.append(index)
      return merge(node.left, node.right)
    }
    if node.isBefore(lowerBound, id) {
      nodes[Int(index)].right = removing(node.right, lowerBound, id)
    } else {
      nodes[Int(index)].left = removing(node.left, lowerBound, id)
    }
    update(index)
    return index
  }
}
