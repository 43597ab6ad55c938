// SPDX-License-Identifier: Apache-2.0

/// The files that a loop has open though nobody asks for them just now, because they were asked for
/// often.
///
/// What it guarantees: a file that was written to, removed, renamed or replaced since is not served
/// from here, which fstat(2) tells, once for all requests for it that are answered in one turn of
/// the loop; a path that leads elsewhere because a directory was renamed or a symbolic link was
/// replaced is followed anew within a second.
///
/// A place for each hash: a file gets it when it is asked for twice with no other in between that
/// would want the place. So a walk over many files opens each, and keeps none.
struct FileCache {
  private struct Place {
    var hash: UInt64 = 0
    var path: [UInt8] = []
    var file: ServedFile?
    /// When the path was followed.
    var opened: UInt64 = 0
    /// The turn in which the file was last found to be as it was.
    var checked = 0
  }

  /// For how long a path may be taken to lead where it led, in nanoseconds.
  private static let validity: UInt64 = 1_000_000_000

  private var places: [Place]

  /// - Parameter capacity: a power of two, or 0 for none.
  init(capacity: Int) { places = Array(repeating: Place(), count: capacity) }

  private static func hash(_ path: [UInt8]) -> UInt64 {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in path { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    return hash ^ hash >> 32
  }

  /// The file of a path, if it is here and as it was.
  ///
  /// - Parameter turn: the number of this turn, from 1; asked for only if the file is here.
  mutating func find(
    _ path: [UInt8], now: UInt64, turn: @autoclosure () -> Int
  ) -> ServedFile? {
    guard !places.isEmpty else { return nil }
    let hash = Self.hash(path)
    let index = Int(hash & UInt64(places.count - 1))
    guard places[index].hash == hash, let file = places[index].file, places[index].path == path
    else { return nil }
    if now &- places[index].opened < Self.validity {
      let turn = turn()
      if places[index].checked == turn || file.isUnchanged {
        places[index].checked = turn
        return file
      }
    }
    places[index].file = nil
    return nil
  }

  /// A file was opened.
  mutating func opened(_ path: [UInt8], _ file: ServedFile, now: UInt64) {
    guard !places.isEmpty, !file.varies else { return }
    let hash = Self.hash(path)
    let index = Int(hash & UInt64(places.count - 1))
    guard places[index].hash == hash else {
      // The next time, perhaps.
      places[index].hash = hash
      places[index].file = nil
      return
    }
    places[index].path = path
    places[index].file = file
    places[index].opened = now
    places[index].checked = 0
  }

  /// Closes what was not asked for within a second.
  mutating func removeStale(now: UInt64) {
    for index in places.indices where now &- places[index].opened > Self.validity {
      places[index].file = nil
    }
  }

  mutating func removeAll() {
    for index in places.indices { places[index] = Place() }
  }
}
