// SPDX-License-Identifier: Apache-2.0

import ArgumentParser

@main
struct AIOBench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "aio-bench",
    abstract: "Measures file I/O on your own disk: DispatchAIO beside what else there is.",
    discussion: "Engines: \(Engines.descriptions)",
    version: "1.0.0",
    subcommands: [
      Run.self, Compare.self, Stall.self, Thresholds.self, Neighbours.self, Wakeup.self,
      Serve.self, Plugged.self, Draw.self, CServer.self, FileServer.self, HummingbirdServer.self,
      FlyingFoxPools.self, FlyingFoxServer.self,
    ])
}
