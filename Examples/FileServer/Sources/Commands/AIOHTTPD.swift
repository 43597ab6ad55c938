// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CServedFiles
import Dispatch
import Glibc
import Logging
import ServerSupport
import SystemPackage

extension Caching: ExpressibleByArgument {}

@main
struct AIOHTTPD: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "aio-httpd",
    abstract: "Serves the files of a directory over HTTP/1.1.",
    discussion: """
      Prints `listening on ADDRESS` to standard output when it is ready, and logs to standard error. \
      SIGTERM, SIGINT, SIGQUIT and SIGHUP (unless it is ignored, as by nohup): accepts no more, \
      answers what it has received, and exits with 0; a second SIGTERM, SIGINT or SIGQUIT ends it at \
      once, with 128 and the signal's number. The access log is opened once: rotate it by copying \
      (copytruncate).

      Nothing outside of the directory is served, whatever a path or a symbolic link says, and nothing \
      whose name begins with a dot, but for /.well-known.

      Started by systemd or a like of it (LISTEN_FDS), it serves the sockets it is given, and prints \
      nothing.
      """,
    version: "1.0.0")

  enum Defaults: ListenDefaults {
    static let port: UInt16 = 8080
  }

  @Argument(help: "The directory to serve.", completion: .directory)
  var directory: PathArgument

  @OptionGroup var listen: ListenOptions<Defaults>

  @Option(help: "On how many queues, each with its own context, to spread connections.")
  var loops = 1

  @Option(
    help: ArgumentHelp(
      """
      How files are read. automatic: what the page cache has from there, the rest from the disk \
      past it. buffered: through the page cache. direct: past it, always from the disk.
      """, valueName: "way"))
  var caching = Caching.automatic

  @Flag(help: "Take uploads (PUT), each durable before it is answered.")
  var writable = false

  @Option(
    help: ArgumentHelp("The most that an upload may have. (default: 1GiB)", valueName: "bytes"),
    transform: ByteCount.parse)
  var maxUpload = ByteCount(1 << 30)

  @Flag(
    inversion: .prefixedNo, help: "List directories that have no index.html.")
  var listing = true

  @Flag(
    inversion: .prefixedNo,
    help: """
      Send FILE.br, FILE.zst or FILE.gz in place of a text FILE that is not newer, to who takes it.
      """)
  var precompressed = true

  @Option(help: "How many disk requests of a loop may be in flight.")
  var queueDepth = 128

  @Option(help: "How many connections there may be; more are closed at once.")
  var maxConnections = 4096

  @Option(help: "How many files a loop keeps open that are asked for often; 0 is none.")
  var openFiles = 64

  @Option(
    help: ArgumentHelp(
      "The most that the head of a request may have. (default: 16KiB)", valueName: "bytes"),
    transform: ByteCount.parse)
  var maxHead = ByteCount(16 << 10)

  @Option(
    help: ArgumentHelp(
      "How long a request's head, and each next part of its body, may take.", valueName: "seconds"))
  var requestTimeout = 30.0

  @Option(
    help: ArgumentHelp(
      "How long a connection may be idle between requests.", valueName: "seconds"))
  var keepAliveTimeout = 75.0

  @Option(
    help: ArgumentHelp(
      "How long a client may take nothing of an answer.", valueName: "seconds"))
  var sendTimeout = 60.0

  @Option(
    help: ArgumentHelp(
      "How long clients may take to take their last answers after SIGTERM.", valueName: "seconds"))
  var drainTimeout = 10.0

  @Option(
    help: ArgumentHelp(
      "Append a line for each answer to a file; - is standard output.", valueName: "path"))
  var accessLog: PathArgument?

  @Option(
    help: ArgumentHelp(
      "The most lines that a loop adds to the access log in a second; 0 is all.",
      valueName: "lines"))
  var accessLogRate = 0

  @OptionGroup var metrics: MetricsOptions

  @OptionGroup var logOptions: LogOptions

  func validate() throws {
    try require("loops", loops, in: 1...64)
    try require("queue-depth", queueDepth, in: 1...4096)
    try require("max-connections", maxConnections, in: 1...500_000)
    try require("access-log-rate", accessLogRate, in: 0...1_000_000_000)
    guard openFiles >= 0, openFiles <= 65536, openFiles & (openFiles - 1) == 0 else {
      throw ValidationError("--open-files \(openFiles): 0 or a power of two, 65536 at the most")
    }
    try require("max-head", maxHead, in: 256...24 << 10)
    try require(seconds: requestTimeout, for: "request-timeout")
    try require(seconds: keepAliveTimeout, for: "keep-alive-timeout")
    try require(seconds: sendTimeout, for: "send-timeout")
    try require(seconds: drainTimeout, for: "drain-timeout", allowsZero: true)
  }

  private var settings: Settings {
    func nanoseconds(_ seconds: Double) -> UInt64 { UInt64(seconds * 1e9) }
    var settings = Settings()
    settings.loops = loops
    settings.queueDepth = queueDepth
    settings.maxConnections = maxConnections
    settings.requestTimeout = nanoseconds(requestTimeout)
    settings.keepAliveTimeout = nanoseconds(keepAliveTimeout)
    settings.sendTimeout = nanoseconds(sendTimeout)
    settings.drainTimeout = .seconds(drainTimeout)
    settings.limits.head = maxHead.bytes
    settings.limits.line = min(settings.limits.line, maxHead.bytes)
    settings.isWritable = writable
    settings.maxUpload = Int64(maxUpload.bytes)
    settings.openFiles = openFiles
    settings.accessLogRate = accessLogRate > 0 ? accessLogRate : nil
    return settings
  }

  func run() throws {
    let logger = logOptions.makeLogger("aio-httpd")
    // A write beyond RLIMIT_FSIZE, or to a closed socket, is an error, which the signal must not
    // turn into the end.
    signal(SIGXFSZ, SIG_IGN)
    let server: Server
    var address: String?
    do {
      // Before there are other threads, because it changes the environment.
      var listeners = try Listener.fromEnvironment()
      var settings = settings
      // An answer may have a file and its directory open, or a file by two ways.
      settings.maxConnections = try DescriptorLimit.cap(
        connections: maxConnections, files: 2, others: loops * (16 + 2 * openFiles), logger: logger)
      let root = try Root(
        directory.path, caching: caching, lists: listing, isPrecompressed: precompressed)
      let log = try accessLog.map { try AccessLog.sink($0.path) }
      if listeners.isEmpty {
        let listener = try Listener(listen.address)
        address = listener.name
        listeners = [listener]
      }
      server = try Server(
        root: root, listeners: listeners,
        metrics: try metrics.address.map { try MetricsServer($0, logger: logger) },
        settings: settings, log: log, logger: logger)
    } catch {
      throw Failure("\(error)")
    }
    try Program.serve(server, logger: logger) { [address] in
      if let address {
        FileDescriptor.standardOutput.announce("listening on \(address)", logger: logger)
      }
    }
  }

  static func main() { Program.run(Self.self) }
}
