// SPDX-License-Identifier: Apache-2.0
//
// The files' shares of the kernel's room, limited so that one whose requests do not complete (a
// hung device, a server that is gone) leaves room for the others: dynamic thresholds (Choudhury and
// Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). A file may have twice as many requests in
// the kernel as there is room left, and no more than the queue depth. With room for one and a half
// times the queue depth, a file that is alone has all of the depth, and eight that hang leave a
// seventeenth of the room.

struct FileShares: ~Copyable {
  private struct Share {
    /// The number of requests that hold room.
    var held = 0
    /// Requests that wait for the file's share to have room.
    var parked = SlotList()
    /// Whether the file is among `parkedFiles`.
    var isListed = false
  }

  /// The most requests of one file that may be in the kernel.
  let queueDepth: Int
  /// The most requests that may be in the kernel.
  let room: Int
  /// The number of requests that hold room.
  private(set) var held = 0
  private var shares: [Share] = []
  /// Files that have parked requests, and some that no longer have any.
  private(set) var parkedFiles: [UInt32] = []
  private(set) var parkedCount = 0

  init(queueDepth: Int) {
    self.queueDepth = queueDepth
    room = Self.room(queueDepth: queueDepth)
  }

  /// The room that a queue depth needs.
  static func room(queueDepth: Int) -> Int { queueDepth + (queueDepth + 1) / 2 }

  var isFull: Bool {
    @inline(__always) get { held >= room }
  }

  /// Whether a file may have one more request in the kernel.
  @inline(__always)
  mutating func hasRoom(for file: UInt32) -> Bool {
    if file >= shares.count { grow(to: file) }
    return shares[Int(file)].held < min(queueDepth, 2 * (room - held))
  }

  @inline(__always)
  mutating func take(for file: UInt32) {
    held += 1
    shares[Int(file)].held += 1
  }

  @inline(__always)
  mutating func give(from file: UInt32) {
    held -= 1
    shares[Int(file)].held -= 1
    assert(held >= 0 && shares[Int(file)].held >= 0)
  }

  private mutating func grow(to file: UInt32) {
    while shares.count <= file { shares.append(Share()) }
  }

  // MARK: Parked requests

  /// Whether a file has parked requests, behind which the next one has to be parked.
  @inline(__always)
  func hasParked(_ file: UInt32) -> Bool {
    parkedCount > 0 && file < shares.count && !shares[Int(file)].parked.isEmpty
  }

  /// - Parameter isFirst: Whether it was accepted before those that are parked.
  mutating func park<A: ~Copyable>(
    _ slot: UInt32, of file: UInt32, isFirst: Bool = false, in table: RequestTable<A>
  ) {
    if file >= shares.count { grow(to: file) }
    if isFirst {
      shares[Int(file)].parked.prepend(slot, in: table)
    } else {
      shares[Int(file)].parked.append(slot, in: table)
    }
    parkedCount += 1
    if !shares[Int(file)].isListed {
      shares[Int(file)].isListed = true
      parkedFiles.append(file)
    }
  }

  mutating func unpark<A: ~Copyable>(_ slot: UInt32, of file: UInt32, in table: RequestTable<A>) {
    shares[Int(file)].parked.remove(slot, in: table)
    parkedCount -= 1
  }

  /// The request of a file that has been parked for longest.
  func firstParked(of file: UInt32) -> UInt32? {
    shares[Int(file)].parked.isEmpty ? nil : shares[Int(file)].parked.first
  }

  /// Removes the files that no longer have parked requests, and moves the first of the others to
  /// the end, so that they take turns.
  mutating func rotateParkedFiles() {
    guard !parkedFiles.isEmpty else { return }
    parkedFiles.removeAll { file in
      if shares[Int(file)].parked.isEmpty { shares[Int(file)].isListed = false }
      return shares[Int(file)].parked.isEmpty
    }
    if parkedFiles.count > 1 { parkedFiles.append(parkedFiles.removeFirst()) }
  }
}
