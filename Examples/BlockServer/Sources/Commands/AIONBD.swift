// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import ServerSupport

@main
struct AIONBD: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "aio-nbd",
    abstract: "Serves files and block devices to NBD clients.",
    version: "1.0.0",
    subcommands: [Serve.self],
    defaultSubcommand: Serve.self)

  static func main() { Program.run(Self.self) }
}
