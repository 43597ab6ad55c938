// SPDX-License-Identifier: Apache-2.0
//
// Files that stay open between requests. It saves opening and closing them, and what the library
// learns about a file's caching, and its second descriptor for direct reads, are there for the next
// request.

#if Hummingbird
internal import Dispatch
internal import DispatchAIO
internal import HTTPTypes
internal import NIOConcurrencyHelpers

/// The files that were asked for often of late, open.
///
/// A file that was written to, removed, renamed or replaced since is not taken from here, which
/// `statx(2)` tells at each request; a path that leads elsewhere because a directory was renamed,
/// or a symbolic link replaced, is followed anew within a second.
///
/// There is a place for each hash: a file gets it when it is asked for twice with no other in
/// between that would want the place. So a walk over many files opens each, and keeps none. What
/// was not opened again within a second is closed.
final class OpenFiles: Sendable {
  private struct Place {
    var hash = 0
    var path = ""
    var file: AIOFile?
    /// The header fields of an answer with the file, as it is; `nil` if nobody has made them.
    var fields: HTTPFields?
    /// When the path was followed.
    var opened: UInt64 = 0
  }

  private struct State {
    var places: [Place]
    /// Whether a block is under way that closes what is stale.
    var isSweeping = false
  }

  /// For how long a path is taken to lead where it led, in nanoseconds.
  private static let validity: UInt64 = 1_000_000_000

  private let state: NIOLockedValueBox<State>
  private let sweeper = DispatchQueue(label: "DispatchAIO.hummingbird.files")

  /// - Parameter capacity: The most files to keep open; 1 or more.
  init(capacity: Int) {
    state = NIOLockedValueBox(State(places: Array(repeating: Place(), count: capacity)))
  }

  /// The file of a path, if it is open and as it was, and what `setFields` has set.
  func find(_ path: String) -> (file: AIOFile, fields: HTTPFields?)? {
    let hash = path.hashValue
    let now = DispatchTime.now().uptimeNanoseconds
    let found = state.withLockedValue { state -> (file: AIOFile, fields: HTTPFields?)? in
      let place = state.places[Self.index(hash, state)]
      guard place.hash == hash, place.path == path, now &- place.opened < Self.validity
      else { return nil }
      return place.file.map { ($0, place.fields) }
    }
    guard let found, found.file.isUnchanged else { return nil }
    return found
  }

  /// Keeps the header fields of an answer with a file for as long as the file is kept.
  func setFields(_ fields: HTTPFields, of file: AIOFile, _ path: String) {
    let hash = path.hashValue
    state.withLockedValue { state in
      let index = Self.index(hash, state)
      if state.places[index].file === file { state.places[index].fields = fields }
    }
  }

  /// A file was opened.
  func opened(_ path: String, _ file: AIOFile) {
    let hash = path.hashValue
    let now = DispatchTime.now().uptimeNanoseconds
    // What had the place is closed after the lock is released.
    let (_, sweeps) = state.withLockedValue { state -> (AIOFile?, Bool) in
      let index = Self.index(hash, state)
      let before = state.places[index].file
      guard state.places[index].hash == hash else {
        // The next time, perhaps.
        state.places[index] = Place(hash: hash)
        return (before, false)
      }
      state.places[index] = Place(hash: hash, path: path, file: file, opened: now)
      defer { state.isSweeping = true }
      return (before, !state.isSweeping)
    }
    if sweeps { sweepLater() }
  }

  private static func index(_ hash: Int, _ state: State) -> Int {
    Int(UInt(bitPattern: hash) % UInt(state.places.count))
  }

  private func sweepLater() {
    sweeper.asyncAfter(deadline: .now() + .seconds(1)) { [weak self] in
      self?.sweep()
    }
  }

  /// Closes what is stale, and does so again in a second while there is something.
  private func sweep() {
    let now = DispatchTime.now().uptimeNanoseconds
    let (_, continues) = state.withLockedValue { state -> ([AIOFile], Bool) in
      var stale: [AIOFile] = []
      var isEmpty = true
      for index in state.places.indices {
        guard let file = state.places[index].file else { continue }
        if now &- state.places[index].opened >= Self.validity {
          stale.append(file)
          state.places[index].file = nil
          state.places[index].fields = nil
        } else {
          isEmpty = false
        }
      }
      state.isSweeping = !isEmpty
      return (stale, !isEmpty)
    }
    if continues { sweepLater() }
  }
}
#endif
