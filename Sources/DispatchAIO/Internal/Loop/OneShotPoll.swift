// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

/// A poll that ends with its first event.
struct OneShotPoll: Sendable {
  let fd: Int32
  let events: AIOPollEvents
  let completion: @Sendable (Result<AIOPollEvents, AIOError>) -> Void

  var subject: AIOError.Subject { .init(operation: .poll, descriptor: fd) }
}

/// The polls that wait, each in the list of its descriptor. A table that is used over and over, so
/// that a poll allocates nothing.
struct PollTable {
  /// The identity of a poll: a place in the table, and the number of its use.
  struct ID: Hashable, Sendable {
    let index: Int
    let generation: UInt32
  }

  /// The polls of one descriptor, in order.
  struct List {
    fileprivate var first = -1
    fileprivate var last = -1

    var isEmpty: Bool { first < 0 }
  }

  private struct Entry {
    var poll: OneShotPoll?
    var generation: UInt32 = 0
    /// The next of its list, or the next that is free.
    var next = -1
  }

  private var entries: [Entry] = []
  private var firstFree = -1

  mutating func append(_ poll: OneShotPoll, to list: inout List) -> ID {
    let index = firstFree < 0 ? entries.count : firstFree
    if firstFree < 0 { entries.append(Entry()) } else { firstFree = entries[index].next }
    entries[index].poll = poll
    entries[index].next = -1
    if list.last < 0 { list.first = index } else { entries[list.last].next = index }
    list.last = index
    return ID(index: index, generation: entries[index].generation)
  }

  /// The poll of an ID, if it waits.
  subscript(id: ID) -> OneShotPoll? {
    guard id.index < entries.count, entries[id.index].generation == id.generation else {
      return nil
    }
    return entries[id.index].poll
  }

  /// The events that the polls of a list wait for.
  func events(of list: List) -> UInt32 {
    var events: UInt32 = 0
    var index = list.first
    while index >= 0 {
      events |= entries[index].poll?.events.rawValue ?? 0
      index = entries[index].next
    }
    return events
  }

  /// Takes the polls for which a condition holds out of their list.
  ///
  /// - Parameter isTaken: Gets each poll, in order, with its ID.
  mutating func take(from list: inout List, where isTaken: (OneShotPoll, ID) -> Bool) {
    var (index, previous) = (list.first, -1)
    while index >= 0 {
      let next = entries[index].next
      let id = ID(index: index, generation: entries[index].generation)
      if let poll = entries[index].poll, isTaken(poll, id) {
        if previous < 0 { list.first = next } else { entries[previous].next = next }
        if next < 0 { list.last = previous }
        entries[index] = Entry(generation: id.generation &+ 1, next: firstFree)
        firstFree = index
      } else {
        previous = index
      }
      index = next
    }
  }
}

extension AIOError {
  static func cancelledPoll(_ subject: Subject) -> AIOError {
    AIOError(.cancelled, errno: .canceled, subject, .text("cancelled before it was ready"))
  }

  /// Why a descriptor cannot be polled.
  static func polling(_ fd: Int32?, _ errno: Errno) -> AIOError {
    let subject = Subject(operation: .poll, descriptor: fd)
    switch errno {
    case .canceled: return .contextClosed(subject)
    case .notPermitted:
      return AIOError(
        .unsupportedFile, errno: errno, subject,
        .text(
          """
          it is a regular file, a directory or a device that cannot be waited for, which are always \
          ready; read a file with the context's verbs
          """))
    case .fileExists:
      return AIOError(
        .exists, errno: errno, subject,
        .text("the descriptor has such a source already; cancel that one first"))
    case .noSpace:
      return AIOError(
        .descriptorLimit, errno: errno, subject,
        .text(
          """
          the user's epoll watches are used up (fs.epoll.max_user_watches); raise it, or close \
          descriptors that are not needed
          """))
    default:
      return AIOError(errno: errno.rawValue, subject)
    }
  }
}
