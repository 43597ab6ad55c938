// SPDX-License-Identifier: Apache-2.0

import Glibc

/// The replies that a connection has not sent yet, in order, and how much of the first is sent.
struct Outbox {
  private var commands: [Command] = []
  /// The index of the first that is not sent yet; those before it wait to be removed together.
  private var first = 0
  private var sentOfFirst = 0

  var count: Int { commands.count - first }
  var isEmpty: Bool { count == 0 }

  @inline(__always)
  mutating func append(_ command: Command) { commands.append(command) }

  /// Collects the memory to send, as far as there are vectors for it.
  func gather(
    into vectors: UnsafeMutableBufferPointer<iovec>
  ) -> (vectors: Int, bytes: Int) {
    var elements = 0
    var bytes = 0
    func add(_ base: UnsafeMutableRawPointer, _ count: Int) {
      vectors.initializeElement(at: elements, to: iovec(iov_base: base, iov_len: count))
      elements += 1
      bytes += count
    }
    var skipped = sentOfFirst
    for command in commands[first...] {
      if skipped < command.headCount {
        if elements == vectors.count { return (elements, bytes) }
        add(command.head + skipped, command.headCount - skipped)
      }
      var position = max(0, skipped - command.headCount)
      while position < command.replyCount {
        if elements == vectors.count { return (elements, bytes) }
        let memory = command.memory(from: position, upTo: command.replyCount)
        add(memory.baseAddress!, memory.count)  // Pooled memory is never nil.
        position += memory.count
      }
      skipped = 0
    }
    return (elements, bytes)
  }

  /// Notes that the socket has taken so many bytes more.
  mutating func advance(by count: Int) { sentOfFirst += count }

  /// Removes the first command if all of its reply has been sent.
  mutating func popSent() -> Command? {
    guard first < commands.count else { return nil }
    let command = commands[first]
    let size = command.headCount + command.replyCount
    guard sentOfFirst >= size else { return nil }
    sentOfFirst -= size
    first += 1
    return command
  }

  /// Frees the places of the commands that were sent, when that is cheap.
  mutating func compact() {
    if isEmpty && first > 0 {
      commands.removeAll(keepingCapacity: true)
      first = 0
    } else if first > 256 {
      commands.removeFirst(first)
      first = 0
    }
  }

  /// Removes all commands, sent in part or not.
  mutating func removeAll() -> ArraySlice<Command> {
    defer { self = Outbox() }
    return commands[first...]
  }
}
