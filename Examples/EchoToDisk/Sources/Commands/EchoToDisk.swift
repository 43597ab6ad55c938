// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import ServerSupport
import SystemPackage

@main
struct EchoToDisk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "echo-to-disk",
    abstract: "Echoes what clients send, once it is durable on disk.",
    discussion: """
      `serve` appends whatever its clients send to a journal, and echoes it when it is durable. \
      The other commands read such a journal, and `trim` shortens it; they may be used while a server is writing it.
      """,
    version: "1.0.0",
    subcommands: [Serve.self, List.self, Replay.self, Verify.self, Trim.self],
    defaultSubcommand: Serve.self)

  static func main() { Program.run(Self.self) }
}

struct JournalArgument: ParsableArguments {
  @Argument(
    help: ArgumentHelp("The journal's directory.", valueName: "dir"), completion: .directory)
  var argument: PathArgument

  var directory: FilePath { argument.path }
}
