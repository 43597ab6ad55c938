// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Dispatch
import Glibc
import Logging
import ServerSupport
import SystemPackage

struct Serve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Serve clients (the default command).",
    discussion: """
      Prints `listening on ADDRESS` to standard output when it is ready, and logs to standard error. \
      SIGTERM, SIGINT, SIGQUIT and SIGHUP (unless it is ignored, as by nohup): accepts no more, echoes \
      what it has, and exits with 0, or with 1 when the journal's end could not be marked; a second \
      SIGTERM, SIGINT or SIGQUIT ends it at once, with 128 and the signal's number. SIGUSR1 and \
      SIGUSR2 are ignored.

      Of log lines of one kind, 5 a second are written, and the others counted. The limit of \
      descriptors is raised as far as is needed (ulimit -Hn), and caps --max-connections.

      Of a connection at most \(ByteCount(Connection.window)) are held that are not echoed, for which \
      up to \(ByteCount(Connection.window + 2 * ByteQueue.chunkSize)) of memory are taken; beyond \
      that, and while the disk falls behind, nothing is read from its socket.

      --keep-bytes and --keep-days trim the journal, segment by segment, at the start and whenever a \
      segment has been filled; with --keep-days also every hour. A segment goes if one of them says \
      so, but neither the one that is written to, nor the last one that was filled, nor one that \
      is being read.
      """)

  enum Sync: String, ExpressibleByArgument, CaseIterable {
    case batch, none
  }

  enum Defaults: ListenDefaults {
    static let port: UInt16 = 7777
  }

  @OptionGroup var listen: ListenOptions<Defaults>

  @Option(help: ArgumentHelp("The journal's directory; made if it is missing.", valueName: "dir"))
  var data = PathArgument(argument: "./echo-data")

  @Option(
    help: ArgumentHelp("The size of a segment file. (default: 64MiB)", valueName: "bytes"),
    transform: ByteCount.parse)
  var segmentSize = ByteCount(64 << 20)

  @OptionGroup var keep: RetentionOptions

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

  @Option(help: ArgumentHelp("Log statistics every so often; 0 is never.", valueName: "seconds"))
  var statsInterval = 0.0

  @Option(
    help: ArgumentHelp(
      "How long clients may take to take their last echoes after SIGTERM.", valueName: "seconds"))
  var drainTimeout = 10.0

  @OptionGroup var metrics: MetricsOptions

  @OptionGroup var logOptions: LogOptions

  /// The segments that are kept whatever the limit is.
  static let leastSegments = 3

  func validate() throws {
    try require("segment-size", segmentSize, in: 1 << 20...1 << 40, multipleOf: 4096)
    if let keep = keep.keepBytes, keep.bytes < Self.leastSegments * segmentSize.bytes {
      throw ValidationError(
        """
        --keep-bytes \(keep.exactly): \(Self.leastSegments) segments or more, which are \
        \(ByteCount(Self.leastSegments * segmentSize.bytes).exactly): the one that is written to, \
        the one before it, and the next; choose a smaller --segment-size
        """)
    }
    try require("queue-depth", queueDepth, in: 1...4096)
    try require("max-connections", maxConnections, in: 1...1_000_000)
    try require(seconds: idleTimeout, for: "idle-timeout", allowsZero: true)
    try require(seconds: statsInterval, for: "stats-interval", allowsZero: true)
    try require(seconds: drainTimeout, for: "drain-timeout", allowsZero: true)
  }

  func run() throws {
    let logger = logOptions.makeLogger("echo-to-disk")
    // A write beyond RLIMIT_FSIZE is an error, which the signal must not turn into the end.
    signal(SIGXFSZ, SIG_IGN)
    var journal = Journal.Settings(segmentSize: segmentSize.bytes, syncs: sync == .batch)
    journal.retention = keep.retention
    journal.batchSize = min(journal.batchSize, segmentSize.bytes / 4)
    let settings = Server.Settings(
      address: listen.address, metrics: metrics.address, directory: data.path, journal: journal,
      queueDepth: queueDepth,
      maxConnections: try DescriptorLimit.cap(connections: maxConnections, logger: logger),
      idleTimeout: idleTimeout > 0 ? .seconds(idleTimeout) : nil,
      statisticsInterval: statsInterval > 0 ? .seconds(statsInterval) : nil,
      drainTimeout: .seconds(drainTimeout))
    let server: Server
    do {
      server = try Server(settings, logger: logger)
    } catch {
      throw Failure("\(error)")
    }
    try Program.serve(server, logger: logger) { [address = server.address] in
      FileDescriptor.standardOutput.announce("listening on \(address)", logger: logger)
    }
  }
}
