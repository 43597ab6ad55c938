// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport
import SystemPackage

struct Serve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Serve clients (the default command).",
    discussion: """
      Prints `listening on ADDRESS` to standard output when it is ready, and logs to standard error. \
      SIGTERM and SIGINT: accepts no more, echoes what it has, and exits with 0; a second one does \
      not wait for slow clients.

      A connection takes at most \(ByteCount(Connection.window)) of memory; beyond that, and while \
      the disk falls behind, nothing is read from its socket.
      """)

  enum Sync: String, ExpressibleByArgument, CaseIterable {
    case batch, none
  }

  @Option(help: "Where to listen. (default: 127.0.0.1)")
  var host: String?

  @Option(help: "The port; 0 picks a free one. (default: 7777)")
  var port: UInt16?

  @Option(help: ArgumentHelp("Listen on a Unix socket instead.", valueName: "path"))
  var unix: String?

  @Option(help: ArgumentHelp("The journal's directory; made if it is missing.", valueName: "dir"))
  var data = "./echo-data"

  @Option(help: ArgumentHelp("The size of a segment file.", valueName: "bytes"))
  var segmentSize = ByteCount(64 << 20)

  @Option(help: "How many disk requests may be in flight.")
  var queueDepth = 64

  @Option(help: "How many connections there may be; more are closed at once.")
  var maxConnections = 1024

  @Option(
    help: ArgumentHelp("Close a connection idle for so long; 0 is never.", valueName: "seconds"))
  var idleTimeout = 0.0

  @Option(
    help: ArgumentHelp(
      """
      batch: every batch of appends is written synchronously (O_DSYNC): it is durable before \
      anything of it is echoed. none: echo what has been written; a power failure may lose it.
      """))
  var sync = Sync.batch

  @Option(
    help: ArgumentHelp(
      """
      After something has happened, look for what comes next for so long, rather than wait to be \
      woken: faster, for more processor time. Only with up to 16 connections, and never while idle. \
      0 is never.
      """, valueName: "microseconds"))
  var poll = 100

  @Option(help: ArgumentHelp("Log statistics every so often; 0 is never.", valueName: "seconds"))
  var statsInterval = 0.0

  @Option(
    help: ArgumentHelp(
      "How long clients may take to take their last echoes after SIGTERM.", valueName: "seconds"))
  var drainTimeout = 10.0

  @OptionGroup var logOptions: LogOptions

  static let smallestSegment = 1 << 20

  func validate() throws {
    if unix != nil && (host != nil || port != nil) {
      throw ValidationError("--unix \(unix ?? ""): either that, or --host and --port")
    }
    guard segmentSize.bytes >= Self.smallestSegment, segmentSize.bytes <= 1 << 40 else {
      throw ValidationError(
        "--segment-size \(segmentSize): a segment has 1MiB to 1TiB")
    }
    guard segmentSize.bytes % 4096 == 0 else {
      throw ValidationError("--segment-size \(segmentSize.bytes): not a multiple of 4096")
    }
    guard (1...4096).contains(queueDepth) else {
      throw ValidationError("--queue-depth \(queueDepth): 1 to 4096")
    }
    guard (1...1_000_000).contains(maxConnections) else {
      throw ValidationError("--max-connections \(maxConnections): 1 to 1000000")
    }
    guard (0...1000).contains(poll) else {
      throw ValidationError("--poll \(poll): microseconds, 0 to 1000")
    }
    for (name, seconds) in [
      ("idle-timeout", idleTimeout), ("stats-interval", statsInterval),
      ("drain-timeout", drainTimeout),
    ] where !(seconds >= 0 && seconds <= 1e9) {
      throw ValidationError("--\(name) \(seconds): seconds, 0 or more")
    }
  }

  func run() throws {
    let logger = logOptions.makeLogger("echo-to-disk")
    // A write beyond RLIMIT_FSIZE is an error, and no reason to die.
    signal(SIGXFSZ, SIG_IGN)
    var journal = Journal.Settings(segmentSize: segmentSize.bytes, syncs: sync == .batch)
    journal.batchSize = min(journal.batchSize, segmentSize.bytes / 4)
    let settings = Server.Settings(
      address: unix.map { .unix(path: $0) }
        ?? .tcp(host: host ?? "127.0.0.1", port: port ?? 7777),
      directory: FilePath(data), journal: journal, queueDepth: queueDepth,
      maxConnections: maxConnections, idleTimeout: idleTimeout > 0 ? .seconds(idleTimeout) : nil,
      statisticsInterval: statsInterval > 0 ? .seconds(statsInterval) : nil,
      polling: .microseconds(poll),
      drainTimeout: .seconds(drainTimeout))
    let server: Server
    do {
      server = try Server(settings, logger: logger)
    } catch {
      throw Failure("\(error)")
    }
    try server.start(
      ready: { name in
        // At once, also into a pipe.
        FileDescriptor.standardOutput.write(line: "listening on \(name)")
      },
      exit: { Glibc.exit($0) })
    dispatchMain()
  }
}

extension FileDescriptor {
  func write(line: String) {
    _ = try? writeAll((line + "\n").utf8)
  }
}
