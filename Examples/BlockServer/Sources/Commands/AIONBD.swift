// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

@main
struct AIONBD: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "aio-nbd",
    abstract: "Serves files and block devices to NBD clients.",
    version: "1.0.0",
    subcommands: [Serve.self],
    defaultSubcommand: Serve.self)
}
