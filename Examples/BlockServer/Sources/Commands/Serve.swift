// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Dispatch
import Glibc
import Logging
import ServerSupport
import SystemPackage

struct Serve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Serve files and block devices (the default command).",
    discussion: """
      Prints `listening on ADDRESS` to standard output when it is ready, and logs to standard error. \
      SIGTERM, SIGINT, SIGQUIT and SIGHUP (unless it is ignored, as by nohup): accepts no more, \
      answers what it has received, makes it durable, and exits with 0, or with 1 if that failed; a \
      second SIGTERM, SIGINT or SIGQUIT ends it at once, with 128 and the signal's number. SIGUSR1 \
      and SIGUSR2 are ignored.

      Of log lines of one kind, 5 a second are written, and the others counted. The limit of \
      descriptors is raised as far as is needed (ulimit -Hn), and caps --max-connections.

      The export of the empty name is the first.

      A connection takes at most \
      \(ByteCount(MemoryBudget.small + MemoryBudget.large)) for its requests, and all together \
      --memory; beyond that, nothing is read from its socket.

      Started by systemd or a like of it (LISTEN_FDS), it serves the sockets it is given, and prints \
      nothing.
      """)

  @Argument(
    help: ArgumentHelp(
      "A file or block device, named by its base name, or NAME=PATH.", valueName: "file"),
    completion: .file())
  var files: [String]

  enum Defaults: ListenDefaults {
    static let port: UInt16 = 10809
  }

  @OptionGroup var listen: ListenOptions<Defaults>

  @Flag(help: "Serve standard input, which is a connected socket, and exit when it ends.")
  var inetd = false

  @Flag(help: "Refuse to write.")
  var readOnly = false

  @Option(help: "On how many queues, each with its own context, to spread connections.")
  var loops = 1

  @Option(help: "How many disk requests of a loop may be in flight.")
  var queueDepth = 128

  @Option(help: "How many connections there may be; more are closed at once.")
  var maxConnections = 256

  @Option(
    help: ArgumentHelp(
      "How long a client may take to choose an export, or be disconnected; 0 is for ever.",
      valueName: "seconds"))
  var handshakeLimit = 10.0

  @Option(
    help: ArgumentHelp(
      "How much memory the requests of all connections may use together; beyond that, they wait.",
      valueName: "MiB"))
  var memory = 512

  @Option(
    help: ArgumentHelp(
      """
      How long each MiB of a write's payload may take, and a client take no replies while others \
      wait for memory, before it is disconnected; 0 is for ever.
      """, valueName: "seconds"))
  var stallLimit = 30.0

  @Option(help: ArgumentHelp("Log statistics every so often; 0 is never.", valueName: "seconds"))
  var statsInterval = 0.0

  @OptionGroup var metrics: MetricsOptions

  @OptionGroup var logOptions: LogOptions

  func validate() throws {
    guard !files.isEmpty else { throw ValidationError("no FILE was given to serve") }
    try require("loops", loops, in: 1...64)
    try require("queue-depth", queueDepth, in: 1...4096)
    try require("max-connections", maxConnections, in: 1...100_000)
    try require(seconds: statsInterval, for: "stats-interval", allowsZero: true)
    try require(seconds: handshakeLimit, for: "handshake-limit", allowsZero: true)
    try require("memory", memory, in: 16...1 << 24)
    try require(seconds: stallLimit, for: "stall-limit", allowsZero: true)
    if inetd && listen.isGiven {
      throw ValidationError("--inetd: serves standard input, and listens nowhere")
    }
    _ = try namedFiles()
  }

  /// The files with the names of their exports.
  private func namedFiles() throws -> [(name: String, path: FilePath)] {
    var names: [String: FilePath] = [:]
    return try files.map { file in
      let parts = file.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      // A path may have a `=` in it, too.
      let isNamed =
        parts.count == 2 && !parts[0].contains("/")
        && RawArgument.path(file).withPlatformString { access($0, F_OK) } != 0
      let path = RawArgument.path(isNamed ? String(parts[1]) : file)
      let name: String? =
        isNamed
        ? String(validating: RawArgument.bytes(of: String(parts[0])), as: UTF8.self)
        : path.lastComponent.map { $0.withPlatformString { String(validatingCString: $0) } } ?? ""
      guard let name else {
        throw ValidationError("'\(file)': an export's name is UTF-8; choose one with NAME=PATH")
      }
      guard !path.isEmpty, !name.isEmpty else {
        throw ValidationError("'\(file)': neither a file nor NAME=PATH")
      }
      guard name.utf8.count <= NBD.longestString else {
        throw ValidationError("'\(name)': a name has \(NBD.longestString) bytes at the most")
      }
      if let other = names.updateValue(path, forKey: name) {
        throw ValidationError(
          "two exports would be named '\(name)', \(other) and \(path): use NAME=PATH for one")
      }
      return (name, path)
    }
  }

  func run() throws {
    let logger = logOptions.makeLogger("aio-nbd")
    // A write beyond RLIMIT_FSIZE is an error, which the signal must not turn into the end.
    signal(SIGXFSZ, SIG_IGN)
    var settings = Server.Settings(
      loops: loops,
      maxConnections: try DescriptorLimit.cap(
        connections: maxConnections, others: 16 * loops + 2 * files.count, logger: logger),
      statisticsInterval: statsInterval > 0 ? .seconds(statsInterval) : nil)
    settings.loop.queueDepth = queueDepth
    settings.loop.handshakeLimit = handshakeLimit > 0 ? .seconds(handshakeLimit) : nil
    settings.loop.memory = (memory << 20) / loops
    settings.loop.stallLimit = stallLimit > 0 ? .seconds(stallLimit) : nil
    let server: Server
    var connection: (Int32, String)?
    var address: String?
    do {
      let exports = try namedFiles().map {
        try Export(name: $0.name, path: $0.path, readOnly: readOnly)
      }
      var listeners: [Listener] = []
      if inetd {
        connection = (try Listener.adoptConnection(STDIN_FILENO), "standard input")
        settings.endsWhenUnused = true
      } else {
        listeners = try Listener.fromEnvironment()
        if listeners.isEmpty {
          let listener = try Listener(listen.address)
          address = listener.name
          listeners = [listener]
        }
      }
      server = try Server(
        exports: exports, listeners: listeners, connection: connection,
        metrics: try metrics.address.map { try MetricsServer($0, logger: logger) },
        settings: settings, logger: logger)
    } catch {
      throw Failure("\(error)")
    }
    try Program.serve(server, logger: logger) { [address] in
      if let address {
        FileDescriptor.standardOutput.announce("listening on \(address)", logger: logger)
      }
    }
  }
}
