// SPDX-License-Identifier: Apache-2.0
//
// The directories that files were opened in, so that the next file in them is opened at once: to
// look first where a path leads (O_PATH, which no file system and no device notices) takes three
// system calls more. What is opened at once must not be a file that a process or another machine
// serves, which might let the caller wait, nor a pipe or a device, which would notice.

internal import CKernel

/// The directories in which regular files of a local file system were found just before. All of it
/// is a hint.
enum KnownDirectories {
  /// What is known of a directory.
  enum Knowledge: Sendable, Equatable {
    /// Nothing, or not since `validity`.
    case none
    /// Its files are regular ones of this mount, which is local.
    case local(mount: UInt64)
    /// Something else was found among its files: each is looked at before it is opened.
    case mixed
  }

  private struct Entry {
    var key: UInt64 = 0
    var knowledge = Knowledge.none
    var seen: UInt64 = 0
  }

  /// For how long a directory is taken to be where it was, in nanoseconds: another file system may
  /// be mounted there, or a symbolic link on the way be replaced.
  static let validity: UInt64 = 1_000_000_000
  private static let capacity = 1024
  private static let entries = Lock<[Entry]>(Array(repeating: Entry(), count: capacity))

  /// The key of a path's directory.
  ///
  /// - Parameters:
  ///   - number: The number of the directory that the path is relative to; 0 for the working
  ///     directory.
  ///   - parent: The bytes of the path before its last component.
  static func key(_ number: UInt64, _ parent: UnsafeRawBufferPointer) -> UInt64 {
    var hasher = Hasher()
    hasher.combine(number)
    // The bytes are read during the call.
    unsafe hasher.combine(bytes: parent)
    return UInt64(bitPattern: Int64(hasher.finalize()))
  }

  /// What is known, and for how long it has been, in nanoseconds.
  struct Recent: Sendable {
    var knowledge = Knowledge.none
    var age: UInt64 = 0
  }

  static func knowledge(of key: UInt64) -> Recent {
    let now = ckernel_monotonic_nanoseconds()
    return entries.withLock { entries in
      let entry = entries[Int(key % UInt64(capacity))]
      guard entry.key == key else { return Recent() }
      let age = now > entry.seen ? now - entry.seen : 0
      if entry.knowledge != .mixed, age > validity { return Recent() }
      return Recent(knowledge: entry.knowledge, age: age)
    }
  }

  /// Learns of a directory what a file in it has just shown.
  ///
  /// - Parameter before: What was known: if it is the same, it is written down anew only now and
  ///   then.
  static func learn(_ key: UInt64, _ knowledge: Knowledge, before: Recent = Recent()) {
    if before.knowledge == knowledge, before.age < validity / 4 { return }
    let now = ckernel_monotonic_nanoseconds()
    entries.withLock { entries in
      let index = Int(key % UInt64(capacity))
      if entries[index].key == key, entries[index].knowledge == .mixed { return }
      entries[index] = Entry(key: key, knowledge: knowledge, seen: now)
    }
  }
}
