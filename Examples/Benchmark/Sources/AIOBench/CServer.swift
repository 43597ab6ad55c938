// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CServers
import Foundation

/// The plain server in C, as a process of its own.
struct CServer: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "c-server", abstract: "The plain server in C that `serve` compares with.",
    shouldDisplay: false)

  @Option(help: ArgumentHelp("Where to make its file; it is left there.", valueName: "path"))
  var directory: String

  @Option(help: ArgumentHelp("The size of a message.", valueName: "bytes"))
  var size = Size(4096)

  @Option(help: ArgumentHelp("The size of the file.", valueName: "bytes"))
  var fileSize = Size(256 << 20)

  func run() throws {
    let path = "\(directory)/c-server.data"
    let error = cservers_serve(path, UInt64(fileSize.bytes), UInt32(size.bytes))
    throw BenchError("c-server: \(path): \(String(cString: strerror(error)))")
  }
}
