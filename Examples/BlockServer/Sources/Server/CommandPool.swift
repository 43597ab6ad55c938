// SPDX-License-Identifier: Apache-2.0

/// The commands of a loop, which are reused, so that a request costs no allocation once the loop is
/// warm.
struct CommandPool {
  /// All commands; those in use hold their connection.
  private var all: [Command] = []
  private var unused: [Command] = []

  /// Whether no command is in use.
  var isIdle: Bool { unused.count == all.count }

  @inline(__always)
  mutating func take(for loop: ServerLoop) -> Command {
    if let command = unused.popLast() { return command }
    let command = Command(loop: loop)
    all.append(command)
    return command
  }

  @inline(__always)
  mutating func give(_ command: Command) { unused.append(command) }
}
